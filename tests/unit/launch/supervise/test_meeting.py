"""What supervisors write to each other: a file that is damaged, or nobody's, is as if it were not there."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from diffbase.cli import InputError
from launch.job.folder import Place
from launch.supervise.meeting import Exit, Meeting, Plan

DAMAGE = [
    b"",
    b"\xff",
    b"[]",
    b"null",
    b'{"x": 1}',
    b"[" * 5000,
    b'{"rank": "0", "code": 0}',
    b'{"attempt": -1}',
]


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    meeting = Meeting(tmp_path / "job" / "001" / "live", "7.0")
    meeting.open()
    return meeting


def test_what_is_written_is_read(meeting: Meeting) -> None:
    plan, end = Plan(1, "n1", 29500, why="x", avoid=["n2"]), Exit(3, -9, 12.5, "n1", ours=True)
    meeting.publish(0, plan)
    meeting.report(0, end)
    meeting.say_hello(3, "n1", ["GPU 3"])
    meeting.claim("7")
    assert meeting.plan(0) == plan and meeting.exits(0, {}) == {3: end} and meeting.plan(1) is None
    assert asdict(meeting.hellos()[3]) == {"node": "n1", "pid": os.getpid(), "problems": ["GPU 3"]}
    assert meeting.claimed_by() == "7" and not meeting.superseded()


@pytest.mark.parametrize("data", DAMAGE)
def test_a_damaged_file_is_none(meeting: Meeting, data: bytes) -> None:
    meeting.report(0, Exit(1, 0, 1.0, "n1"))
    for name in ("plan-0", "exit-0-0", "hello-0"):
        (meeting.folder / f"{name}.json").write_bytes(data)
    (meeting.folder.parents[2] / "current.json").write_bytes(data)
    assert meeting.plan(0) is None and list(meeting.exits(0, {})) == [1] and not meeting.hellos()
    assert meeting.claimed_by() is None and not meeting.superseded()


@pytest.mark.parametrize("name", ["exit-0-x", "exit-0-", "exit-0-1-2", "exit-0-2", "hello-x", "hello-"])
def test_a_name_that_is_no_ranks_is_passed_over(meeting: Meeting, name: str) -> None:
    tree = (
        asdict(Exit(1, 0, 1.0, "n1")) if name.startswith("exit") else {"node": "n", "pid": 1, "problems": []}
    )
    (meeting.folder / f"{name}.json").write_text(json.dumps(tree))
    assert not meeting.exits(0, {}) and not meeting.hellos()


@pytest.mark.parametrize("data", DAMAGE)
def test_a_damaged_spec_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "job.json").write_bytes(data)
    with pytest.raises(InputError, match=r"job\.json: "):
        Place(tmp_path).spec()
