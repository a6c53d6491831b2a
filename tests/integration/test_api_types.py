"""A type checker sees what ``import diffcore`` offers: right code passes, wrong code is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffbase.files import REPOSITORY

GOOD = """
from pathlib import Path
import numpy as np
from numpy.typing import NDArray
import diffcore

model: diffcore.TrainedModel = diffcore.load_model(Path("run"), checkpoint=1000, device="cpu")
images: NDArray[np.uint8] = model.sample(16, hair_color=3, seed=0, guidance=2.0)
diffcore.save_grid(images, "grid.png")
summary: diffcore.PackSummary = diffcore.pack("avatars", Path("shards"), size=64)
with diffcore.open_shards("shards", batch_size=8) as reader:
    labels: list[NDArray[np.int64]] = [batch.labels for batch in reader.epoch(1)]
config: diffcore.Config = diffcore.load_config("demo.yaml", {"train.steps": 5})
plan: diffcore.MemoryPlan = diffcore.plan_memory(config, {"engine.zero": 2}, world=8)
peak: dict[str, int] = plan.peak.bytes
text: str = diffcore.__version__
try:
    model.sample(labels={"hair_color": 1})
except diffcore.InputError as error:
    print(error)
"""
BAD = {
    "import diffcore\ndiffcore.load_modell('run')": 'Module has no attribute "load_modell"',
    "import diffcore\ndiffcore.load_model('run').sample('16')": 'expected "int | None"',
    "import diffcore\ndiffcore.load_model('run').sample(4, hair_color=0.5)": 'expected "int | str"',
    "import diffcore\ndiffcore.pack('a', 'b', sizes=3)": 'Unexpected keyword argument "sizes"',
    "import diffcore\nx: str = diffcore.plan_memory('c.yaml').smi": 'expression has type "int"',
    "import diffcore\ndiffcore.open_shards('a').schema.names": '"tuple[Attribute, ...]" has no attribute',
}


def test_mypy_knows_its_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    scripts = {tmp_path / f"user_{i}.py": code for i, code in enumerate([GOOD, *BAD])}
    for path, code in scripts.items():
        path.write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file="]
    command += [*map(str, scripts), "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"]
    told = subprocess.run(
        [*command, "--hide-error-context"], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={**os.environ, "MYPYPATH": str(REPOSITORY)},
    )  # fmt: skip
    lines = told.stdout.splitlines()
    for path, words in zip(scripts, ["", *BAD.values()], strict=True):
        here = [line for line in lines if line.startswith(f"{path.name}:") and ": error: " in line]
        assert [words in line for line in here] == ([True] if words else []), told.stdout + told.stderr
