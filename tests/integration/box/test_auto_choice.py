"""``submit --auto`` on a real Slurm: its forecasts of several sizes, the one submitted, and the promise."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from diffcore.memory import promise
from diffcore.runs import figures
from tests.integration.box.checkout import Checkout, make_checkout
from tests.integration.box.conftest import REPOSITORY, RunningBox, wait_for

SMALL = [
    "--model.channels", "16,32", "--model.attention_levels", "1", "--train.steps", "4", "--batch.size", "8",
    "--train.log_every", "1", "--sampling.steps", "2", "--sampling.count", "4",
]  # fmt: skip


@pytest.fixture
def checkout(box: RunningBox, packed: Path, tmp_path: Path) -> Checkout:
    made = make_checkout(tmp_path / "checkout", box, packed)
    profile = yaml.safe_load((made.folder / "slurm/profiles/box.yaml").read_text())
    profile["gpus"]["card"] = "RTX 3060 12GB"
    (made.folder / "box.yaml").write_text(yaml.safe_dump(profile))
    # It really trains, on the CPU.
    (made.folder / "diffcore" / "train.py").write_bytes((REPOSITORY / "diffcore" / "train.py").read_bytes())
    return made


def test_the_queue_is_asked_and_the_promise_is_kept(checkout: Checkout) -> None:
    """While a node is taken two start later than one; a short run is over sooner on one, and goes there."""
    taken = checkout.box.sbatch("sleep 600", "--nodes=1", "--exclusive", "--time=30")
    wait_for(lambda: checkout.box.state(taken) == "RUNNING")
    asked = [
        "--cluster",
        str(checkout.folder / "box.yaml"),
        "--auto",
        "--nodes",
        "1-2",
        "--gpus-per-node",
        "2",
    ]
    text = checkout.submit(*asked, "--engine.zero", "1", *SMALL)
    assert "auto: 1 x 2 RTX 3060 12GB: engine.zero 1," in text and "engine.zero (command line)" in text
    assert "auto: 1 node: would start" in text and "auto: 2 nodes: would start" in text
    told = json.loads((checkout.run / promise.FILE).read_text())
    one, two = told["sizes"]
    assert one["start"] <= time.time() + 60 < two["start"] == pytest.approx(time.time() + 1800, abs=120)
    assert told["nodes"] == 1 and told["start"] == one["start"]
    (submitted,) = checkout.events("submitted")
    assert submitted["nodes"] == 1 and submitted["ranks"] == 2
    assert checkout.until_over(str(submitted["job"]), 150) == "COMPLETED"
    checkout.box.run("scancel", taken)
    config = yaml.safe_load((checkout.run / "job" / "001" / "config.yaml").read_text())
    assert config["batch"]["micro"] == told["micro_batch"] and config["engine"]["zero"] == 1
    found = figures.figures(checkout.run)
    had = found["promise"]["delivered"]
    assert had["world"] == told["world"] == 2 and had["device"] == "cpu"
    assert submitted["time"] <= had["start"] <= time.time() and had["images_per_second"] > 0
    # The plan is of a GPU: a CPU holds the same states, and activations of other sizes.
    assert 0.5 < had["peak_bytes"] / told["peak_bytes"] < 2
    words = figures.numbers(found)
    assert words["promised"].endswith(promise.when(told["start"])) and "on the CPU" in words["delivered"]
