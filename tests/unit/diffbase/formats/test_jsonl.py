"""JSON Lines: whole lines or none, whatever the disk or a kill does; damage costs its line alone."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase import ledger, system_error
from diffbase.cli import InputError
from diffbase.files import set_aside
from diffbase.formats import jsonl
from diffbase.locking import lock

DAMAGE = [
    b"\xff",
    b"[1]",
    b"{",
    b'{"a": ' * 3000,
    b"",
    b"null",
    b'"' + b"x" * (jsonl.LONGEST + 10) + b'"',
    b"\0",
]


@given(
    st.lists(st.one_of(st.integers(), st.sampled_from(DAMAGE)), max_size=8),
    st.binary(max_size=20).filter(lambda torn: b"}" not in torn),
)
def test_a_damaged_line_costs_no_other(
    tmp_path_factory: pytest.TempPathFactory, lines: list[int | bytes], torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "x.jsonl"
    whole = [line if isinstance(line, bytes) else json.dumps({"n": line}).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in whole) + b"{" + torn.replace(b"\n", b""))
    left_out: list[int] = []
    found = [entry["n"] for entry in jsonl.read(path, left_out)]
    assert found == [line for line in lines if isinstance(line, int)]
    assert left_out == [i for i, line in enumerate(lines, 1) if isinstance(line, bytes)]


@given(lines=st.lists(st.integers(0, 10**6), max_size=9), failing=st.sets(st.integers(0, 30)))
def test_a_disk_that_fails_for_a_moment_costs_no_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[int], failing: set[int]
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "x.jsonl"
    path.write_text(jsonl.text([{"n": line} for line in lines]))
    reads = iter(range(1000))

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            if next(reads) in failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(memoryview(buffer)[:7])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "reading", lambda path: io.BufferedReader(Failing(path)))
        patch.setattr(system_error, "PAUSES", (0.0,) * 40)
        assert [entry["n"] for entry in jsonl.read(path)] == lines


def test_a_line_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2')
    jsonl.append(path, {"n": 3})
    assert list(jsonl.read(path)) == [{"n": 1}, {"n": 3}]


def short(descriptor: int, data: bytes) -> int:
    """As the last bytes of a full disk: a part is taken, and no error is given."""
    return os.pwrite(descriptor, data[:7], os.fstat(descriptor).st_size)


def test_a_short_write_is_told_and_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    jsonl.append(path, {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(jsonl.os, "write", short)
        with pytest.raises(OSError, match="No space left") as found:
            jsonl.append(path, {"n": 2, "long": "x" * 100})
    assert found.value.errno == errno.ENOSPC and found.value.filename == str(path)
    assert path.read_bytes() == b'{"n": 1}\n'
    jsonl.append(path, {"n": 3})
    assert list(jsonl.read(path)) == [{"n": 1}, {"n": 3}]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_without_locks_loses_no_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    path = tmp_path / "x.jsonl"
    jsonl.append(path, {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(jsonl.os, "write", short)
        with pytest.raises(OSError, match="No space left"):
            jsonl.append(path, {"n": 2})
    jsonl.append(path, {"n": 3})
    assert list(jsonl.read(path)) == [{"n": 1}, {"n": 3}]


def test_a_lock_that_is_never_given_back_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "LOCK_SECONDS", 0.05)
    path = tmp_path / "x.jsonl"
    path.touch()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        jsonl.append(path, {"n": 1})
    assert list(jsonl.read(path)) == [{"n": 1}]


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"is a link, which is not written through: .*events\.jsonl"):
        ledger.record(tmp_path, "start")
    assert (tmp_path / "precious").read_text() == "mine"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="is no plain file"):
        jsonl.append(tmp_path / "fifo", {})


def test_lines_of_processes_do_not_mix(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from diffbase.formats import jsonl\n"
        "for n in range(100): jsonl.append(Path(sys.argv[1]), {'who': sys.argv[2], 'n': n, 'x': 'y' * 5000})"
    )
    path = tmp_path / "x.jsonl"
    processes = [subprocess.Popen([sys.executable, "-c", code, path, str(i)]) for i in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    left_out: list[int] = []
    found = [(entry["who"], entry["n"]) for entry in jsonl.read(path, left_out)]
    assert sorted(found) == sorted((str(i), n) for i in range(3) for n in range(100)) and not left_out


# --- the ledger's lines, the heartbeat, and the number of the attempt ---

WRONG: list[dict[str, Any]] = [
    {"time": None},
    {"time": "yesterday"},
    {"time": float("nan")},
    {"time": -1},
    {"event": 7},
    {"attempt": "0"},
    {"attempt": -1},
    {"attempt": True},
    {"step": [3]},
    {"step": -3},
    {"seconds": "2"},
    {"seconds": float("inf")},
    {"beat": "x"},
    {"event": "ended"},
    {"event": "ended", "code": "75"},
    {"event": "submitted"},
    {"event": "submitted", "job": "../5", "cluster": "c", "folder": "/x"},
    {"event": "submitted", "job": "5", "cluster": "c", "folder": "a\0b"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_an_event_of_wrong_types_is_left_out_and_counted(tmp_path: Path, wrong: dict[str, Any]) -> None:
    ledger.record(tmp_path, "start", step=1)
    jsonl.append(tmp_path / "events.jsonl", {"time": 1.0, "event": "saved", "attempt": 0, "step": 2} | wrong)
    ledger.record(tmp_path, "done", step=3)
    left_out: list[int] = []
    assert [e["event"] for e in ledger.events(tmp_path, left_out)] == ["start", "done"] and left_out == [2]


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b'{"time": 1}', b'{"time": NaN}', b"[" * 5000])
def test_a_damaged_heartbeat_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "heartbeat.json").write_bytes(data)
    assert ledger.heartbeat(tmp_path) is None
    ledger.beat(tmp_path, 3, 10, "train")
    assert (ledger.heartbeat(tmp_path) or {})["step"] == 3


@pytest.mark.parametrize("given_number", ["abc", "", "-1", "1.5", "²", "9" * 30])
def test_a_wrong_number_of_the_attempt_is_one_line(
    monkeypatch: pytest.MonkeyPatch, given_number: str
) -> None:
    monkeypatch.setenv(ledger.ATTEMPT, given_number)
    with pytest.raises(InputError, match=r"DIFFCORE_ATTEMPT: .* allowed are whole numbers from 0"):
        ledger.attempt()


def test_what_is_set_aside_stays_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in ("a", "b"):
        (tmp_path / "best.json").write_text(content)
        aside = set_aside(tmp_path / "best.json")
        assert aside.read_text() == content and aside.name.startswith("best.json.damaged-")
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "best.json").write_text("c")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="another person's"):
        set_aside(tmp_path / "best.json")
