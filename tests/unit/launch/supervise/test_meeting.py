"""What supervisors keep on the disk and know of each other: a damaged file is as if it were not there."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from diffbase.cli import InputError
from launch.job.folder import Place
from launch.supervise.meeting import Door, Ended, Exit, Meeting, Plan

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
DOOR = Door("n1", 29000, "ab" * 32)


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    meeting = Meeting(tmp_path / "job" / "001" / "live", "7.0")
    meeting.open()
    return meeting


def test_what_is_said_is_known_and_kept(meeting: Meeting) -> None:
    plan, end = Plan(1, "n1", 29500, why="x", avoid=["n2"]), Exit(3, -9, 12.5, "n1", ours=True)
    meeting.publish(0, plan)
    meeting.report(0, end)
    meeting.keep_exits(0, meeting.exits(0, {}).values())
    meeting.say_hello(3, "n1", ["GPU 3"])
    meeting.keep_door(DOOR)
    meeting.claim("7")
    assert meeting.plan(0) == meeting.kept_plan(0) == plan and meeting.exits(0, {}) == {3: end}
    assert meeting.plan(1) is None and meeting.kept_plan(1) is None
    assert asdict(meeting.hellos()[3]) == {"node": "n1", "pid": os.getpid(), "problems": ["GPU 3"]}
    assert meeting.claimed_by() == "7" and not meeting.superseded() and meeting.door() == DOOR
    assert json.loads((meeting.folder / "exits-0.json").read_text()) == {"exits": [asdict(end)]}
    for path in meeting.folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("codes", "wanted"),
    [
        ({}, Ended()),
        ({1: 0}, Ended(1)),
        ({0: 85, 1: 0}, Ended(2, first=True)),
        ({1: 75, 2: 0}, Ended(2, failed=True)),
        ({0: -9}, Ended(1, failed=True, first=True)),
    ],
)
def test_what_the_others_have_to_know(meeting: Meeting, codes: dict[int, int], wanted: Ended) -> None:
    for rank, code in codes.items():
        meeting.report(4, Exit(rank, code, 1.0, "n1"))
    assert meeting.ended(4) == wanted and meeting.ended(5) == Ended()


@pytest.mark.parametrize("data", DAMAGE)
def test_a_damaged_file_is_none(meeting: Meeting, data: bytes) -> None:
    for name in ("plan-0", "leader"):
        (meeting.folder / f"{name}.json").write_bytes(data)
        (meeting.folder / f"{name}.json").chmod(0o600)
    (meeting.folder.parents[2] / "current.json").write_bytes(data)
    assert meeting.kept_plan(0) is None and meeting.door() is None
    assert meeting.claimed_by() is None and not meeting.superseded()


@pytest.mark.parametrize("fault", ["all read it", "all write it", "a stranger's", "a link"])
def test_a_secret_that_others_could_know_is_none(meeting: Meeting, fault: str) -> None:
    meeting.keep_door(DOOR)
    path = meeting.folder / "leader.json"
    match fault:
        case "all read it":
            path.chmod(0o604)
        case "all write it":
            path.chmod(0o602)
        case "a link":
            path.rename(meeting.folder / "real.json")
            path.symlink_to("real.json")
        case _:
            os.chown(path, 65534, -1) if os.geteuid() == 0 else pytest.skip("only root gives files away")
    assert meeting.door() is None


def test_a_full_disk_does_not_keep_the_others_from_leaving(meeting: Meeting) -> None:
    for path in sorted(meeting.folder.parents[1].rglob("*"), reverse=True):
        path.rmdir()
    with pytest.raises(OSError, match=r"plan-0\.json"):
        meeting.publish(0, Plan(0, "n1", 29500))
    assert meeting.plan(0) is None
    leave = Plan(0, leave=True, code=75)
    meeting.publish(0, leave)
    assert meeting.plan(0) == leave


@pytest.mark.parametrize("data", DAMAGE)
def test_a_damaged_spec_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "job.json").write_bytes(data)
    with pytest.raises(InputError, match=r"job\.json: "):
        Place(tmp_path).spec()
