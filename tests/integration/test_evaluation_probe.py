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
from diffcore import models
from diffcore.config import configure
from diffcore.engine import process_group
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.evaluation.quality.probe import probe_of
from diffcore.engine.ranks import barrier
from shards.table import Index
import torch

world = process_group.start(Path(sys.argv[3]).parent, 1)
figures = []
for stage in (0, 3):
    config = configure.load(Path(sys.argv[1]), {"engine": {"zero": stage}, "data": {"path": sys.argv[2]}})
    index = Index.load(config.data.path)
    torch.manual_seed(0)
    wrapped = Engine(models.build(config.model, index.schema, index.size), config, world)
    ema = Ema(wrapped, config.ema)
    figures.append(probe_of(config, index, world, samples=10)(wrapped, ema))
if world.main:
    Path(sys.argv[3]).write_text(json.dumps(figures))
barrier()
process_group.stop()
"""


def test_ranks_and_stages_see_the_same_figures(judged: Path, small: Path, tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(SCRIPT)
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        # fmt: off
        command = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
                   "--master-port", str(free_port()), str(script), str(small), str(judged), str(out),
                   str(REPOSITORY)]
        # fmt: on
        finished = run([sys.executable, *command], cwd=REPOSITORY)
        assert finished.code == 0, finished.out[-2000:] + finished.err[-3000:]
        found += json.loads(out.read_text())
    assert len(found) == 4
    attributes = ("hair_color", "face_color", "fidelity", "fidelity_attributes", "frechet")
    assert {f"quality/{name}" for name in attributes} == set(found[0])
    assert found[0]["quality/fidelity_attributes"] == 2
    for other in found[1:]:
        assert found[0] == pytest.approx(other, rel=1e-2, abs=1e-3)
