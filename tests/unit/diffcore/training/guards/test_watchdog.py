"""What a hang leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from diffbase.exits import RETRYABLE
from diffcore.config import configure
from diffcore.config.tree import Guards
from diffcore.runs import run_folder
from diffcore.training.guards.watchdog import Watchdog
from tests.unit.diffcore.config.test_config import DEMO


def test_a_hang_before_the_first_step_leaves_a_folder_that_a_restart_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing but its stacks and the ledger is: no run.json yet."""
    run, ended = tmp_path / "run", list[Any]()
    monkeypatch.setattr(os, "_exit", ended.append)
    watchdog = Watchdog(run, 0, 10, Guards())
    watchdog._end(9.0, "guards.start_seconds 5")
    assert ended == [RETRYABLE] and "no stacks written" in capsys.readouterr().err and not run.exists()
    run.mkdir(0o700)  # as a launcher does
    watchdog._end(9.0, "guards.start_seconds 5")
    assert "stacks in" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} == {"stacks", "events.jsonl"}
    run_folder.check(configure.load(DEMO, {"run": str(run)}), {"fingerprint": "f"})
