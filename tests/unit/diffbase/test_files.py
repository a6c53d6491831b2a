"""Atomic writes: the old file or the new one, and nothing beside it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import finite
from diffbase.files import check_writable, renamed, write_atomic, write_json
from diffbase.formats import json_file, jsonl

TREES = st.recursive(
    st.floats() | st.integers(-(2**60), 2**60) | st.none() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_write_atomic(tmp_path: Path) -> None:
    for data in (b"one", b"two"):
        write_atomic(tmp_path / "a", data)
        assert contents(tmp_path) == {"a": data}


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write_atomic(tmp_path / "a", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "a", b"new")
    assert contents(tmp_path) == {"a": b"old"}


def test_a_failed_write_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path / "a", b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))


def test_renamed_shows_nothing_before_the_end(tmp_path: Path) -> None:
    with renamed(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == tmp_path and not (tmp_path / "a").exists()
        temporary.write_bytes(b"whole")
    assert contents(tmp_path) == {"a": b"whole"}
    with pytest.raises(KeyboardInterrupt), renamed(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"a": b"whole"}


def test_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round a power cut could leave the new name on an empty file."""
    steps = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        steps.append("sync " + ("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"))  # noqa: PTH112
        fsync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_atomic(tmp_path / "a", b"data")
    assert steps == ["sync file", "rename", "sync folder"]


@given(TREES)
def test_what_is_not_finite_is_null_in_every_json(
    tmp_path_factory: pytest.TempPathFactory, tree: object
) -> None:
    folder = tmp_path_factory.mktemp("json")
    write_json(folder / "tree.json", tree)
    assert json_file.read(folder / "tree.json") == finite(tree)  # which takes standard JSON alone
    jsonl.append(folder / "lines.jsonl", {"figure": tree})
    assert json_file.read(folder / "lines.jsonl") == {"figure": finite(tree)}
    (folder / "lines.jsonl").write_text(jsonl.text([{"figure": tree}]))
    assert json_file.read(folder / "lines.jsonl") == {"figure": finite(tree)}


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that everybody reaches and nobody but root writes into."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o555)
        yield path
        path.chmod(0o700)


def as_nobody(folder: Path) -> int:
    """The error number of ``check_writable`` for a user who owns nothing; 0: none."""
    if not (child := os.fork()):
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            check_writable(folder)
        except OSError as error:
            os._exit(error.errno or 255)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_folder_that_takes_no_files_is_told(closed: Path) -> None:
    assert as_nobody(closed) == as_nobody(closed / "to" / "be" / "made") == errno.EACCES
    closed.chmod(0o777)
    assert as_nobody(closed) == as_nobody(closed / "to" / "be" / "made") == 0
    assert not contents(closed)


def test_a_file_in_a_folders_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError) as error:
            check_writable(folder)
        assert error.value.filename == str(folder)
