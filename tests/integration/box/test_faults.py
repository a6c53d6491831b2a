"""A part of benchmarks/job_faults.py: one run meets faults in turn and ends with the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.box.conftest import REPOSITORY, RunningBox

FAULTS = ["crash", "hang", "preempt", "cancel", "node"]


@pytest.fixture(scope="module")
def rows(box: RunningBox) -> dict[str, dict[str, Any]]:
    """What the program found, by fault."""
    program = [sys.executable, str(REPOSITORY / "benchmarks/job_faults.py"), "--box", str(box.folder)]
    command = [*program, "--together", *FAULTS]
    done = subprocess.run(command, cwd="/", stdout=subprocess.PIPE, text=True, timeout=540)
    assert done.returncode in (0, 1), "the program itself failed"
    found = json.loads(done.stdout)["rows"]
    print(json.dumps(found, indent=1))
    return {row.get("fault", row.get("ending")): row for row in found}


def test_nothing_failed(rows: dict[str, dict[str, Any]]) -> None:
    assert [row for row in rows.values() if "failed" in row] == []
    assert list(rows) == FAULTS


def test_preemption_costs_at_most_one_step(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["preempt"]["lost_steps"] <= 1
