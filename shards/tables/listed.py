"""A split of version 4: what lists its shards, and its rows, which are checked as they are first read.

Opening reads the list and the blocks' hashes, and keeps where each shard begins, 8 bytes a shard. A block of
rows is read and held against its SHA-256 when a sample of it is first asked for, and its rows are checked
then. The blocks read last are kept; of others that were good once only what is needed is read again.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from diffbase.cli import InputError
from diffbase.explain import explain
from shards.header import FILE, PLACE_CAP, Header, Shard, SplitEntry
from shards.schema import NAME_CAP, SHARD_SIZE_CAP
from shards.tables.blocks import Blocks, Far
from shards.tables.records import CHUNK, Records
from shards.tables.rows import Allowed, check_rows, is_sample_dtype

BLOCK = 1024  # rows of a block
KEPT = 16 << 20  # bytes of the blocks that are kept
RECENT = 1024  # shards of which what the list says is kept
HASHES = np.dtype([("sha256", "u1", (32,))])


def shard_dtype(name: int, place: int) -> np.dtype[np.void]:
    """A shard's record: number of its first sample, bytes, SHA-256, name and place in UTF-8.

    ``name`` and ``place`` are the widths in bytes; without places the latter is 0.
    """
    columns: list[tuple[str, str] | tuple[str, str, tuple[int]]]
    columns = [("first", "<i8"), ("bytes", "<i8"), ("sha256", "u1", (32,)), ("name", f"S{name}")]
    return np.dtype([*columns, *([("place", f"S{place}")] if place else [])])


def _is_shard_dtype(dtype: np.dtype[np.void]) -> bool:
    names = dtype.names or ()
    name = dtype["name"].itemsize if "name" in names else 0
    place = dtype["place"].itemsize if "place" in names else 0
    fits = 1 <= name <= 4 * NAME_CAP and place <= 4 * PLACE_CAP
    return fits and dtype == shard_dtype(name, place)


class ListedShards(Sequence[Shard]):
    """The shards that the list of a split tells, read when asked for; InputError for one that cannot be."""

    def __init__(self, records: Records, starts: NDArray[np.int64], header: Header) -> None:
        """``starts`` [S + 1]: the number of each shard's first sample, and the number of samples."""
        self._records, self._starts = records, starts
        self._foreign, self._elsewhere = header.is_foreign, header.is_elsewhere
        self._recent: dict[int, Shard] = {}

    def __len__(self) -> int:
        return self._records.count

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Shard]: ...
    def __getitem__(self, at: int | slice) -> Shard | Sequence[Shard]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        if (shard := self._recent.get(number)) is None:
            if len(self._recent) >= RECENT:
                self._recent = {}
            shard = self._recent[number] = self._shard(number, self._records.read(number, 1)[0])
        return shard

    def __iter__(self) -> Iterator[Shard]:
        step = max(1, CHUNK // self._records.dtype.itemsize)
        for first in range(0, len(self), step):
            some = self._records.read(first, min(step, len(self) - first))
            yield from (self._shard(first + at, record) for at, record in enumerate(some))

    def bytes(self, first: int, count: int) -> NDArray[np.int64]:
        """The sizes of ``count`` shards from number ``first`` on."""
        return self._records.read(first, count)["bytes"].astype(np.int64)

    def _shard(self, number: int, record: np.void) -> Shard:
        where = f"{self._records.path}: row {number}"
        try:
            name = record["name"].decode()
            place = record["place"].decode() if "place" in (self._records.dtype.names or ()) else ""
            shard = Shard(
                name=name,
                count=int(self._starts[number + 1] - self._starts[number]),
                bytes=int(record["bytes"]),
                sha256=record["sha256"].tobytes().hex(),
                place=place or None,
            )
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error, Shard)}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: a name that is not UTF-8") from error
        if name == FILE or name.endswith(".npy"):
            raise InputError(f"{where}: {name} is a file of the index")
        if (place and not self._foreign) or shard.is_elsewhere != self._elsewhere:
            raise InputError(f"{where}: its place is not one that index.json allows")
        return shard


