"""What counts as a streak of steps left out, and which checkpoint is trusted then."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffcore.config.tree import Guards
from diffcore.engine.ranks import World
from diffcore.training.guards.progress import Progress
from diffcore.training.guards.streak import Streak, last_good
from diffcore.training.run import Training
from tests.support import tiny_run
from tests.support.ranks import CPU


@pytest.mark.parametrize(
    ("loss_finite", "scale", "on"),
    [(True, 65536.0, False), (False, 65536.0, True), (True, 1.0, True), (False, 1.0, True)],
)
def test_a_search_for_the_loss_scale_is_no_streak(
    loss_finite: bool, scale: float, on: bool, tmp_path: Path
) -> None:
    """fp16's: its gradients overflow, its losses do not. What else is left out is told."""
    said: list[str] = []
    training: Any = Training.__new__(Training)
    training.world, training.step, training.streak = World(0, 1, 0, CPU), 3, Streak()
    training.config = SimpleNamespace(run=tmp_path, guards=Guards())
    training.engine = SimpleNamespace(loss_scale=scale)
    training.monitor = SimpleNamespace(say=said.append)
    training.progress = Progress(skips=1, skips_in_row=1)
    training._skipped(torch.tensor(loss_finite))
    assert training.streak.on == on and bool(said) == on


def test_an_owed_checkpoint_waits_for_the_end_of_the_streak() -> None:
    streak = Streak()
    assert not streak.over
    streak.on = streak.owed = True
    assert not streak.over
    streak.on = False
    assert streak.over


@pytest.mark.parametrize(
    ("step", "in_row", "good"),
    [(14, 2, "step-00000008"), (14, 1, "step-00000012"), (12, 8, "none"), (5, 1, "none")],
)
def test_the_weights_that_a_streak_began_with_are_not_trusted(
    step: int, in_row: int, good: str, tmp_path: Path
) -> None:
    run = tiny_run.write(tmp_path / "run", 4, 8, 12)
    assert f"Last good checkpoint: {good}." in last_good(run, step, in_row)
