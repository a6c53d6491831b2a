"""The images of a split by sample number: shards are opened, neighbours read in one go, checked and decoded.

Which sample is asked for, and what becomes of a bad one, is ``shards.read``'s.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from shards.codec.decode import BadSample, npy_head
from shards.codec.fast_decode import decoder
from shards.codec.inflate import crc32
from shards.remote.cache import RemoteFolder
from shards.remote.descriptors import Descriptors
from shards.table import Index, Split

OPEN_SHARDS = 128  # descriptors kept; the usual limit of a process is 1,024
OPEN_REMOTE = 32  # of cached shards: two windows of the order ``shards``; the cache cannot drop an open one
GAP = 4096  # bytes between two members that are read along rather than skipped: less than a seek costs
RUN_CAP = 1 << 20  # bytes of one read
TRUNCATED = "the shard ends before it does (truncated)"
DAMAGED = "damaged (its checksum differs from the index's)"


class SplitImages:
    """Reads images of one split with ``threads`` threads, from the index's folder or through ``remote``.

    Safe to use from several threads, and in a process forked from the one that made it.
    """

    def __init__(self, index: Index, split: Split, remote: RemoteFolder | None, threads: int) -> None:
        encoding = index.header.preprocessing.encoding
        self._folder, self._split, self._remote, self._count = index.folder, split, remote, threads
        self._raw, self._decode = encoding == "npy", decoder(encoding)
        self._files = Descriptors(self._open, OPEN_REMOTE if remote else OPEN_SHARDS)
        self._lock = threading.Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None  # and the process whose threads they are

    def fill(self, numbers: NDArray[np.int64], images: NDArray[np.uint8]) -> dict[int, BadSample]:
        """Fill ``images`` [B, H, W, 3] with those of the samples ``numbers`` [B]; by row, what is bad."""
        rows = np.argsort(numbers, kind="stable")  # packed order: neighbours in a shard come together
        if self._count == 1 or len(rows) < 2:
            return self._fill_rows(numbers, rows, images)
        portions = np.array_split(rows, min(self._count, len(rows)))
        tasks = [self._threads().submit(self._fill_rows, numbers, p, images) for p in portions[1:]]
        bad: dict[int, BadSample] = {}
        try:
            bad.update(self._fill_rows(numbers, portions[0], images))  # this thread is one of them
        finally:
            for task in tasks:  # to the end, whatever happens: they write into the arrays
                task.exception()
        for task in tasks:
            bad.update(task.result())
        return bad

    def _fill_rows(
        self, numbers: NDArray[np.int64], rows: NDArray[np.int64], images: NDArray[np.uint8]
    ) -> dict[int, BadSample]:
        bad: dict[int, BadSample] = {}
        if not len(rows):
            return bad
        mine = numbers[rows]
        table = self._split.samples[mine]
        shards, starts = self._split.shard_of(mine), table["image_offset"]
        ends = starts + table["image_bytes"]
        # One read for neighbours: the next image of the same shard begins soon after the end of this one.
        gaps = starts[1:] - ends[:-1]
        cuts = (shards[1:] != shards[:-1]) | (gaps < 0) | (gaps > GAP)
        firsts = [0, *(np.flatnonzero(cuts) + 1).tolist()]
        of_run = shards[firsts].tolist()
        runs = zip(of_run, firsts, [*firsts[1:], len(rows)], strict=True)
        samples = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), table["crc"].tolist(), strict=True))
        fill = self._fill_raw if self._raw else self._fill_run
        for shard, some in groupby(runs, itemgetter(0)):
            try:
                descriptor = self._files.acquire(shard)
            except BadSample as error:
                bad.update((sample[0], error) for _, first, last in some for sample in samples[first:last])
                continue
            try:
                for _, first, last in some:
                    try:
                        fill(descriptor, samples[first:last], images, bad)
                    except OSError:
                        for sample in samples[first:last]:  # one by one, to know which of them
                            try:
                                fill(descriptor, [sample], images, bad)
                            except OSError as error:
                                bad[sample[0]] = BadSample(f"cannot be read ({error.strerror})")
            finally:
                self._files.release(shard)
        return bad

    def _fill_run(
        self,
        descriptor: int,
        samples: list[tuple[int, int, int, int]],
        images: NDArray[np.uint8],
        bad: dict[int, BadSample],
    ) -> None:
        """Fill ``images`` with neighbours in a shard, each given as row, start, end and checksum.

        Tells in ``bad`` which are damaged; OSError where the disk cannot read some of them.
        """
        start, end = samples[0][1], samples[-1][2]
        if end - start > RUN_CAP and len(samples) > 1:
            half = len(samples) // 2
            self._fill_run(descriptor, samples[:half], images, bad)
            self._fill_run(descriptor, samples[half:], images, bad)
            return
        run = os.pread(descriptor, end - start, start)  # less at the shard's end
        checksum = crc32()
        for row, at, end, crc in samples:
            image = run[at - start : end - start]
            try:
                if len(image) != end - at:
                    raise BadSample(TRUNCATED)
                if checksum(image) != crc:
                    raise BadSample(DAMAGED)
                self._decode(image, images[row])
            except BadSample as error:
                bad[row] = error

    def _fill_raw(
        self,
        descriptor: int,
        samples: list[tuple[int, int, int, int]],
        images: NDArray[np.uint8],
        bad: dict[int, BadSample],
    ) -> None:
        """``_fill_run`` for raw pixels: they are read where they belong, without a copy."""
        expected = npy_head(*images.shape[1:])
        head, checksum = bytearray(len(expected)), crc32()
        for row, start, end, crc in samples:
            image = images[row]
            if end - start != len(head) + image.size:
                bad[row] = BadSample(f"not an npy array of uint8 {image.shape}")
                continue
            if os.preadv(descriptor, [head, image], start) != end - start:
                bad[row] = BadSample(TRUNCATED)
            elif checksum(image, checksum(head)) != crc:
                bad[row] = BadSample(DAMAGED)
            elif head != expected:
                bad[row] = BadSample(f"not an npy array of uint8 {image.shape}")

    def advise(self, numbers: NDArray[np.int64]) -> None:
        """Tell the system which runs of the samples ``numbers``, in ascending order, will be read."""
        shards = self._split.shard_of(numbers)
        cuts = np.flatnonzero((np.diff(numbers) > 1) | (np.diff(shards) > 0)) + 1
        for run in np.split(np.arange(len(numbers)), cuts):
            first, last = self._split.samples[numbers[run[[0, -1]]]]
            shard, start = int(shards[run[0]]), int(first["image_offset"])
            length = int(last["image_offset"]) + int(last["image_bytes"]) - start
            try:
                descriptor = self._files.acquire(shard)
            except BadSample:  # reported when one of its samples is read
                continue
            try:
                if length > 0:  # else an index in another order than the shard's
                    os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
            finally:
                self._files.release(shard)

    def _open(self, shard: int) -> int:
        if self._remote:
            return self._remote.open(self._split.shards[shard], self._files.drop_idle)
        path = self._folder / self._split.shards[shard].name
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadSample(f"cannot open the shard ({error.strerror})") from error

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            # Threads do not live on in a forked process.
            if self._pool is None or self._pool[0] != os.getpid():
                self._pool = os.getpid(), ThreadPoolExecutor(self._count - 1, "shards-read")
            return self._pool[1]

    def close(self) -> None:
        """Close the shards and end the threads."""
        pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown()
        self._files.close()
