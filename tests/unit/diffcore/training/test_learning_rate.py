"""The learning rate by samples seen, against PyTorch's schedulers where there is one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.config.tree import Config, Guards, LrSchedule
from diffcore.training.guards.progress import ENOUGH, WINDOW, Progress
from diffcore.training.learning_rate import learning_rate

DEMO = REPOSITORY / "configs" / "demo.yaml"


def config_of(steps: int = 100, batch: int = 10, **schedule: object) -> Config:
    c = configure.load(DEMO, {"optimizer": {"lr": 1.0}, "batch": {"size": batch}, "train": {"steps": steps}})
    return configure.replace(c, "lr_schedule", {"kind": "constant", "warmup_samples": 0, **schedule})


def rates(c: Config) -> list[float]:
    return [learning_rate(c, step * c.batch.size) for step in range(c.train.steps)]


def stepped(c: Config, make: object) -> list[float]:
    """The rates that a PyTorch scheduler gives."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, seen = make(optimizer), []
    for _ in range(c.train.steps):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_after_a_warmup() -> None:
    c = config_of(kind="cosine", warmup_samples=200)
    seen = [*rates(c), learning_rate(c, 1000)]
    assert seen[0] == pytest.approx(0.05) and seen[19] == seen[20] == 1.0
    assert seen[60] == pytest.approx(0.5) and seen[100] == pytest.approx(0)
    assert all(a >= b for a, b in itertools.pairwise(seen[20:]))
    assert rates(config_of()) == [1.0] * 100


@given(steps=st.integers(10, 200))
def test_onecycle_is_pytorchs(steps: int) -> None:
    c = config_of(steps=steps, kind="onecycle")
    wanted = stepped(c, lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=steps))
    assert rates(c) == pytest.approx(wanted, rel=1e-6)


@given(steps=st.integers(1, 60), every=st.integers(1, 20), factor=st.floats(0.1, 0.9))
def test_steps_down_are_pytorchs(steps: int, every: int, factor: float) -> None:
    c = config_of(steps=steps, kind="step", step_samples=every * 10, step_factor=factor)
    wanted = stepped(c, lambda o: torch.optim.lr_scheduler.StepLR(o, every, factor))
    assert rates(c) == pytest.approx(wanted, rel=1e-6)


def test_contradictions_are_refused() -> None:
    with pytest.raises(InputError, match="kind step"):
        config_of(kind="step")
    with pytest.raises(InputError, match="warmup_samples must be 0"):
        config_of(kind="onecycle", warmup_samples=10)


@given(
    losses=st.lists(st.floats(0.1, 10), max_size=40),
    patience=st.integers(1, 5),
    threshold=st.floats(0.1, 0.9),
)
def test_a_plateau_is_pytorchs(losses: list[float], patience: int, threshold: float) -> None:
    # PyTorch counts the bad epochs that it allows, so one less, and compares with a relative threshold.
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=threshold, patience=patience - 1, threshold=0, threshold_mode="abs", eps=0
    )
    c, progress = LrSchedule(plateau_patience=patience, plateau_factor=threshold), Progress()
    for loss in losses:
        before = progress.lr_factor
        assert progress.validated(loss, c) == (progress.lr_factor < before)
        reference.step(loss)
        assert progress.lr_factor == pytest.approx(optimizer.param_groups[0]["lr"])


def test_an_explosion_is_told_from_noise() -> None:
    guards, progress = Guards(explosion=3.0), Progress()
    for loss in (1.0, 0.5, 40.0, 0.6, 0.5):  # too early to tell
        assert not progress.exploded(loss, guards)
    assert len(progress.losses) == ENOUGH
    assert not progress.exploded(1.7, guards) and progress.exploded(2.5, guards)
    assert progress.exploded(math.nan, guards) and progress.exploded(math.inf, guards)
    assert len(progress.losses) == ENOUGH + 1  # explosions are not taken in
    for _ in range(100):
        progress.exploded(0.5, guards)
    assert len(progress.losses) == WINDOW
    assert not any(Progress().exploded(loss, Guards()) for loss in (1, 1, 1, 1, 1, 1, 1e9))


def test_a_rollback_remembers_how_often() -> None:
    guards = Guards(explosion=3.0, rollback_factor=0.5)
    saved, now = Progress(updates=5, lr_factor=0.8), Progress(updates=9, lr_factor=0.8, losses=[1.0])
    now.rolled_back(saved, guards)
    assert (now.updates, now.rollbacks, now.lr_factor, now.losses) == (5, 1, 0.4, [])
    again = Progress(**now.as_json())
    again.rolled_back(saved, guards)
    assert (again.rollbacks, again.lr_factor) == (2, 0.2)
    # from a checkpoint that was saved after the first one: its rate has that cut already
    later = Progress(rollbacks=1)
    later.rolled_back(Progress(rollbacks=1, lr_factor=0.4), guards)
    assert (later.rollbacks, later.lr_factor) == (2, 0.2)


def test_a_metric_that_is_no_number_is_neither_the_best_nor_an_improvement() -> None:
    c, progress = LrSchedule(plateau_patience=2, plateau_factor=0.5), Progress()
    for larger in (False, True):
        assert not progress.is_best(math.nan, larger)
    assert progress.is_best(0.2, larger=False) and not progress.is_best(math.nan, larger=False)
    assert progress.best == 0.2
    assert not progress.validated(math.nan, c) and not progress.validated(0.5, c)
    assert progress.plateau_loss == 0.5
