"""Errors of the system: which may pass, how long they are waited for, and what a command ends with."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase import cli, system_error
from diffbase.cli import InputError
from diffbase.exits import BAD_INPUT, RETRYABLE
from diffbase.formats import json_file, jsonl, yaml_file
from diffbase.system_error import (
    GaveUpError,
    is_there,
    lasting,
    named,
    names_in,
    patiently,
    read_bytes,
    sha256_of,
)
from tests.support.faults.kit import Faults, fail, short, why_not

MISTAKES = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC,
    errno.EDQUOT, errno.EFBIG, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EEXIST, errno.ENOTEMPTY,
)  # fmt: skip
KIT = pytest.mark.skipif(bool(why_not()), reason=f"LEFT OUT: {why_not()}; make system-test")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_error, "PAUSES", (0.0,) * 6)


@pytest.mark.parametrize("number", [*system_error.PASSING, *MISTAKES], ids=lambda n: errno.errorcode[n])
def test_what_a_command_ends_with(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise OSError(number, os.strerror(number), "/data/index.json")

    with pytest.raises(SystemExit) as left:
        cli.run(command)
    assert left.value.code == (RETRYABLE if number in system_error.PASSING else BAD_INPUT)
    assert capsys.readouterr().err == f"error: /data/index.json: {os.strerror(number)}\n"


@given(failures=st.integers(0, 10), number=st.sampled_from([*system_error.PASSING, *MISTAKES]))
def test_only_what_may_pass_is_tried_again(failures: int, number: int) -> None:
    calls = again = 0

    def work() -> int:
        nonlocal calls
        calls += 1
        if calls <= failures:
            raise OSError(number, os.strerror(number))
        return calls

    def count() -> None:
        nonlocal again
        again += 1

    if not failures or (failures <= 6 and number in system_error.PASSING):
        assert patiently(work, "/data/x", count) == failures + 1 == again + 1
        return
    with pytest.raises(OSError) as caught:
        patiently(work, "/data/x", count)
    error = caught.value
    assert error.errno == number and calls == (7 if number in system_error.PASSING else 1) == again + 1
    if number in system_error.PASSING:
        assert isinstance(error, GaveUpError) and error.filename == "/data/x"
        assert errno.errorcode[number] in str(error) and "7 tries" in str(error)
        with pytest.raises(GaveUpError):  # nobody waits a second time
            patiently(lambda: (_ for _ in ()).throw(error).__next__(), "/other", lambda: pytest.fail("again"))


def test_the_file_that_the_error_names_is_told() -> None:
    error = lasting(OSError(errno.EIO, "", "/data/train-samples.npy"), "/data/index.json")
    assert error.filename == "/data/train-samples.npy"
    with pytest.raises(OSError, match="/data/lock"), named("/data/lock"):
        raise OSError(errno.ENOLCK, "")


class Cut(io.BytesIO):
    """A file of 100 bytes of which half come."""

    def fileno(self) -> int:
        return 0


def test_fewer_bytes_than_the_file_has_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 100)
    found = path.stat()
    assert [len(read_bytes(path, *most)) for most in ((), (7,), (500,))] == [100, 7, 100]
    monkeypatch.setattr(system_error, "reading", lambda _: Cut(b"x" * 50))
    monkeypatch.setattr(os, "fstat", lambda _: found)
    for call in (read_bytes, sha256_of):
        with pytest.raises(GaveUpError, match=r"EIO, 7 tries"):
            call(path)
    assert read_bytes(path, 50) == b"x" * 50  # all that was asked for


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_plain_file_holds_nobody_up(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (read_bytes, sha256_of, json_file.read, lambda path: list(jsonl.read(path))):
        with pytest.raises((OSError, InputError), match=r"is no plain file|directory|no such file") as told:
            read(path)
        assert str(path) in str(told.value)


def test_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").touch()
    assert is_there(tmp_path / "x") and not is_there(tmp_path / "y") and not is_there(tmp_path / "x" / "y")
    assert names_in(tmp_path) == ["x"] and names_in(tmp_path / "y") == []

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "")

    # As Pythons from 3.14 do, which take it for "not there".
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(Path, "stat", failing)
    monkeypatch.setattr(os, "listdir", failing)
    with pytest.raises(GaveUpError, match="EIO"):
        is_there(tmp_path / "x")
    with pytest.raises(GaveUpError, match="EIO"):
        names_in(tmp_path)


READ = """
import sys
from pathlib import Path
from diffbase import cli
from diffbase.formats import json_file, jsonl, yaml_file
reader = {
    "x.json": json_file.read, "x.yaml": yaml_file.read, "x.jsonl": lambda path, _: next(jsonl.read(path))
}[Path(sys.argv[1]).name]
print(cli.run(lambda: reader(Path(sys.argv[1]), "not there")))
"""


@pytest.mark.slow
@KIT
@pytest.mark.parametrize("name", ["x.json", "x.yaml", "x.jsonl"])
@pytest.mark.parametrize("call", ["open", "read"])
def test_files_of_settings_and_records(tmp_path: Path, name: str, call: str) -> None:
    """A fault that passes changes nothing; one that stays ends with 75, the file and the number."""
    path = tmp_path / name
    path.write_text('{"a": 1}')
    rules = [fail(call, errno.ESTALE, name, times=2), short("read", name), fail(call, errno.EIO, name)]
    rules.append(fail("open", errno.EACCES, name))
    done = [
        subprocess.run(
            [sys.executable, "-c", READ, str(path)],
            env=os.environ | Faults(tmp_path).env(rule),
            capture_output=True,
            text=True,
        )
        for rule in rules
    ]
    assert [run.returncode for run in done] == [0, 0, RETRYABLE, BAD_INPUT]
    assert done[0].stdout == done[1].stdout == "{'a': 1}\n"
    assert done[2].stderr == f"error: {path}: Input/output error (EIO, 7 tries)\n"
    assert done[3].stderr == f"error: {path}: Permission denied\n"
    assert json_file.read(path) == yaml_file.read(path, "") == {"a": 1}
