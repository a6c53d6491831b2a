"""The parts of a step's time: laps, and what is counted aside."""

from __future__ import annotations

import pytest
import torch

from diffcore.training.meters import step_clock
from diffcore.training.meters.step_clock import StepClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [0.0]
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: time[0])
    return time


def test_what_is_aside_is_not_in_the_part_that_it_interrupts(now: list[float]) -> None:
    clock = StepClock(torch.device("cpu"))
    now[0] = 1.0
    clock.lap("forward")
    now[0] = 2.0
    with clock.aside("communication"):
        now[0] = 4.0
        with clock.aside("communication"):  # a collective made of others counts once
            now[0] = 5.0
    now[0] = 6.0
    clock.lap("backward")
    now[0] = 6.5
    clock.lap("optimizer")
    assert clock.read() == {"forward": 1.0, "communication": 3.0, "backward": 2.0, "optimizer": 0.5}
    assert clock.read() == {}


def test_start_forgets_what_was_no_part_of_a_step(now: list[float]) -> None:
    clock = StepClock(torch.device("cpu"))
    with clock.aside("communication"):
        now[0] = 3.0
    clock.start()
    now[0] = 4.0
    clock.lap("forward")
    assert clock.read() == {"forward": 1.0}
