"""Open shards, bounded in number, shared by threads: none is closed while another thread reads from it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from diffbase.system_error import NO_DESCRIPTORS

PATIENCE = 5.0
"""Seconds that a thread without a descriptor waits for another one's read to end."""


@dataclass
class _Open:
    descriptor: int
    users: int


class Descriptors:
    """Descriptors by shard number, opened by ``open_shard`` when first asked for, ``limit`` of them kept.

    More than ``limit`` are open only while more than ``limit`` are in use at one moment. Where the process
    may not open as many, as many are kept as it could.
    """

    def __init__(self, open_shard: Callable[[int], int], limit: int) -> None:
        self._open_shard = open_shard
        self._limit = limit
        self._files: OrderedDict[int, _Open] = OrderedDict()  # the oldest use first
        self._forgotten: dict[int, _Open] = {}  # by descriptor, until their uses end
        self._opening = 0  # by threads, at this moment
        self._closed = False
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)  # a use has ended

    def acquire(self, shard: int) -> int:
        """The shard's descriptor, good until ``release``. Errors are those of ``open_shard``.

        Raises ValueError after ``close``.
        """
        with self._lock:
            found = self._find(shard)
        if found is not None:
            return found
        # Opened outside the lock: it may be a download, and other threads need not wait for it.
        descriptor = self._opened(shard)
        with self._freed:
            self._opening -= 1
            try:
                found = self._find(shard)
            except ValueError:
                os.close(descriptor)
                raise
            if found is not None:  # another thread was first
                os.close(descriptor)
                self._freed.notify()
                return found
            self._files[shard] = _Open(descriptor, 1)
            self._shrink(self._limit)
        return descriptor

    def release(self, shard: int, descriptor: int) -> None:
        """The end of one use of what ``acquire`` gave."""
        with self._lock:
            found = self._files.get(shard)
            if found is not None and found.descriptor == descriptor:
                found.users -= 1
                self._shrink(0 if self._closed else self._limit)
                self._freed.notify()
                return
            old = self._forgotten[descriptor]
            old.users -= 1
            if not old.users:
                os.close(self._forgotten.pop(descriptor).descriptor)
                self._freed.notify()

    def forget(self, shard: int) -> None:
        """Open the shard anew when it is asked for next."""
        with self._lock:
            found = self._files.pop(shard, None)
            if found is not None and found.users:
                self._forgotten[found.descriptor] = found
            elif found is not None:
                os.close(found.descriptor)

    def drop_idle(self) -> int:
        """Close every descriptor that nobody reads from; how many those were."""
        with self._lock:
            before = len(self._files)
            self._shrink(0)
            return before - len(self._files)

    def close(self) -> None:
        """Close all; those in use, when their use ends. Nothing can be acquired afterwards."""
        with self._lock:
            self._closed = True
            self._shrink(0)

    def _opened(self, shard: int) -> int:
        """A new descriptor of the shard, counted as being opened.

        Where the process has none left, those that nobody reads from go.
        """
        with self._lock:
            self._opening += 1
        while True:
            try:
                return self._open_shard(shard)
            except BaseException as error:
                with self._freed:
                    self._opening -= 1
                    none_left = isinstance(error, OSError) and error.errno in NO_DESCRIPTORS
                    if not (none_left and self._spare()):
                        raise
                    self._opening += 1  # before another thread looks, which is to wait for this one

    def _spare(self) -> bool:
        """Whether there may be a descriptor now; called with the lock.

        Half of those that nobody reads from are closed, and no more than the others kept from now on. Where
        all are in use, the end of one is waited for.
        """
        before = len(self._files)
        self._shrink(before // 2)
        if len(self._files) < before:
            self._limit = max(1, min(self._limit, len(self._files)))
            return True
        return bool(self._files or self._forgotten or self._opening) and self._freed.wait(PATIENCE)

    def _find(self, shard: int) -> int | None:
        if self._closed:
            raise ValueError("the reader is closed")
        if shard not in self._files:
            return None
        self._files.move_to_end(shard)
        self._files[shard].users += 1
        return self._files[shard].descriptor

    def _shrink(self, limit: int) -> None:
        if len(self._files) <= limit:
            return
        for shard in [shard for shard, file in self._files.items() if not file.users]:
            if len(self._files) <= limit:
                return
            os.close(self._files.pop(shard).descriptor)
