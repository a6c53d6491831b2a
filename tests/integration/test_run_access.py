"""A run of run_access: group, in the eyes of a member of its group and of another user."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Train
from tests.support.faults.kit import STRANGER, root

pytestmark = pytest.mark.skipif(not root(), reason="LEFT OUT: other users need root; make system-test")
GROUP = 54322
MEMBER: dict[str, Any] = {"user": STRANGER, "group": STRANGER, "extra_groups": [GROUP]}
OTHER: dict[str, Any] = {"user": STRANGER, "group": STRANGER, "extra_groups": []}
SECRET = {".lock", "7_submitted.pkl"}


@pytest.fixture
def project() -> Iterator[Path]:
    """A folder that a group reads, as projects have; pytest's own are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="project-"))
    os.chown(folder, -1, GROUP)
    folder.chmod(0o2755)
    yield folder
    shutil.rmtree(folder)


def those(run: Path, test: str, person: dict[str, Any]) -> set[Path]:
    """What of the run a person may do that with, by access(2)."""
    done = subprocess.run(["find", run, test, "-print0"], cwd="/", capture_output=True, text=True, **person)
    return {Path(name) for name in done.stdout.split("\0") if name}


def may(person: dict[str, Any], *command: str) -> bool:
    return subprocess.run(command, cwd="/", capture_output=True, **person).returncode == 0


def test_a_member_reads_a_run_and_changes_nothing_and_others_see_nothing(train: Train, project: Path) -> None:
    run = project / "new" / "run"  # folders that the run makes are no obstacle
    before = os.umask(0o077)
    try:
        train("--run", str(run), "--run_access", "group", "--train.steps", "2", ranks=2)
        resumed = train("--run", str(run), "--train.steps", "4")  # it is kept
    finally:
        os.umask(before)
    assert "from step 2" in resumed.out and "warning" not in resumed.err
    everything = {run, *run.rglob("*")}
    kept = {path for path in everything if path.name.startswith(".lock")}
    assert kept and those(run, "-readable", MEMBER) == everything - kept
    names = {path.name for path in everything}
    assert {"events.jsonl", "metrics.jsonl", "config.yaml", "COMPLETE"} <= names
    assert [name for name in names if "tfevents" in name]
    assert those(run, "-writable", MEMBER) == set()
    assert {path.lstat().st_gid for path in everything} == {GROUP}
    assert not {path for path in everything if path.lstat().st_mode & (stat.S_IRWXO | stat.S_IWGRP)}
    for command in (
        ("rm", str(run / "events.jsonl")),
        ("mv", str(run / "config.yaml"), str(run / "other.yaml")),
        ("mv", str(run), str(project / "other")),
        ("touch", str(run / "new")),
        ("touch", str(run / "checkpoints" / "new")),
        ("ln", "-s", "/tmp", str(run / "link")),
    ):
        assert not may(MEMBER, *command), command
    assert may(MEMBER, "cat", str(run / "events.jsonl")) and not may(OTHER, "cat", str(run / "events.jsonl"))
    assert not may(OTHER, "ls", str(run)) and those(run, "-readable", OTHER) == set()


def test_a_run_that_was_not_opened_is_closed_to_the_group(train: Train, project: Path) -> None:
    """The control: the same folder and group, and the default."""
    train("--run", str(project / "run"), "--train.steps", "1")
    assert not may(MEMBER, "ls", str(project / "run"))
