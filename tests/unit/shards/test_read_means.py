"""The reader's means: neighbours in one read, bounded descriptors, threads that end, a forked process."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from shards import images
from shards.packing.packer import pack
from shards.prefetch import prefetch
from shards.read import CorruptSampleError, ShardReader
from tests.support.tiny_set import descriptors, row_of


def test_a_thousand_epochs_leave_nothing(packed: Path) -> None:
    before, threads = descriptors(), threading.active_count()
    for life in range(20):
        with ShardReader(packed, seed=life, threads=2) as reader:
            n = len(reader)
            for batch in prefetch(reader.read, (range(e * n, e * n + n) for e in range(50)), depth=2):
                assert len(set(batch.keys)) == n
            assert descriptors() <= before + len(reader.split.shards)
        assert (descriptors(), threading.active_count()) == (before, threads)


def test_reader_that_is_forgotten(packed: Path) -> None:
    gc.collect()  # what other tests forgot
    before, threads = descriptors(), threading.active_count()
    reader = ShardReader(packed, threads=3)
    batches = prefetch(reader.read, ([p, p + 1, p + 2] for p in itertools.count()))
    next(batches)
    del batches, reader  # as a consumer that dies leaves them
    gc.collect()
    assert (descriptors(), threading.active_count()) == (before, threads)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_reader_in_a_forked_process(packed: Path) -> None:
    with ShardReader(packed, threads=2) as reader:
        expected = reader.read(range(30)).keys
        child = os.fork()
        if not child:
            os._exit(0 if reader.read(range(30)).keys == expected else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_neighbours_are_one_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *given: reads.append(given) or pread(*given))
    with ShardReader(packed, order="sequential") as reader:
        expected = reader.read(range(len(reader)))
        assert len(reads) == len(reader.split.shards)
        reads.clear()
        monkeypatch.setattr(images, "RUN_CAP", 100)  # large images: a read each
        found = reader.read(range(len(reader)))
        assert len(reads) == len(reader)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_descriptors_are_bounded_and_closed(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "OPEN_SHARDS", 2)
    before = descriptors()
    reader = ShardReader(packed)
    assert descriptors() == before  # opened when first needed
    for epoch in range(20):
        reader.read(range(epoch * len(reader), (epoch + 1) * len(reader)))
        assert descriptors() <= before + 2
    reader.close()
    reader.close()
    assert descriptors() == before
    with pytest.raises(ValueError, match="closed"):
        reader.read([0])


def test_many_threads(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "OPEN_SHARDS", 1)
    with ShardReader(packed) as reader:
        expected = reader.read(range(60)).keys
        found: list[list[str]] = []
        threads = [
            threading.Thread(target=lambda: found.append(reader.read(range(60)).keys)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected] * 4


@pytest.mark.parametrize("encoding", ["png", "npy"])
def test_bad_sector_costs_only_its_sample(
    tmp_path: Path, make_source, tiny, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though neighbours are read together."""
    out = tmp_path / "out"
    pack(make_source(tmp_path / "source", range(6)), out, tiny(val=0.0, image=encoding))
    _, key, place = row_of(out, 3)
    bad = place["image_offset"] + 10
    pread, preadv = os.pread, os.preadv

    def refuse(start: int, size: int) -> None:
        if start <= bad < start + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def one(file: int, size: int, start: int) -> bytes:
        refuse(start, size)
        return pread(file, size, start)

    def several(file: int, parts: list[bytearray], start: int) -> int:
        refuse(start, sum(memoryview(part).nbytes for part in parts))
        return preadv(file, parts, start)

    monkeypatch.setattr(os, "pread", one)
    monkeypatch.setattr(os, "preadv", several)
    with (
        ShardReader(out, order="sequential") as reader,
        pytest.raises(CorruptSampleError, match=rf"{key}: cannot be read \(Input/output error\)"),
    ):
        reader.read(range(6))
    told: list[str] = []
    with ShardReader(out, order="sequential", on_error="replace", report=told.append) as reader:
        keys = reader.read(range(6)).keys
    assert (keys[3], len(set(keys)), len(told)) == (keys[4], 5, 1)
