"""What the code before this house left behind is still good: its shards, its run and its export.

``tests/golden/before`` was made by commit d54f70f with its README's commands: 2 ranks, ZeRO-1, two steps.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from diffcore.runs import checkpoint
from diffcore.runs.model import load_network
from tests.integration.conftest import REPOSITORY, TRAIN, Finished, run
from tests.support.numerics import saved

pytestmark = pytest.mark.numeric

GOLDEN = REPOSITORY / "tests" / "golden" / "before"
SAME = 1e-4
"""Relative distance of two runs of the same data and noise. Another machine rounds 1e-6 differently; another
sample, label or noise in one step is of the order of 1."""
YOUNGER: dict[str, object] = {
    "diffusion.shift": 1.0, "diffusion.sigma_data": 0.5, "diffusion.sigmoid_bias": 2.0,
    "diffusion.timestep_density": "uniform", "diffusion.timestep_mean": 0.0, "diffusion.timestep_std": 1.0,
    "diffusion.timestep_stratified": False, "ema.posthoc": [], "ema.snapshot_every": 500,
    "model.head": "pixel_shuffle", "model.head_channels": 16, "model.tau": "mixed",
    "model.label_gain": 1.0, "model.label_maps": 0,
    "model.self_attention_levels": [], "optimizer.momentum": 0.95, "optimizer.ns_steps": 5,
    "train.stages": [],
}  # fmt: skip
LR, EPS = 1e-3, 1e-8
"""Adam's, here. Where a gradient is below eps it is no more than rounding, as that of a layer behind which
the weights are still zero: it moves nothing by as much as a rate, and counts as if it were of eps."""


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "before"))


def train(folder: Path, *overrides: str, ranks: int = 2) -> Finished:
    command = [sys.executable, str(TRAIN), "--config", "train.yaml", *overrides]
    finished = run(command, cwd=folder, ranks=ranks)
    assert finished.code == 0, finished.out[-3000:] + finished.err[-3000:]
    return finished


def assert_same(run: Path, other: Path, step: int) -> None:
    got, wanted = saved(run, step), saved(other, step)
    for which in ("weights", "ema", "optimizer"):
        assert got[which].keys() == wanted[which].keys()
        for name, tensor in wanted[which].items():
            least = LR
            if which == "optimizer":
                least = EPS**2 if name.endswith("exp_avg_sq") else EPS
            size = max(tensor.norm().item(), least * tensor.numel() ** 0.5)
            assert (got[which][name] - tensor).norm() <= SAME * size, f"{which}: {name}"


def test_its_run_is_made_again_and_resumed(before: Path) -> None:
    train(before, "--run", "again", "--diffusion.draws", "1")
    assert_same(before / "again", before / "run", 2)
    recorded = [json.loads((before / name / "run.json").read_text()) for name in ("again", "run")]
    younger = {"data.flip": False, "diffusion.draws": 1} | YOUNGER  # settings that there were not yet
    assert recorded[0]["identity"] == recorded[1]["identity"] | younger

    assert "from step 2" in train(before, "--train.steps", "4").out
    train(before, "--run", "again", "--train.steps", "4", ranks=1)
    assert_same(before / "again", before / "run", 4)


def test_its_shards_are_whole(before: Path) -> None:
    finished = run([sys.executable, "-m", "shards.verify", str(before / "shards")], cwd=REPOSITORY)
    assert finished.code == 0, finished.err


def test_its_export_holds_its_weights(before: Path) -> None:
    newest, _ = checkpoint.newest(before / "run")
    assert newest is not None
    for which in ("ema", "raw"):
        network = load_network(before / "export", which)
        weights = checkpoint.read_weights(newest, "weights" if which == "raw" else which)
        assert network.state_dict().keys() == weights.keys()
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, weights[name])
