"""What counts as a streak of steps left out, and which checkpoint is trusted then."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffbase.exits import RunFailedError
from diffcore.config.tree import Guards
from diffcore.engine.ranks import World
from diffcore.training import run
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


class Saver:
    """Notes what it is to save; what it had in hand could not be written."""

    def __init__(self) -> None:
        self.saved: list[int] = []

    def settle(self) -> bool:
        raise OSError(28, "No space left on device")

    def save(self, state: int, *_: Any) -> None:
        self.saved.append(state)


def test_a_disk_that_fails_does_not_hide_the_last_good_checkpoint(tmp_path: Path) -> None:
    training: Any = Training.__new__(Training)
    training.saver, training.step, training.progress = Saver(), 14, Progress(skips=2, skips_in_row=2)
    training.config = SimpleNamespace(run=tiny_run.write(tmp_path / "run", 4, 8, 12))
    assert "too many. Last good checkpoint: step-00000008." in str(training._failed("too many"))


@pytest.mark.parametrize(
    ("step", "in_row", "done"),
    [(12, 1, "saved"), (12, 2, "refused"), (12, 5, "refused"), (11, 1, "owed"), (11, 2, "owed")],
)
def test_a_single_step_left_out_at_the_end_ends_no_run(
    step: int, in_row: int, done: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training: Any = Training.__new__(Training)
    training.saver, training.step, training.streak = Saver(), step, Streak()
    monkeypatch.setattr(training.saver, "settle", lambda: False)
    monkeypatch.setattr(run, "state_now", lambda config, data, step, *_: step)
    training.streak.on = True
    training.progress = Progress(skips=in_row, skips_in_row=in_row)
    training.config = SimpleNamespace(run=tmp_path, train=SimpleNamespace(steps=12, best="validation/loss"))
    training.engine, training.ema = SimpleNamespace(is_finite=lambda: True), None
    training.agreement = SimpleNamespace(saved=lambda: None)
    training.clock, training.pace = SimpleNamespace(start=lambda: None), SimpleNamespace(taken=lambda: None)
    training.monitor = SimpleNamespace(say=lambda line: None)
    training.watchdog = SimpleNamespace(section=lambda name: nullcontext())
    training.measured, training.data, training._saved, training._unsettled = {}, {}, None, None
    training._best_before, training.costs = None, SimpleNamespace(now=dict)
    with pytest.raises(RunFailedError, match="step 12: not saved") if done == "refused" else nullcontext():
        training.save()
    assert training.saver.saved == ([12] if done == "saved" else [])
    assert training.streak.owed == (done != "saved")


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
