"""train.minutes: a run whose length the machine's speed decides, once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from diffbase import ledger
from diffcore.config import configure
from diffcore.runs import checkpoint
from diffcore.training.meters import length
from tests.integration.conftest import Train, run
from tests.support.numerics import assert_same, saved

FALLING = ("--lr_schedule.kind", "cosine", "--lr_schedule.warmup_samples", "16")


@pytest.mark.numeric
@pytest.mark.parametrize(("zero", "ranks"), [("1", 2), ("0", 1), ("3", 2)])
def test_it_is_as_if_the_steps_had_been_given(zero: str, ranks: int, train: Train, small: Path) -> None:
    """To the last bit, and over a resume on another speed; config.yaml says the steps."""
    run, flags = small.parent / "run", (*FALLING, "--engine.zero", zero)
    begun = train("--train.minutes", "0.005", *flags, ranks=ranks)
    record = length.kept(run)
    assert record is not None and record.ranks == ranks
    steps = record.steps(0.005)
    assert f"train.minutes 0.005: {steps} steps" in begun.out and "measured in" in begun.out
    assert configure.load(run / "config.yaml").train.steps == steps >= length.FEWEST
    assert [event["steps"] for event in ledger.events(run) if event["event"] == "start"] == [steps]
    found = saved(run)

    shutil.rmtree(checkpoint.complete(run)[-1])
    resumed = train("--train.minutes", "0.005", *flags, ranks=ranks)
    assert "as measured when it began" in resumed.out and "from step" in resumed.out
    assert length.kept(run) == record

    again = saved(run)
    run.rename(small.parent / "by minutes")
    train("--train.steps", str(steps), *flags, ranks=ranks)
    assert not (run / length.FILE).exists()
    wanted = saved(run)
    assert_same(found, wanted)
    assert_same(again, wanted)  # resumed


def test_a_damaged_record_is_one_line_on_every_rank(train: Train, small: Path) -> None:
    train("--train.minutes", "0.001")
    (small.parent / "run" / length.FILE).write_text('{"minutes": 0.001}')
    finished = train("--train.minutes", "0.001", ranks=2, check=False)
    assert finished.code == 2 and "Traceback" not in finished.err
    assert "length.json: seconds_per_step: Field required" in finished.err


CODE = """
import gc
import sys

import torch

from diffcore import train
from diffcore.training.meters import length

measured = length.seconds_per_step


def measure(config, world):
    speed = measured(config, world)
    gc.collect()
    print("left:", sum(isinstance(o, torch.Tensor) and o.numel() for o in gc.get_objects()))
    return speed


length.seconds_per_step = measure
train.main(sys.argv[1:])
"""


@pytest.mark.parametrize("zero", ["0", "1", "2"])
def test_nothing_of_the_network_that_was_timed_is_left(zero: str, small: Path) -> None:
    """Or a run on a GPU would need room for two."""
    words = ["--config", str(small), "--train.minutes", "0.001", "--engine.zero", zero]
    finished = run([sys.executable, "-c", CODE, *words], small.parent)
    assert finished.code == 0, finished.err
    assert "left: 0\n" in finished.out
