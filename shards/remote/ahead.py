"""Shards that a reader will need: fetched in the background, and read in ranges until they are there.

The images that a batch needs of a shard that is on its way are asked for by their bytes alone, many at once
over connections that are kept: a first batch of 128 small images is some hundred kilobytes, not the shards
that they lie in. What ranges bring is held against the samples' checksums, as all that is read; where
anything about them fails, the whole shard, which has a SHA-256, is waited for instead.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from diffbase.cli import InputError
from shards.header import Shard
from shards.remote.cache import RemoteShards
from shards.remote.fetch import fetch_range
from shards.remote.http_client import BrokenError

DOWNLOADS = 4  # of whole shards at a time
REQUESTS = 32  # for ranges at a time: over a link with 50 ms of delay 128 of them take 0.2 s
SMALL = 4 << 20  # bytes of a shard that is fetched whole as soon as its ranges would be
SHARE = 4  # ranges are asked for if they are less than 1 / SHARE of their shard
TURN, HOLD = 0.02, 0.5  # seconds that a download leaves the link to ranges: to be asked for, and to come
GAP = 1 << 16  # bytes between two ranges that are fetched along: they cost less than a request

Range = tuple[int, int]
"""First byte and the one after the last."""


class Ahead:
    """The background of one reader of ``shards``: safe to use from several threads, and after a fork."""

    def __init__(self, remote: RemoteShards, shards: Sequence[Shard]) -> None:
        self._remote, self._shards = remote, shards
        self._lock = threading.Lock()
        self._pid, self._closed = 0, False
        self._asking = 0  # batches whose ranges are on their way

    def _start(self) -> None:
        """Begin anew in a forked process, where no thread lives on; called with the lock."""
        if self._pid != os.getpid():
            self._pid, self._threads = os.getpid(), 0
            self._asking = 0
            self._queue: queue.SimpleQueue[int] = queue.SimpleQueue()
            self._coming: set[int] = set()
            self._requests: ThreadPoolExecutor | None = None

    def want(self, shards: Iterable[int]) -> None:
        """Have these shards fetched, the first one first. What fails is reported when a sample is read."""
        with self._lock:
            self._start()
            new = [shard for shard in shards if shard not in self._coming and not self._is_there(shard)]
            self._coming |= set(new)
            for shard in new:
                self._queue.put(shard)
            for _ in range(min(DOWNLOADS, len(self._coming)) - self._threads):
                self._threads += 1
                args = (self._queue, self._coming)
                threading.Thread(target=self._fetch, args=args, name="shards-fetch", daemon=True).start()

    def _is_there(self, shard: int) -> bool:
        return self._remote.is_there(self._shards[shard])

    def _fetch(self, wanted: queue.SimpleQueue[int], coming: set[int]) -> None:
        while True:
            with self._lock:
                if self._closed or not coming:  # nothing is left: nobody waits for this thread to end
                    self._threads -= 1
                    return
            try:
                shard = wanted.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                # A batch waits for its ranges, and nobody yet for this shard.
                until = time.monotonic() + HOLD
                time.sleep(TURN)
                while self._asking and time.monotonic() < until:
                    time.sleep(TURN)
                if not self._closed:
                    with suppress(InputError, OSError):
                        os.close(self._remote.open(self._shards[shard], lambda: 0))
            finally:
                with self._lock:
                    coming.discard(shard)

    def sparse(self, needed: Mapping[int, Sequence[Range]]) -> dict[int, int]:
        """Descriptors of files that have the bytes ``needed`` of their shards where these have them.

        Only of shards that are on their way and large, and that give ranges: of the others nothing. The
        caller closes them.
        """
        if not hasattr(os, "memfd_create"):  # macOS
            return {}
        with self._lock:
            self._start()
            here = {shard: ranges for shard, ranges in needed.items() if shard in self._coming}
            self._asking += 1
        files: dict[int, int] = {}
        tasks: list[tuple[int, Future[bool]]] = []
        try:
            for shard, given in here.items():
                if not self._is_worth(shard, given):
                    continue
                ranges = joined(given)
                files[shard] = os.memfd_create("shard", os.MFD_CLOEXEC)
                os.ftruncate(files[shard], self._shards[shard].bytes)
                place = self._remote.address(self._shards[shard])
                pool = self._pool()
                tasks += [(shard, pool.submit(_fill, place, files[shard], *range_)) for range_ in ranges]
        finally:
            good = dict.fromkeys(files, True)
            for shard, task in tasks:  # to the end, whatever happens: they write into the files
                good[shard] &= task.exception() is None and task.result()
            for shard in [shard for shard in files if not good[shard]]:
                os.close(files.pop(shard))
            with self._lock:
                self._asking -= 1
        return files

    def _is_worth(self, shard: int, ranges: Sequence[Range]) -> bool:
        size = self._shards[shard].bytes
        return size >= SMALL and SHARE * sum(end - start for start, end in ranges) < size

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._requests is None:
                self._requests = ThreadPoolExecutor(REQUESTS, "shards-ranges")
            return self._requests

    def close(self) -> None:
        """End the threads; downloads that have begun are not waited for."""
        with self._lock:
            self._closed = True
            pool = self._requests if self._pid == os.getpid() else None
        if pool is not None:
            pool.shutdown()


def joined(ranges: Sequence[Range]) -> list[Range]:
    """The ranges in order, those with less than GAP bytes between them as one."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start - found[-1][1] < GAP:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def _fill(place: str, descriptor: int, start: int, end: int) -> bool:
    """Whether the bytes came that belong there."""
    try:
        data = fetch_range(place, start, end)
        if data is not None:
            os.pwrite(descriptor, data, start)  # into memory, which takes all of it
        return data is not None
    except (InputError, BrokenError, OSError):
        return False
