"""Runs in stages (``train.stages``): smaller images first; beside a plain loop, and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffcore.runs import checkpoint
from tests.integration.conftest import Train, losses_of, refused
from tests.support.numerics import assert_near, assert_same, plain_loop, saved

STAGES = ("--train.stages", '[{"side": 4, "until": 2}, {"side": 8, "until": 4}]', "--train.steps", "6")


@pytest.mark.numeric
def test_a_run_in_stages_goes_on_bit_for_bit_wherever_it_was_left(train: Train, small: Path) -> None:
    """Within a stage, at a border and behind it."""
    run_folder, often = small.parent / "run", ("--train.checkpoint_every", "1", "--guards.explosion", "9")
    train(*STAGES, *often)
    wanted, losses = saved(run_folder), losses_of(run_folder)
    run_folder.rename(small.parent / "whole")
    for steps in ("1", "2", "5"):
        train(*STAGES, *often, "--train.steps", steps)
    assert "step 5: from here" not in train(*STAGES, *often).out
    found = saved(run_folder)
    assert losses_of(run_folder) == losses
    state = json.loads((checkpoint.complete(run_folder)[-1] / "state.json").read_text())
    assert state["progress"]["losses"] == losses[-2:]  # of the packed images alone
    assert_same(found, wanted)
    refused(train(*often, check=False), "train.stages was [{", "now []")
    wrong = ("--run", str(small.parent / "wrong"), "--train.stages", '[{"side": 12, "until": 2}]')
    refused(train(*wrong, check=False), "train.stages.0.side: 12; allowed with images of 16", "2, 4, 8")


@pytest.mark.parametrize(("before", "after"), [((2, 1), (1, 3)), ((1, 0), (2, 2))])
def test_stages_are_a_plain_loops_at_any_world_size_and_stage(
    before: tuple[int, int], after: tuple[int, int], train: Train, small: Path
) -> None:
    """Left within the second stage. The memory that is measured is the plan's, of the largest images."""
    trace, anatomy = ("--memory.trace", "true"), small.parent / "run" / "anatomy.json"
    train(*STAGES, *trace, "--train.steps", "3", "--engine.zero", str(before[1]), ranks=before[0])
    as_planned(json.loads(anatomy.read_text()), "to step 2, with images of 4 x 4")
    resumed = train(*STAGES, *trace, "--engine.zero", str(after[1]), ranks=after[0])
    assert "step 3: from here on images of 8 x 8 pixels" in resumed.out
    assert "step 4: from here on images of 16 x 16 pixels" in resumed.out
    assert_near(saved(small.parent / "run"), plain_loop(small.parent / "run" / "config.yaml", 6), rtol=1e-4)
    stages = ("to step 2, with images of 4 x 4", "to step 4, with images of 8 x 8")
    as_planned(json.loads(anatomy.read_text()), *stages)


def as_planned(report: dict[str, Any], *stages: str) -> None:
    for measured, planned in zip(report["measured"], report["planned"], strict=True):
        for here, there in zip(measured["moments"], planned["moments"], strict=True):
            low, late = 0.99 * there["allocated"], here["bytes"]["buckets"] - there["bytes"]["buckets"]
            # A bucket that gloo's own thread has not let go of yet is there, and in no plan (docs/memory.md).
            assert low <= here["allocated"] <= 1.01 * there["allocated"] + late
    notes = [note.split(", the peak is ") for note in report["planned"][0]["notes"]]
    assert [note[0] for note in notes if len(note) == 2] == list(stages)
