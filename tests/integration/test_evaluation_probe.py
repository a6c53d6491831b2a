"""The evaluation during training: the same on every number of ranks and every ZeRO stage."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY, free_port, run

SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from diffcore import configure, engine, models
from diffcore.ema import Ema
from diffcore.engine import Engine
from diffcore.evaluation.during_training import probe_of
from diffcore.world import barrier
from shards.index import Index
import torch

changes = {"engine": {"zero": int(sys.argv[2])}, "data": {"path": sys.argv[5]}}
config = configure.load(Path(sys.argv[1]), changes)
world = engine.start(1)
index = Index.load(config.data.path)
torch.manual_seed(0)
wrapped = Engine(models.build(config.model, index.schema, index.size), config, world)
ema = Ema(wrapped, config.ema)
figures = probe_of(config, index, world, samples=10)(wrapped, ema)
if world.main:
    Path(sys.argv[3]).write_text(json.dumps(figures))
barrier()
engine.stop()
"""


@pytest.mark.parametrize("stage", [0, 3])
def test_ranks_and_stages_see_the_same_figures(stage: int, judged: Path, small: Path, tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(SCRIPT)
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        # fmt: off
        command = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
                   "--master-port", str(free_port()), str(script), str(small), str(stage), str(out),
                   str(REPOSITORY), str(judged)]
        # fmt: on
        finished = run([sys.executable, *command], cwd=REPOSITORY)
        assert finished.code == 0, finished.out[-2000:] + finished.err[-3000:]
        found.append(json.loads(out.read_text()))
    one, two = found
    assert {"quality/fidelity", "quality/hair_color", "quality/face_color", "quality/frechet"} == set(one)
    assert one == pytest.approx(two, rel=1e-2, abs=1e-3)
