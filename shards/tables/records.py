"""An npy file of records of one size, read by parts with pread.

It is not mapped. The system keeps its pages once for all processes of a node either way; but a mapping counts
every page that was ever touched as the process's own, and a file that is cut, or a file server that fails, is
then a signal (SIGBUS) where a read gives an error that can be told, or tried again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from diffbase.system_error import NO_FILE, open_plain, patiently
from shards.header import Table
from shards.tables.rows import HEAD, npy_head

CHUNK = 1 << 20  # bytes of a read that goes through the whole file


class Records:
    """The ``count`` records of the file ``entry`` in ``folder``, which stays open as long as this is used.

    Safe to use from several threads, and in a process forked from the one that made it. InputError unless the
    file has the size that ``entry`` tells and is ``what``, with records of a type that ``fits``; OSError of
    the system after some tries.
    """

    def __init__(
        self, folder: Path, entry: Table, count: int, what: str, fits: Callable[[np.dtype[np.void]], bool]
    ) -> None:
        self.path, self.count = folder / entry.name, count
        self._sha256 = entry.sha256
        try:
            self._descriptor = patiently(lambda: open_plain(self.path), self.path)
        except NO_FILE:
            raise InputError(f"{self.path}: missing; index.json names it") from None
        weakref.finalize(self, os.close, self._descriptor)
        there = os.fstat(self._descriptor)
        self._size, self._time = there.st_size, there.st_mtime_ns
        if self._size != entry.bytes:
            raise InputError(f"{self.path}: {self._size} bytes; index.json says {entry.bytes}")
        head = patiently(lambda: self._bytes(0, min(HEAD, self._size)), self.path, self._open_anew)
        self.dtype, self._start = npy_head(head, self.path, self._size, count, what, fits)

    def read(self, first: int, count: int) -> NDArray[np.void]:
        """``count`` records from the number ``first`` on, all of which are there: [count].

        InputError where the file is another one than was opened; OSError of the system after some tries.
        """
        size = self.dtype.itemsize
        at = self._start + first * size
        data = patiently(lambda: self._bytes(at, count * size), self.path, self._open_anew)
        return np.frombuffer(data, self.dtype)

    def checked(self) -> Iterator[tuple[int, NDArray[np.void]]]:
        """All records in portions, each with its first number. InputError at the end for a damaged file."""
        digest = hashlib.sha256(patiently(lambda: self._bytes(0, self._start), self.path, self._open_anew))
        step = max(1, CHUNK // self.dtype.itemsize)
        for first in range(0, self.count, step):
            some = self.read(first, min(step, self.count - first))
            digest.update(some.data)
            yield first, some
        if digest.hexdigest() != self._sha256:
            raise InputError(f"{self.path}: damaged (its SHA-256 differs from index.json's)")

    def _bytes(self, start: int, size: int) -> bytes:
        there = os.fstat(self._descriptor)
        # Parts that were checked once are not checked again: they are those of the file as it was then.
        if (there.st_size, there.st_mtime_ns) != (self._size, self._time):
            raise InputError(f"{self.path}: has changed since it was opened")
        data = os.pread(self._descriptor, size, start)
        while len(data) < size:  # a read may give less than it was asked for
            more = os.pread(self._descriptor, size - len(data), start + len(data))
            if not more:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            data += more
        return data

    def _open_anew(self) -> None:
        """After a fault: a file server that was restarted knows the old descriptor no more (ESTALE)."""
        try:
            new = open_plain(self.path)
        except OSError:  # the next try tells
            return
        os.dup2(new, self._descriptor, inheritable=False)  # at once: other threads may be reading
        os.close(new)
