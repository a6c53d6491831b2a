"""Activation checkpointing and torch.compile under DeepSpeed, with real processes, against a plain loop."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

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


@pytest.mark.skipif(bool(missing()), reason=f"torch.compile: {missing()}")
def test_a_compiled_network_learns_what_a_plain_one_learns(train: Train, small: Path) -> None:
    train("--engine.compile", "true", "--engine.checkpointing", "selective")
    assert_near(saved(small.parent / "run"), plain_loop(small, 4), rtol=1e-4)  # names are compared too
