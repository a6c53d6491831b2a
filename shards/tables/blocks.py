"""A sample table behind an address: its rows come in blocks, each when one of its rows is first needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from diffbase.system_error import patiently
from shards.header import Table
from shards.tables.rows import npy_head


class Far(Protocol):
    """What gets parts of the tables of a folder that is elsewhere."""

    def head(self, table: Table) -> bytes | None:
        """How a table begins, its npy header and more; None where it is here, whole."""
        ...

    def open(self, table: Table, part: Part) -> int:
        """A descriptor of a file that holds the part, fetched if it is not here. Errors as ``Cache.open``."""
        ...

    def fetch(self, table: Table, parts: Sequence[Part]) -> None:
        """Have the parts here that are not: side by side. What fails is told by ``open``."""
        ...

    def drop_damaged(self, table: Table, part: Part) -> bool:
        """Whether the copy of a part was damaged; it is gone then, and fetched when next opened."""
        ...


class Part:
    """Block ``number`` of a table: ``size`` bytes from ``start`` on, and their SHA-256."""

    def __init__(self, number: int, start: int, size: int, sha256: str) -> None:
        self.number, self.start, self.size, self.sha256 = number, start, size, sha256


class Blocks:
    """The ``count`` rows of the table ``entry``, in blocks of ``block`` rows; as ``Records`` for its user.

    ``digest`` gives a block's SHA-256. Of a block that is here only what is asked for is read, and it is not
    checked. InputError where ``head`` is not that of ``what``, with records of a type that ``fits``.
    """

    def __init__(
        self,
        folder: Path,
        entry: Table,
        count: int,
        what: str,
        fits: Callable[[np.dtype[np.void]], bool],
        far: Far,
        head: bytes,
        block: int,
        digest: Callable[[int], bytes],
    ) -> None:
        self.path, self.count = folder / entry.name, count
        self._entry, self._far, self._block, self._digest = entry, far, block, digest
        self.dtype, self._start = npy_head(head, self.path, entry.bytes, count, what, fits)

    def read(self, first: int, count: int) -> NDArray[np.void]:
        """``count`` rows of one block from the number ``first`` on, all of which are there: [count]."""
        number, begin = divmod(first, self._block)
        assert begin + count <= self._block
        size = self.dtype.itemsize
        data = patiently(lambda: self._bytes(self._part(number), begin * size, count * size), self.path)
        return np.frombuffer(data, self.dtype)

    def fetch(self, numbers: Sequence[int]) -> None:
        """See ``Far.fetch``, of the blocks ``numbers``."""
        self._far.fetch(self._entry, [self._part(number) for number in numbers])

    def drop_damaged(self, number: int) -> bool:
        """See ``Far.drop_damaged``."""
        return self._far.drop_damaged(self._entry, self._part(number))

    def _part(self, number: int) -> Part:
        first, size = number * self._block, self.dtype.itemsize
        rows = min(self._block, self.count - first)
        return Part(number, self._start + first * size, rows * size, self._digest(number).hex())

    def _bytes(self, part: Part, start: int, size: int) -> bytes:
        descriptor = self._far.open(self._entry, part)
        try:
            data = b""
            while len(data) < size:  # a read may give less than it was asked for
                more = os.pread(descriptor, size - len(data), start + len(data))
                if not more:
                    if os.fstat(descriptor).st_size < part.size:
                        raise InputError(f"{self.path}: its copy in the cache was cut while it was read")
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                data += more
            return data
        finally:
            os.close(descriptor)
