"""The reader's means: neighbours in one read, bounded descriptors, threads that end, a forked process."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from diffbase import system_error
from diffbase.cli import InputError
from shards import images
from shards.packing.packer import pack
from shards.prefetch import prefetch
from shards.read import ShardReader
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


def test_streams_keep_their_shards_open(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "OPEN_SHARDS", 1)
    before, opened = descriptors(), []
    monkeypatch.setattr(
        images, "open_plain", lambda path: opened.append(path) or system_error.open_plain(path)
    )
    with ShardReader(packed, order="streams", batch=4, tail="drop") as reader:
        for step in range(reader.order.length // 4):
            reader.read(range(4 * step, 4 * step + 4))
            assert descriptors() <= before + 4
        # A stream is in a shard at a time, and asks for the next one; a bound of streams lies amid a shard.
        assert len(set(opened)) == len(reader.split.shards)
        assert len(opened) < reader.order.length / 2


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
@pytest.mark.parametrize("on_error", ["raise", "replace"])
def test_a_fault_of_the_disk_is_no_corrupt_sample(
    tmp_path: Path, make_source, tiny, encoding: str, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    """One that passes changes nothing; one that stays is the system's, whatever becomes of bad samples."""
    out = tmp_path / "out"
    pack(make_source(tmp_path / "source", range(6)), out, tiny(val=0.0, image=encoding))
    _, _, place = row_of(out, 3)
    bad = place["image_offset"] + 10
    pread, preadv = os.pread, os.preadv

    left = 0

    def refuse(start: int, size: int) -> None:
        nonlocal left
        if start <= bad < start + size and left:
            left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def one(file: int, size: int, start: int) -> bytes:
        refuse(start, size)
        return pread(file, size, start)

    def several(file: int, parts: list[bytearray], start: int) -> int:
        refuse(start, sum(memoryview(part).nbytes for part in parts))
        return preadv(file, parts, start)

    monkeypatch.setattr(os, "pread", one)
    monkeypatch.setattr(os, "preadv", several)
    monkeypatch.setattr(system_error, "PAUSES", (0.0,) * 6)
    told: list[str] = []
    with ShardReader(out, order="sequential", on_error=on_error, report=told.append) as reader:
        whole = reader.read(range(6))
        left = 6
        again = reader.read(range(6))
        assert left == 0 and again.keys == whole.keys and (again.images == whole.images).all()
        left = 7
        with pytest.raises(OSError, match=r"\(EIO, 7 tries\): .*train-000000\.tar") as caught:
            reader.read(range(6))
        assert caught.value.errno == errno.EIO and not isinstance(caught.value, InputError)
    assert not told and not reader.replaced


def test_a_stale_descriptor_is_opened_anew(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a file server's restart: the old descriptor never reads again, the name does."""
    monkeypatch.setattr(system_error, "PAUSES", (0.0,) * 6)
    pread, opened = os.pread, os.open
    stale: set[int] = set()

    def read(file: int, size: int, start: int) -> bytes:
        if file in stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(file, size, start)

    def anew(*given: object, **how: object) -> int:
        descriptor = opened(*given, **how)  # type: ignore[arg-type]
        stale.discard(descriptor)
        return descriptor

    with ShardReader(packed, order="sequential", threads=2) as reader:
        wanted = reader.read(range(len(reader)))
        monkeypatch.setattr(os, "pread", read)
        monkeypatch.setattr(os, "open", anew)
        stale |= {file.descriptor for file in reader._images._files._files.values()}
        assert stale
        found = reader.read(range(len(reader)))
    np.testing.assert_array_equal(found.images, wanted.images)
    assert not reader.replaced


@pytest.mark.parametrize("encoding", ["png", "npy"])
def test_bytes_that_do_not_come_are_a_fault(
    tmp_path: Path, make_source, tiny, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard is as long as its index says; one that is shorter is truncated, and that is its own."""
    monkeypatch.setattr(system_error, "PAUSES", (0.0,) * 6)
    out = tmp_path / "out"
    pack(make_source(tmp_path / "source", range(6)), out, tiny(val=0.0, image=encoding))
    pread, cut = os.pread, row_of(out, 5)[2]["image_offset"] + 10

    def one(file: int, size: int, start: int) -> bytes:
        return pread(file, max(0, min(size, cut - start)), start)

    def several(file: int, parts: list[bytearray], start: int) -> int:
        done = 0
        for part in (memoryview(part).cast("B") for part in parts):
            some = one(file, len(part), start + done)
            part[: len(some)] = some
            done += len(some)
        return done

    monkeypatch.setattr(os, "pread", one)
    monkeypatch.setattr(os, "preadv", several)
    with ShardReader(out, order="sequential", on_error="replace") as reader:
        with pytest.raises(system_error.GaveUpError, match="EIO, 7 tries"):
            reader.read(range(6))
        os.truncate(out / "train-000000.tar", cut)
        assert reader.read(range(6)).keys[5] != reader.split.key(5) and list(reader.replaced) == [5]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("spare", [1, 3])
def test_few_descriptors_give_the_same_samples(
    tmp_path: Path, make_source, tiny, monkeypatch: pytest.MonkeyPatch, threads: int, spare: int
) -> None:
    """Really few, of a process that has others open: nobody waits where some can be closed."""
    out = tmp_path / "out"
    pack(make_source(tmp_path / "source", range(40)), out, tiny(val=0.0, shard_size=1))
    with ShardReader(out, seed=3) as reader:
        wanted = reader.read(range(80))
    waits: list[float] = []
    monkeypatch.setattr("diffbase.system_error.time.sleep", lambda pause: waits.append(pause))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ShardReader(out, seed=3, threads=threads, on_error="replace") as reader:
        top = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - numbers, not paths
        held = []
        while not held or held[-1] <= top:  # until every number below the last one is taken
            held.append(os.open(out, os.O_RDONLY))
        top = held[-1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1 + spare, hard))
        try:
            found = reader.read(range(80))
            kept = reader._images._files._limit
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for file in held:
                os.close(file)
    np.testing.assert_array_equal(found.images, wanted.images)
    assert found.keys == wanted.keys and not reader.replaced and kept <= spare
    assert not waits
