"""Whether a job runs again, whoever asked Slurm for it."""

from __future__ import annotations

from typing import Any

import pytest

from launch.scheduler.client import State
from launch.supervise import requeue as module


@pytest.mark.parametrize(
    ("state", "refusal", "again"),
    [
        (State("RUNNING", 1, "n1", "p"), None, True),
        (State("RUNNING", 1, "n1", "p"), "no", False),
        (State("PENDING", 2, "", "p"), None, True),  # Slurm has done it
        (State("COMPLETING", 2, "n1", "p"), None, True),
        (State("CANCELLED", 1, "", "p"), None, False),
        (State("COMPLETING", 1, "n1", "p"), None, False),  # cancelled
        (None, None, True),  # in a container: the batch script asks
    ],
)
def test_again_is_what_slurm_will_do(
    state: State | None, refusal: str | None, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "state_of", lambda job: state)
    monkeypatch.setattr(module.exclusion, "requeue", lambda job: refusal)
    monkeypatch.setattr(module.exclusion, "leave_out", lambda job, nodes: True)
    where: Any = type("Where", (), {"job": "7", "restart": 1})
    assert module.requeue(where, ["n2"]).again is again
