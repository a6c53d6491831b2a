"""After which steps a run saves and validates, by steps and by the clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.config.often import seconds_of
from diffcore.config.tree import Config
from diffcore.training.cadence import due_after
from tests.unit.diffcore.config.test_config import DEMO

STEPS = 60


def config(every: int | str, validation: int | None, **more: Any) -> Config:
    train = {"steps": STEPS, "checkpoint_every": every}
    return configure.load(DEMO, {"train": train, "validation": {"every": validation}, **more})


@given(every=st.integers(1, 70), validation=st.one_of(st.none(), st.integers(1, 70)), timed=st.booleans())
def test_by_steps_the_clock_has_no_say(every: int, validation: int | None, timed: bool) -> None:
    given = config(every, validation)
    for step in range(1, STEPS + 1):
        save = step % every == 0 or step == STEPS
        measured = validation is not None and step % validation == 0
        assert due_after(given, step, timed) == (save, save or measured)


@given(validation=st.one_of(st.none(), st.integers(1, 70)), times=st.sets(st.integers(1, STEPS)))
def test_by_time_validations_that_are_set_do_not_move(validation: int | None, times: set[int]) -> None:
    given = config("10m", validation)
    due = {step: due_after(given, step, step in times) for step in range(1, STEPS + 1)}
    saved = {step for step, what in due.items() if what.save}
    validated = {step for step, what in due.items() if what.validate}
    assert times | {STEPS} <= saved and validated <= saved  # the best one is among the saved
    if validation is None:
        assert validated == saved == times | {STEPS}
    else:
        assert validated == {*range(validation, STEPS + 1, validation), STEPS}
        assert saved == times | validated


@pytest.mark.parametrize(
    ("given", "kept", "seconds"),
    [
        (700, 700, None),
        ("700", 700, None),
        (700.0, 700, None),
        ("90s", "90s", 90),
        ("10m", "10m", 600),
        ("1.5h", "1.5h", 5400),
        ("0.25s", "0.25s", 0.25),
    ],
)
def test_steps_or_a_time(given: Any, kept: int | str, seconds: float | None) -> None:
    found = config(given, None).train.checkpoint_every
    assert found == kept and type(found) is type(kept) and seconds_of(found) == seconds
    again = configure.changed(config(given, None), {"train": {"log_every": 3}})
    assert again.train.checkpoint_every == kept


@pytest.mark.parametrize(
    "given", [0, -1, "0", "0m", "m", "10 m", "10min", "1e3s", "-5m", "", True, None, 1.5, [3]]
)
def test_anything_else_is_one_line(given: Any) -> None:
    with pytest.raises(InputError, match=r"train\.checkpoint_every: .*allowed: a number of steps from 1"):
        config(given, None)


def test_a_rate_that_is_cut_on_a_plateau_needs_validations_by_steps() -> None:
    plateau = {"lr_schedule": {"plateau_patience": 2}}
    with pytest.raises(InputError, match=r"checkpoint_every 10m has .* by the clock: set validation\.every"):
        config("10m", None, **plateau)
    assert config("10m", 5, **plateau) and config(10, None, **plateau)


@pytest.mark.parametrize("validation", [None, 5])
def test_losses_that_may_roll_a_run_back_are_not_logged_by_the_clock(validation: int | None) -> None:
    judged = {"guards": {"explosion": 3.0}}
    with pytest.raises(InputError, match=r"guards\.explosion .*checkpoint_every in steps, not as 10m"):
        config("10m", validation, **judged)
    assert config(10, validation, **judged) and config("10m", validation).guards.explosion is None
