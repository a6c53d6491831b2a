"""The rows of finished shards, in a temporary file until the index is written: a pack's memory does not grow
with its samples.

The file has no name, so that a kill leaves nothing; it lies in the folder that is packed into, where there is
room for what is packed.
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffbase.system_error import named
from shards.header import Shard
from shards.schema import Attribute
from shards.tables.rows import Row, tuples
from shards.tables.write import Stream, key_width, lacking, table_of, widest


class Piece(NamedTuple):
    """Rows of a shard in the file: the first one's number, how many; the longest key, what some lack."""

    first: int
    rows: int
    width: int
    lacking: frozenset[int]


Finished = tuple[Shard, Piece]


class Spill:
    """The file, in ``folder``; ``counts`` are the samples in it by variant of each attribute."""

    def __init__(self, folder: Path, schema: Sequence[Attribute]) -> None:
        self._schema, self._dtype, self._folder = schema, widest(schema), folder
        with named(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed when nobody uses it
        self._rows = 0
        self.counts: dict[str, Counter[int]] = {attribute.name: Counter() for attribute in schema}

    def add(self, rows: Sequence[Row] | NDArray[np.void]) -> Piece:
        """Keep the rows of a shard. OSError where the disk is full or fails."""
        table = table_of(rows, self._schema).astype(self._dtype, copy=False)
        with named(self._folder):
            self._file.seek(0, os.SEEK_END)
            self._file.write(table.tobytes())
        for column, attribute in enumerate(self._schema):
            variants, counts = np.unique(table["labels"][:, column], return_counts=True)
            self.counts[attribute.name].update(dict(zip(variants.tolist(), counts.tolist(), strict=True)))
        piece = Piece(self._rows, len(table), key_width(table), lacking(table))
        self._rows += len(table)
        return piece

    def read(self, first: int, count: int) -> NDArray[np.void]:
        """``count`` rows from the number ``first`` on, of the widest type."""
        with named(self._folder):
            self._file.seek(first * self._dtype.itemsize)
            return np.frombuffer(self._file.read(count * self._dtype.itemsize), self._dtype)

    def stream(self, shards: Sequence[Finished]) -> Stream:
        """The rows of a split's shards, in this order, for its table."""
        pieces = [piece for _, piece in shards]
        return Stream(
            sum(piece.rows for piece in pieces),
            max((piece.width for piece in pieces), default=1),
            frozenset[int]().union(*(piece.lacking for piece in pieces)),
            lambda: (self.read(piece.first, piece.rows) for piece in pieces),
        )

    def close(self) -> None:
        """Give the disk its room back."""
        self._file.close()


class Samples:
    """The samples of shards, in this order: each one's shard and row, read when it is asked for."""

    def __init__(self, spill: Spill, shards: Sequence[Finished]) -> None:
        self._spill, self._shards = spill, shards
        self._ends = list(accumulate(piece.rows for _, piece in shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, at: int, /) -> tuple[Shard, Row]:
        number = bisect_right(self._ends, at)
        shard, piece = self._shards[number]
        row = piece.first + piece.rows - (self._ends[number] - at)
        return shard, tuples(self._spill.read(row, 1))[0]

    def __iter__(self) -> Iterator[tuple[Shard, Row]]:
        for shard, piece in self._shards:
            for row in tuples(self._spill.read(piece.first, piece.rows)):
                yield shard, row
