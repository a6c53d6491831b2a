"""Atomic writes: the old file or the new one, and nothing beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from diffbase.files import renamed, write_atomic


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
