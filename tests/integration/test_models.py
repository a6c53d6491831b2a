"""Activation checkpointing and torch.compile under DeepSpeed, with real processes, against a plain loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffcore.config import configure
from diffcore.models.compiling import missing
from tests.integration.conftest import Train
from tests.integration.test_training import assert_near
from tests.support.numerics import plain_loop, saved

pytestmark = pytest.mark.numeric


def test_checkpointing_under_zero_3_is_the_plain_form(train: Train, small: Path) -> None:
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for mode in ("none", "selective", "full"):
        flags = ("--engine.zero", "3", "--engine.checkpointing", mode, "--run", str(small.parent / mode))
        train(*flags, ranks=2)
        found[mode] = saved(small.parent / mode)
    # Attention learns from the third step on, when its zeroed output has moved.
    assert_near(found["selective"], found["none"], rtol=1e-6)
    assert_near(found["full"], found["none"], rtol=1e-6)


@pytest.mark.parametrize(("zero", "ranks"), [("0", 2), ("2", 1)])
def test_channels_last_learns_the_same_and_its_checkpoints_know_nothing_of_it(
    zero: str, ranks: int, train: Train, small: Path
) -> None:
    """Half of a run with it and half without, after a start whose compile and snapshot the CPU has not."""
    run = small.parent / "run"
    asked = ("--engine.compile", "auto", "--train.memory_snapshot", "1,2")
    flags = ("--engine.zero", zero, "--engine.channels_last")
    begun = train("--train.steps", "2", *asked, *flags, "true", ranks=ranks)
    assert "engine.compile auto is off (rank 0: there is no GPU)" in begun.out
    assert "train.memory_snapshot: torch keeps a history of CUDA's memory alone" in begun.out
    assert configure.load(run / "config.yaml").engine.compile == "off"
    half = saved(run)
    assert_near(half, plain_loop(small, 2), rtol=1e-4)
    assert "from step 2" in train(*flags, "false", ranks=ranks).out
    assert_near(saved(run), plain_loop(small, 4), rtol=1e-4)
    # A network without it begins with the weights that were saved with it, which so small a step moves where
    # they are zero alone.
    source = ("--init_from", str(run / "checkpoints" / "step-00000002"), "--init_weights", "raw")
    train("--run", str(small.parent / "other"), *source, "--train.steps", "1", "--optimizer.lr", "1e-30")
    loaded = saved(small.parent / "other")["weights"]
    assert loaded.keys() == half["weights"].keys()
    for name, tensor in half["weights"].items():
        assert torch.equal(loaded[name].where(tensor != 0, tensor), tensor), name
        assert loaded[name].where(tensor == 0, tensor.new_zeros(())).abs().max() <= 1e-29, name


@pytest.mark.skipif(bool(missing()), reason=f"torch.compile: {missing()}")
def test_a_compiled_network_learns_what_a_plain_one_learns(train: Train, small: Path) -> None:
    train("--engine.compile", "true", "--engine.checkpointing", "selective")
    assert_near(saved(small.parent / "run"), plain_loop(small, 4), rtol=1e-4)  # names are compared too
