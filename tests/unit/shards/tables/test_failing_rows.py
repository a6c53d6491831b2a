"""Disks and file servers that fail under an index of version 4: no row is wrong, and no data is blamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffbase import system_error
from diffbase.cli import InputError
from diffbase.system_error import GaveUpError
from shards.table import Index, Split
from tests.unit.shards.tables.test_listed import synthetic

FILES = ["train-samples.npy", "train-shards.npy", "train-blocks.npy"]
SOME = np.array([4999, 0, 2500, 2501, 1023, 1024])
Pread = Callable[[int, int, int], bytes]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_error, "PAUSES", (0.0,) * 6)


@pytest.fixture
def folder(always: None, tmp_path: Path) -> Path:
    synthetic(tmp_path / "a", 5000, 100)
    return tmp_path / "a"


def look(folder: Path) -> np.ndarray:
    """Opens the index, and reads rows and a shard's line."""
    split = Index.load(folder).split("train")
    rows = split.take(SOME)
    assert split.shards[7].name == "train-000007.tar"
    return rows


def is_of(descriptor: int, name: str) -> bool:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith(name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_read_that_fails_six_times_is_no_fault_and_seven_times_one_of_the_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    wanted, pread, left = look(folder), os.pread, 6

    def failing(file: int, size: int, start: int) -> bytes:
        nonlocal left
        if left and is_of(file, name):
            left -= 1
            raise OSError(number, os.strerror(number))
        return pread(file, size, start)

    monkeypatch.setattr(os, "pread", failing)
    np.testing.assert_array_equal(look(folder), wanted)
    assert left == 0
    left = 7
    with pytest.raises(GaveUpError, match=rf"\({errno.errorcode[number]}, 7 tries\): .*{name}") as caught:
        look(folder)
    assert caught.value.errno == number and not isinstance(caught.value, InputError)
    np.testing.assert_array_equal(look(folder), wanted)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_does_not_open_for_a_while(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wanted, opened, left = look(folder), os.open, 6

    def failing(path: object, *given: int, **how: int) -> int:
        nonlocal left
        if left and str(path).endswith(name):
            left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *given, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", failing)
    np.testing.assert_array_equal(look(folder), wanted)
    assert left == 0
    left = 7
    with pytest.raises(GaveUpError, match=rf"\(EIO, 7 tries\): .*{name}"):
        look(folder)


def test_reads_that_give_less_than_was_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, pread = look(folder), os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, start: pread(file, -(-size // 3), start))
    np.testing.assert_array_equal(look(folder), wanted)


@pytest.mark.parametrize("name", FILES)
def test_bytes_that_do_not_come_are_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The file is as long as index.json says, and a read ends before its end."""
    pread, end = os.pread, (folder / name).stat().st_size - 10

    def cut(file: int, size: int, start: int) -> bytes:
        return pread(file, max(0, min(size, end - start)) if is_of(file, name) else size, start)

    monkeypatch.setattr(os, "pread", cut)
    with pytest.raises(GaveUpError, match=rf"\(EIO, 7 tries\): .*{name}"):
        look(folder)


@pytest.mark.parametrize("again", [0, 4096], ids=["a block that was read", "another one"])
def test_a_stale_descriptor_is_opened_anew(folder: Path, monkeypatch: pytest.MonkeyPatch, again: int) -> None:
    """As after a file server's restart: the old descriptor never reads again, the name does."""
    split = Index.load(folder).split("train")
    wanted = Index.load(folder).split("train").take(np.array([again]))
    split.take(np.array([0]))
    split.table._kept.clear()  # type: ignore[attr-defined]
    pread, dup2, stale = os.pread, os.dup2, _descriptors(split)

    def failing(file: int, size: int, start: int) -> bytes:
        if file in stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(file, size, start)

    def anew(old: int, new: int, **how: bool) -> int:
        stale.discard(new)
        return dup2(old, new, **how)

    monkeypatch.setattr(os, "pread", failing)
    monkeypatch.setattr(os, "dup2", anew)
    before = len(stale)
    np.testing.assert_array_equal(split.take(np.array([again])), wanted)
    assert len(stale) < before


def _descriptors(split: Split) -> set[int]:
    table = split.table
    return {records._descriptor for records in (table._rows, table._hashes)}  # type: ignore[attr-defined]


def test_damage_is_named_though_the_disk_fails_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pread, left = folder / FILES[0], os.pread, 3
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    def failing(file: int, size: int, start: int) -> bytes:
        nonlocal left
        if left and is_of(file, path.name) and start:
            left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(file, size, start)

    monkeypatch.setattr(os, "pread", failing)
    with pytest.raises(InputError, match=r"train-samples\.npy: damaged \(rows 4096 to 4999\)"):
        look(folder)
    assert left == 0
