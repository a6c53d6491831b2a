"""What a run has cost: the same over every resume, and of every life what is known."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcore.engine.ranks import World
from diffcore.training.meters import costs
from diffcore.training.meters.costs import Costs
from tests.support.ranks import CPU

ALONE = World(0, 1, 0, CPU)
FLOPS = st.integers(1, 10**12)


def spin(seconds: float) -> float:
    """Use the CPU; the seconds of it that this process then has used meanwhile, at least."""
    began = time.process_time()
    while (took := time.process_time() - began) < seconds:
        pass
    return took


@given(st.lists(st.tuples(st.integers(1, 10**6), FLOPS), min_size=1), st.data())
def test_a_resume_counts_on_bit_for_bit(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    """Wherever it is cut, through a checkpoint's JSON, also where the work of an image changes on the way."""
    whole, cut = Costs(ALONE), data.draw(st.integers(0, len(steps)))
    first, second = Costs(ALONE), Costs(ALONE)
    for step in steps:
        whole.step(*step)
    for step in steps[:cut]:
        first.step(*step)
    second.take_up(json.loads(json.dumps(first.now())), samples=0, flops=0)
    for step in steps[cut:]:
        second.step(*step)
    told, wanted = second.now(), whole.now()
    assert (told["images"], told["flops"]) == (wanted["images"], wanted["flops"])
    assert told["images"] == sum(images for images, _ in steps)


def test_cpu_seconds_add_up_over_lives() -> None:
    first = Costs(ALONE)
    used = spin(0.05)
    spent = first.now()
    second = Costs(ALONE)
    second.take_up(spent, samples=8, flops=1)
    again = spin(0.05)
    assert spent["cpu_seconds"] >= round(used, 3)
    assert second.now()["cpu_seconds"] >= round(spent["cpu_seconds"] + again, 3) - 0.001


def test_a_killed_life_is_known_up_to_its_last_log_line(tmp_path: Path) -> None:
    lines = [
        {"step": 1, costs.CPU: 3.0},
        {"step": 2, costs.CPU: 70.0},
        {"step": 3, costs.CPU: None},
        {"step": 4},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert costs.logged(tmp_path) == 70.0
    later = Costs(ALONE)
    later.take_up({"images": 8, "flops": 80.0, "cpu_seconds": 40.0}, samples=8, flops=10)
    later.lived(costs.logged(tmp_path))
    assert later.now()["cpu_seconds"] >= 70.0 and later.now()["images"] == 8
    later.lived(5.0)  # never less
    assert later.now()["cpu_seconds"] >= 70.0


@pytest.mark.parametrize("make", [None, "folder", ""], ids=str)
def test_a_run_without_a_log_had_no_life_that_told(make: str | None, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    if make == "folder":
        path.mkdir()
    elif make is not None:
        path.write_text(make)
    assert costs.logged(tmp_path) == 0.0


def test_a_checkpoint_that_is_older_has_trained_on_its_samples() -> None:
    resumed = Costs(ALONE)
    resumed.take_up({}, samples=96, flops=96_000)
    resumed.step(4, 1000)
    told = resumed.now()
    assert (told["images"], told["flops"]) == (100, 100_000.0)
