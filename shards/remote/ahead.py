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


class _Threads:
    """What one process has of its own: a forked one has no thread, and locks that it cannot trust."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0  # threads that fetch
        self.asking = 0  # batches whose ranges are on their way
        self.coming: set[int] = set()
        self.queue: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.requests = ThreadPoolExecutor(REQUESTS, "shards-ranges")  # begins its threads when needed


class Ahead:
    """The background of one reader of ``shards``: safe to use from several threads, and after a fork."""

    def __init__(self, remote: RemoteShards, shards: Sequence[Shard]) -> None:
        self._remote, self._shards = remote, shards
        self._by_process: dict[int, _Threads] = {}
        self._closed = False

    def _mine(self) -> _Threads:
        pid = os.getpid()
        found = self._by_process.get(pid)
        return found or self._by_process.setdefault(pid, _Threads())

    def want(self, shards: Iterable[int]) -> None:
        """Have these shards fetched, the first one first. What fails is reported when a sample is read."""
        mine = self._mine()
        with mine.lock:
            new = [shard for shard in shards if shard not in mine.coming and not self._is_there(shard)]
            mine.coming |= set(new)
            for shard in new:
                mine.queue.put(shard)
            for _ in range(min(DOWNLOADS, len(mine.coming)) - mine.running):
                mine.running += 1
                threading.Thread(target=self._fetch, args=(mine,), name="shards-fetch", daemon=True).start()

    def _is_there(self, shard: int) -> bool:
        return self._remote.is_there(self._shards[shard])

    def _fetch(self, mine: _Threads) -> None:
        while True:
            with mine.lock:
                if self._closed or not mine.coming:  # nothing is left: nobody waits for this thread to end
                    mine.running -= 1
                    return
            try:
                shard = mine.queue.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                # A batch waits for its ranges, and nobody yet for this shard.
                until = time.monotonic() + HOLD
                time.sleep(TURN)
                while mine.asking and time.monotonic() < until:
                    time.sleep(TURN)
                if not self._closed:
                    with suppress(InputError, OSError):
                        os.close(self._remote.open(self._shards[shard], lambda: 0))
            finally:
                with mine.lock:
                    mine.coming.discard(shard)

    def sparse(self, needed: Mapping[int, Sequence[Range]]) -> dict[int, int]:
        """Descriptors of files that have the bytes ``needed`` of their shards where these have them.

        Only of shards that are on their way and large, and that give ranges: of the others nothing. The
        caller closes them.
        """
        mine = self._mine()
        with mine.lock:
            here = {shard: ranges for shard, ranges in needed.items() if shard in mine.coming}
            here = {shard: ranges for shard, ranges in here.items() if self._is_worth(shard, ranges)}
            if not here or self._closed or not hasattr(os, "memfd_create"):  # macOS has none
                return {}
            mine.asking += 1
        files: dict[int, int] = {}
        tasks: list[tuple[int, Future[bool]]] = []
        bad: set[int] = set(here)
        try:
            for shard, ranges in here.items():
                files[shard] = os.memfd_create("shard", os.MFD_CLOEXEC)
                os.ftruncate(files[shard], self._shards[shard].bytes)
                place = self._remote.address(self._shards[shard])
                for start, end in joined(ranges):
                    tasks.append((shard, mine.requests.submit(_fill, place, files[shard], start, end)))
            bad = {shard for shard, task in tasks if not task.result()}
        finally:
            for _, task in tasks:  # to the end, whatever happens: they write into the files
                task.exception()
            for shard in bad & files.keys():
                os.close(files.pop(shard))
            with mine.lock:
                mine.asking -= 1
        return files

    def _is_worth(self, shard: int, ranges: Sequence[Range]) -> bool:
        size = self._shards[shard].bytes
        return size >= SMALL and SHARE * sum(end - start for start, end in ranges) < size

    def close(self) -> None:
        """End the threads; downloads that have begun are not waited for."""
        self._closed = True
        self._mine().requests.shutdown()


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
