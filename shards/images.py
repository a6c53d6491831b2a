"""The images of a split by sample number: shards are opened, neighbours read in one go, checked and decoded.

Which sample is asked for, and what becomes of a bad one, is ``shards.read``'s.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffbase.system_error import is_passing, open_plain, patiently
from shards.codec.decode import BadSample, npy_head
from shards.codec.fast_decode import decoder, preparer
from shards.codec.inflate import crc32
from shards.remote.ahead import Ahead
from shards.remote.cache import RemoteShards
from shards.remote.descriptors import Descriptors
from shards.table import Index, Split

OPEN_SHARDS = 128  # descriptors kept; the usual limit of a process is 1,024
OPEN_REMOTE = 32  # of cached shards: two windows of the order ``shards``; the cache cannot drop an open one
GAP = 4096  # bytes between two members that are read along rather than skipped: less than a seek costs
LOOKS = 8  # at a copy in the cache that was damaged each time: a disk that damages all is no cache
RUN_CAP = 1 << 20  # bytes of one read
TRUNCATED = "the shard ends before it does (truncated)"
DAMAGED = "damaged (its checksum differs from the index's)"


Sample = tuple[int, int, int, int]
"""Row of the batch, start and end in the shard, checksum."""
Bad = dict[int, BadSample]
Out = NDArray[np.uint8] | list[bytes]
"""Where images go: pixels [B, H, W, 3] that they are decoded into, or files as they lie in the shard."""
Fill = Callable[[int, list[Sample], Any, Bad], None]


class SplitImages:
    """Reads images of one split with ``threads`` threads, from where the index tells or through ``remote``.

    Those in the tars of others are cropped and resized as they are read, by the packer's own functions.

    Safe to use from several threads, and in a process forked from the one that made it.
    """

    def __init__(
        self,
        index: Index,
        split: Split,
        remote: RemoteShards | None,
        threads: int,
        ahead: Ahead | None = None,
        streams: int = 1,
    ) -> None:
        """``streams``: how many shards are read at a time, by all ranks together."""
        done = index.header.preprocessing
        encoding = done.encoding
        self._folder, self._split, self._remote, self._count = str(index.folder), split, remote, threads
        self._ahead = ahead
        self._raw = encoding == "npy"
        self._decode = preparer(done.crop) if index.header.is_foreign else decoder(encoding)
        self._files = Descriptors(self._open, _kept(split, remote, streams))
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._looks: Counter[int] = Counter()  # at a shard's copy in the cache, held against its hash
        self._pool: tuple[int, ThreadPoolExecutor] | None = None  # and the process whose threads they are

    def fill(
        self, numbers: NDArray[np.int64], images: Out, table: NDArray[np.void] | None = None
    ) -> dict[int, BadSample]:
        """Fill ``images`` with those of the samples ``numbers`` [B]; by row, what is bad.

        ``table``: their rows [B] in the index, where the caller has them.
        """
        if table is None:
            table = self._split.take(numbers)
        rows = np.argsort(numbers, kind="stable")  # packed order: neighbours in a shard come together
        if self._count == 1 or len(rows) < 2:
            return self._fill_rows(numbers, table, rows, images)
        portions = np.array_split(rows, min(self._count, len(rows)))
        tasks = [self._threads().submit(self._fill_rows, numbers, table, p, images) for p in portions[1:]]
        bad: dict[int, BadSample] = {}
        try:
            bad.update(self._fill_rows(numbers, table, portions[0], images))  # this thread is one of them
        finally:
            for task in tasks:  # to the end, whatever happens: they write into the arrays
                task.exception()
        for task in tasks:
            bad.update(task.result())
        return bad

    def _fill_rows(
        self, numbers: NDArray[np.int64], whole: NDArray[np.void], rows: NDArray[np.int64], images: Out
    ) -> Bad:
        bad: Bad = {}
        if not len(rows):
            return bad
        mine, table = numbers[rows], whole[rows]
        shards, starts = self._split.shard_of(mine), table["image_offset"]
        ends = starts + table["image_bytes"]
        # One read for neighbours: the next image of the same shard begins soon after the end of this one.
        gaps = starts[1:] - ends[:-1]
        cuts = (shards[1:] != shards[:-1]) | (gaps < 0) | (gaps > GAP)
        firsts = [0, *(np.flatnonzero(cuts) + 1).tolist()]
        of_run = shards[firsts].tolist()
        runs = zip(of_run, firsts, [*firsts[1:], len(rows)], strict=True)
        samples = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), table["crc"].tolist(), strict=True))
        fill = self._fill_raw if self._raw and not isinstance(images, list) else self._fill_run
        of_shard = {
            shard: [samples[first:last] for _, first, last in some]
            for shard, some in groupby(runs, itemgetter(0))
        }
        ahead = self._fill_ahead(of_shard, images, fill)
        for shard, portions in of_shard.items():
            if shard in ahead:
                continue
            work = partial(self._fill_shard, shard, portions, images, fill)
            again = partial(self._files.forget, shard)  # opened by its name: ESTALE asks for it
            looks = self._looks[shard]
            try:
                found = patiently(work, self._path(shard), again)
                if found and self._opens_anew(shard, looks):
                    found = patiently(work, self._path(shard), again)
                    if found:  # bad where they come from
                        self._looks[shard] = LOOKS
                bad.update(found)
            except BadSample as error:
                bad.update((sample[0], error) for portion in portions for sample in portion)
        return bad

    def _fill_ahead(self, of_shard: dict[int, list[list[Sample]]], images: Out, fill: Fill) -> set[int]:
        """Fill ``images`` from ranges of shards that are on their way; of which of them all were good."""
        if self._ahead is None:
            return set()
        needed = {s: [(run[0][1], run[-1][2]) for run in portions] for s, portions in of_shard.items()}
        files, bad = self._ahead.sparse(needed), set[int]()
        try:
            for shard, descriptor in files.items():
                found: Bad = {}
                for portion in of_shard[shard]:
                    fill(descriptor, portion, images, found)
                if found:  # the whole shard will tell
                    bad.add(shard)
        finally:
            for descriptor in files.values():
                os.close(descriptor)
        return files.keys() - bad

    def _fill_shard(self, shard: int, portions: list[list[Sample]], images: Out, fill: Fill) -> Bad:
        """Fill ``images`` with samples of one shard; by row, what is bad.

        BadSample where the shard is not there; OSError of the system, after which all can be tried again.
        """
        bad: Bad = {}
        descriptor = self._files.acquire(shard)
        try:
            for portion in portions:
                fill(descriptor, portion, images, bad)
        finally:
            self._files.release(shard, descriptor)
        return bad

    def _opens_anew(self, shard: int, looks: int) -> bool:
        """Whether bad samples of a shard may be its copy's in the cache, and it is to be read again.

        The copy is held against its hash, and dropped if it is damaged. It may also have been, by another
        process, or by another thread since the caller began, when there had been so many ``looks``.
        """
        if self._remote is None or looks >= LOOKS:
            return False
        with self._looking:
            if self._looks[shard] == looks:
                self._remote.drop_damaged(self._split.shards[shard])
                self._files.forget(shard)
                self._looks[shard] += 1
        return True

    def _path(self, shard: int) -> str:
        return f"{self._folder}/{self._split.shards[shard].path}"

    def _fill_run(
        self,
        descriptor: int,
        samples: list[Sample],
        images: Out,
        bad: Bad,
    ) -> None:
        """Fill ``images`` with neighbours in a shard. Tells in ``bad`` which are damaged."""
        start, end = samples[0][1], samples[-1][2]
        if end - start > RUN_CAP and len(samples) > 1:
            half = len(samples) // 2
            self._fill_run(descriptor, samples[:half], images, bad)
            self._fill_run(descriptor, samples[half:], images, bad)
            return
        run = os.pread(descriptor, end - start, start)
        if len(run) != end - start:
            run = _rest(descriptor, run, start, end)
        checksum = crc32()
        for row, at, end, crc in samples:
            image = run[at - start : end - start]
            try:
                if len(image) != end - at:
                    raise BadSample(TRUNCATED)
                if checksum(image) != crc:
                    raise BadSample(DAMAGED)
                if isinstance(images, list):
                    images[row] = image
                else:
                    self._decode(image, images[row])
            except BadSample as error:
                bad[row] = error

    def _fill_raw(
        self,
        descriptor: int,
        samples: list[Sample],
        images: NDArray[np.uint8],
        bad: Bad,
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
                whole = _rest(descriptor, b"", start, end)
                if len(whole) != end - start:
                    bad[row] = BadSample(TRUNCATED)
                    continue
                head[:] = whole[: len(head)]
                image[...] = np.frombuffer(whole, np.uint8, offset=len(head)).reshape(image.shape)
            if checksum(image, checksum(head)) != crc:
                bad[row] = BadSample(DAMAGED)
            elif head != expected:
                bad[row] = BadSample(f"not an npy array of uint8 {image.shape}")

    def advise(self, numbers: NDArray[np.int64]) -> None:
        """Tell the system which runs of the samples ``numbers``, in ascending order, will be read."""
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        shards = self._split.shard_of(numbers)
        cuts = np.flatnonzero((np.diff(numbers) > 1) | (np.diff(shards) > 0)) + 1
        runs = np.split(np.arange(len(numbers)), cuts)
        edges = self._split.take(numbers[[at for run in runs for at in (run[0], run[-1])]])
        for run, first, last in zip(runs, edges[::2], edges[1::2], strict=True):
            shard, start = int(shards[run[0]]), int(first["image_offset"])
            length = int(last["image_offset"]) + int(last["image_bytes"]) - start
            try:
                descriptor = self._files.acquire(shard)
            except (BadSample, OSError):  # reported when one of its samples is read
                continue
            try:
                if length > 0:  # else an index in another order than the shard's
                    with suppress(OSError):  # it is a hint
                        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
            finally:
                self._files.release(shard, descriptor)

    def _open(self, shard: int) -> int:
        if self._remote:
            return self._remote.open(self._split.shards[shard], self._files.drop_idle)
        try:
            return open_plain(self._path(shard))
        except OSError as error:
            if is_passing(error):
                raise
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


def _kept(split: Split, remote: RemoteShards | None, streams: int) -> int:
    """Descriptors kept: one a stream, for an eighth of the process's or a quarter of the cache at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = streams if soft == resource.RLIM_INFINITY else min(streams, soft // 8)
    if remote:
        size = max(1, split.largest)
        return max(OPEN_REMOTE, min(most, remote.cache.limit // (4 * size)))
    return max(OPEN_SHARDS, most)


def _rest(descriptor: int, run: bytes, start: int, end: int) -> bytes:
    """``run``, which a read gave of the bytes ``start`` to ``end``, with what comes after it.

    A read may give less than it was asked for. Less than all is returned at the shard's end alone; OSError
    where the file is long enough and its bytes do not come.
    """
    while len(run) < end - start and (more := os.pread(descriptor, end - start - len(run), start + len(run))):
        run += more
    if len(run) < end - start <= os.fstat(descriptor).st_size - start:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return run