class CheckedRows:
    """The rows of a split on the disk, or behind an address; see the module's text and ``Rows``."""

    def __init__(
        self,
        rows: Records | Blocks,
        hashes: Records,
        shards: ListedShards,
        starts: NDArray[np.int64],
        allowed: Allowed,
    ) -> None:
        self._rows, self._hashes, self._shards, self._starts = rows, hashes, shards, starts
        self._allowed = allowed
        self._far = rows if isinstance(rows, Blocks) else None
        self._good = bytearray(hashes.count)  # whether a block was checked
        self._kept: OrderedDict[int, NDArray[np.void]] = OrderedDict()
        self._room = max(1, KEPT // (BLOCK * rows.dtype.itemsize))  # blocks
        self._lock = threading.Lock()
        self._plain = np.dtype(f"V{rows.dtype.itemsize}")  # numpy copies these at once, not column by column

    def part(self, first: int, count: int) -> NDArray[np.void]:
        """See Rows."""
        first, stop, _ = slice(first, first + count).indices(self._rows.count)
        out = np.empty(max(0, stop - first), self._plain)
        self._fetch(range(first // BLOCK, -(-stop // BLOCK)))
        at = first
        while at < stop:
            number, begin = divmod(at, BLOCK)
            end = min(stop - number * BLOCK, BLOCK)
            out[at - first : at - first + end - begin] = self._span(number, begin, end)
            at += end - begin
        return out.view(self._rows.dtype)

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.void]:
        """See Rows."""
        out = np.empty(len(numbers), self._plain)
        if not len(numbers):
            return out.view(self._rows.dtype)
        found, order = np.empty_like(out), np.argsort(numbers, kind="stable")
        blocks, places = np.divmod(numbers[order], BLOCK)
        self._fetch(np.unique(blocks).tolist())
        cuts = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(numbers)]
        for low, high in pairwise(cuts):
            begin, end = int(places[low]), int(places[high - 1]) + 1
            some = self._span(int(blocks[low]), begin, end)
            found[low:high] = some if high - low == 1 else some[places[low:high] - begin]
        out[order] = found
        return out.view(self._rows.dtype)

    def _fetch(self, numbers: Sequence[int]) -> None:
        """Have blocks here that are far, all at once: each by itself takes as long as a request."""
        if self._far is not None:
            # One that was good is here, or is fetched by itself where the cache has dropped it since.
            self._far.fetch([n for n in numbers if n not in self._kept and not self._good[n]])

    def _span(self, number: int, begin: int, end: int) -> NDArray[np.void]:
        """Rows ``begin`` to ``end`` of a block, as records without columns."""
        with self._lock:
            if (block := self._kept.get(number)) is not None:
                self._kept.move_to_end(number)
                return block[begin:end]
        if self._good[number]:
            return self._rows.read(number * BLOCK + begin, end - begin).view(self._plain)
        block = self._checked(number).view(self._plain)
        with self._lock:
            self._good[number] = 1
            self._kept[number] = block
            while len(self._kept) > self._room:
                self._kept.popitem(last=False)
        return block[begin:end]

    def _checked(self, number: int) -> NDArray[np.void]:
        first = number * BLOCK
        count = min(BLOCK, self._rows.count - first)
        block, wanted = self._rows.read(first, count), _digest(self._hashes, number)
        if hashlib.sha256(block.data).digest() != wanted and self._far and self._far.drop_damaged(number):
            block = self._rows.read(first, count)  # of a copy that is fetched anew
        if hashlib.sha256(block.data).digest() != wanted:
            raise InputError(f"{self._rows.path}: damaged (rows {first} to {first + count - 1})")
        shards = np.searchsorted(self._starts, np.arange(first, first + len(block)), side="right") - 1
        low = int(shards[0])
        ends = self._shards.bytes(low, int(shards[-1]) - low + 1)[shards - low]
        check_rows(block, ends, self._allowed, self._rows.path, first)
        return block


def open_shards(folder: Path, entry: SplitEntry, header: Header) -> tuple[ListedShards, NDArray[np.int64]]:
    """The shards of a split of version 4, and where each one begins: int64 [S + 1].

    InputError for a list that is damaged or not what ``header`` tells.
    """
    listed = entry.listed
    assert listed is not None
    records = Records(folder, listed.file, listed.count, "shard list", _is_shard_dtype)
    starts = np.empty(listed.count + 1, np.int64)
    total = largest = 0
    for first, some in records.checked():
        starts[first : first + len(some)] = some["first"]
        sizes = some["bytes"]
        if sizes.min(initial=0) < 0 or sizes.max(initial=0) > 1 << 40:
            raise InputError(f"{records.path}: tells a shard's size that none has")
        total, largest = total + int(sizes.sum()), max(largest, int(sizes.max(initial=0)))
    starts[-1] = entry.count
    counts = np.diff(starts)
    if starts[0] != 0 or (counts < 1).any() or (counts > SHARD_SIZE_CAP).any():
        raise InputError(f"{records.path}: its shards do not hold the {entry.count} samples of index.json")
    if (total, largest) != (listed.bytes, listed.largest):
        raise InputError(f"{records.path}: its shards have other sizes than index.json tells")
    return ListedShards(records, starts, header), starts


def _digest(hashes: Records, number: int) -> bytes:
    return hashes.read(number, 1)["sha256"].tobytes()


def open_rows(
    folder: Path,
    entry: SplitEntry,
    header: Header,
    shards: ListedShards,
    starts: NDArray[np.int64],
    far: Far | None = None,
) -> CheckedRows:
    """The rows of that split, of which none is looked at; ``far`` has them where they are not in ``folder``.

    InputError as of ``open_shards``.
    """
    blocks, unknown = entry.blocks, bool(header.unknown)
    assert blocks is not None
    hashes = Records(folder, blocks, -(-entry.count // BLOCK), "block list", lambda dtype: dtype == HASHES)
    for _ in hashes.checked():
        pass
    what = entry.samples, entry.count, "sample table"
    fits = partial(is_sample_dtype, schema=header.attributes, unknown=unknown)
    head = far.head(entry.samples) if far is not None else None
    rows: Records | Blocks
    if far is None or head is None:
        rows = Records(folder, *what, fits)
    else:
        rows = Blocks(folder, *what, fits, far, head, BLOCK, partial(_digest, hashes))
    return CheckedRows(
        rows, hashes, shards, starts, Allowed(header.attributes, header.unknown, header.is_foreign)
    )
