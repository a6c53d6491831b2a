"""How often a run should be saved, of its ledger."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcore.config import configure
from diffcore.config.often import seconds_of
from launch.follow import goodput, show
from launch.follow.interval import Interval, interval, young
from launch.follow.run import Run

STEP = 0.5


def ledger_of(stall: float, every: int, failures: int, saves: int = 4) -> list[dict[str, Any]]:
    """A run whose attempts fail one after the other, each of them just after a checkpoint."""
    lines: list[dict[str, Any]] = []
    now, done = 0.0, 0

    def add(event: str, attempt: int, **fields: Any) -> None:
        lines.append({"time": now, "event": event, "attempt": attempt, **fields})

    for attempt in range(failures):
        add("started", attempt, job="5", restart=0)
        add("start", attempt)
        add("loaded", attempt, step=done)
        add("first_step", attempt, step=done)
        for _ in range(saves):
            now, done = now + every * STEP + stall, done + every
            add("saved", attempt, step=done, seconds=stall + 9.0, waited=stall)
        add("ended", attempt, code=75, step=done, kept=done, beat=now, job="5")
    return lines


@given(st.floats(0.01, 30.0), st.integers(1, 1000), st.integers(1, 5))
def test_it_is_youngs_of_stall_and_time_between_failures(stall: float, every: int, failures: int) -> None:
    lines = ledger_of(stall, every, failures)
    found = interval(goodput.account(lines), lines)
    assert found is not None
    mean = 4 * (every * STEP + stall)
    assert (found.now, found.failures) == (every, failures)
    assert found.stall == pytest.approx(stall)
    assert found.hours == pytest.approx(mean / 3600)
    assert found.seconds == pytest.approx(young(stall, mean))
    assert found.best == pytest.approx(max(1.0, young(stall, mean) / STEP), abs=0.51)


@given(st.floats(0.1, 100.0), st.floats(1e3, 1e6))
def test_youngs_interval_costs_least_to_first_order(stall: float, mean: float) -> None:
    def cost(work: float) -> float:  # stalls, and half an interval lost with every failure
        return stall / work + work / 2 / mean

    assert all(cost(young(stall, mean)) <= cost(other * young(stall, mean)) for other in (0.9, 1.1))
    assert young(2 * stall, 2 * mean) == pytest.approx(2 * young(stall, mean))
    assert math.isclose(young(stall, mean) ** 2, 2 * stall * mean)


def test_without_a_failure_or_checkpoints_nothing_is_said() -> None:
    lines = ledger_of(1.0, 10, 1)
    well = [line | ({"code": 0} if line["event"] == "ended" else {}) for line in lines]
    assert interval(goodput.account(well), well) is None
    one = ledger_of(1.0, 10, 3, saves=1)
    assert interval(goodput.account(one), one) is None
    assert interval([], []) is None


def test_goodput_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ledger_of(2.0, 1000, 2)
    told = show.goodput_of(Run(tmp_path, "5", "x", "local", tmp_path, lines, None))
    said = capsys.readouterr().out
    assert "checkpoints: one every 1000 steps; every" in said
    assert f"; by time: train.checkpoint_every: {round(young(2.0, 4 * (1000 * STEP + 2.0)))}s" in said
    assert told["checkpoints"]["now"] == 1000
    assert Interval(**told["checkpoints"]) == interval(goodput.account(lines), lines)


@pytest.mark.parametrize(("changed", "takes"), [({}, True), ({"guards": {"explosion": 8.0}}, False)])
def test_a_time_is_named_where_the_run_takes_one(
    changed: dict[str, Any], takes: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(configure.load(Path("demo-adamw"), changed).to_yaml())
    lines = ledger_of(2.0, 1000, 2)
    show.goodput_of(Run(tmp_path, "5", "x", "local", tmp_path, lines, None))
    said = capsys.readouterr().out
    assert "would cost least" in said and ("by time" in said) is takes


@given(st.floats(0.1, 1e6))
def test_the_setting_is_one_that_training_takes(seconds: float) -> None:
    said = seconds_of(Interval(1, 1, seconds, 1.0, 1, 1.0).setting)
    assert said is not None and abs(said - seconds) <= max(0.5, min(30.0, 0.11 * seconds), 1 - seconds)
