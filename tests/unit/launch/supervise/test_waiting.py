"""How long a supervisor waits for a leader that is gone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffbase.exits import RETRYABLE
from launch.supervise.limits import Limits
from launch.supervise.meeting import Plan
from launch.supervise.supervisor import Supervisor

TICKS = 7
"""Until Slurm's signal, or a plan, comes."""


@pytest.mark.parametrize(
    ("fewest", "gone", "comes", "ticks"),
    [
        (2, True, "signal", 0),  # at once
        (1, True, "signal", TICKS),  # for the signal, after which a smaller job may be submitted
        (1, True, "plan", TICKS),
        (2, False, "plan", TICKS),
    ],
)
def test_a_leader_that_is_gone_is_not_waited_for(fewest: int, gone: bool, comes: str, ticks: int) -> None:
    plan = Plan(3, "n1", 29500)
    passed = 0

    def tick() -> None:
        nonlocal passed
        passed += 1
        if passed == TICKS and comes == "signal":
            life.asked = 15

    meeting = SimpleNamespace(
        gone=gone, plan=lambda number: plan if passed >= TICKS and comes == "plan" else None
    )
    life: Any = SimpleNamespace(
        where=None, spec=SimpleNamespace(requeue=True, nodes=2, nodes_min=fewest), meeting=meeting, asked=0,
        run_folder=None, say=lambda line: None, tick=tick, claimed=False,
        limits=Limits(0.0, 0.0, 0.0, 0.0, 0.0, leader_lost=60.0),
    )  # fmt: skip
    found = Supervisor(life, Path(), lambda place: None).await_plan(0)
    assert passed == ticks
    assert found == plan if comes == "plan" else (found.leave, found.code) == (True, RETRYABLE)
