"""The index of a packed folder: what is in the shards and where each sample's bytes lie.

``index.json`` (``shards.header``) is small and for people: format version, label schema, preprocessing,
source, and for each split its shards with count, bytes and SHA-256. What there is one of per sample (key,
offsets, sizes, checksum, labels) lies in one binary table per split, ``train-samples.npy``.
A table of up to a million samples is held in memory, 60 MB that load as one read and one hash. The index of
a larger folder (version 4) lists its shards in ``train-shards.npy`` and the SHA-256 of each 1,024 rows in
``train-blocks.npy``: it opens in no time at any size, and rows are read and checked when they are needed
(``shards.tables.listed``). The labels are those of the shards' JSON members, which other readers take them
from: to parse JSON for each sample costs more than to read raw pixels.

The fingerprint of an index is the SHA-256 of index.json's bytes: through the hashes in it, it seals the
tables and every shard. Loading trusts nothing: plain file names only, every count, offset and size is
checked before it is used, and anything wrong is one InputError. Needs no torch.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from diffbase.system_error import NO_FILE, patiently, read_bytes, reading
from shards.header import FILE, INDEX_CAP, Header, Shard, SplitEntry, parse_header
from shards.schema import Attribute
from shards.tables.blocks import Far
from shards.tables.listed import open_rows, open_shards
from shards.tables.rows import (
    HEAD,
    Allowed,
    Held,
    Row,
    Rows,
    check_rows,
    is_sample_dtype,
    npy_head,
    tuples,
)

PORTION = 1 << 16  # rows of a look at all


@dataclass(frozen=True)
class Split:
    """The shards and samples of one split; a sample's number is its place in them.

    ``table`` gives the samples' rows (see ``shards.tables.rows``); ``starts`` int64 [S + 1] holds the number
    of the first sample of each shard, and the number of samples last. ``bytes`` are those of all shards,
    ``largest`` those of the largest.
    """

    name: str
    shards: Sequence[Shard]
    table: Rows
    starts: NDArray[np.int64]
    bytes: int
    largest: int

    @classmethod
    def of(cls, name: str, shards: Sequence[Shard], samples: NDArray[np.void]) -> Split:
        """The split of these shards and this table [N], which is held in memory."""
        starts = np.cumsum([0, *(shard.count for shard in shards)], dtype=np.int64)
        sizes = [shard.bytes for shard in shards]
        return cls(name, tuple(shards), Held(samples), starts, sum(sizes), max(sizes, default=0))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def samples(self) -> NDArray[np.void]:
        """The whole table [N]: for small folders and those who write one. Others take what they need."""
        return self.table.part(0, len(self))

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.void]:
        """The rows of the samples ``numbers`` [B]; InputError where they are damaged."""
        return self.table.take(numbers)

    def portions(self) -> Iterator[NDArray[np.void]]:
        """All rows, PORTION at a time."""
        return (self.table.part(first, PORTION) for first in range(0, len(self), PORTION))

    def shard_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index into ``shards`` for each sample number; both int64 [B]."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def key(self, number: int) -> str:
        """The key of one sample."""
        return str(self.table.part(number, 1)["key"][0].decode("ascii"))

    def rows(self, first: int, count: int) -> list[Row]:
        """The table's rows of ``count`` samples from number ``first`` on."""
        return tuples(self.table.part(first, count))


@dataclass(frozen=True)
class Index:
    """A packed folder: its label schema, image edge ``size`` in pixels, splits and fingerprint."""

    folder: Path
    header: Header
    fingerprint: str
    splits: dict[str, Split]
    seen: tuple[tuple[int, ...], ...] = field(default=(), repr=False, compare=False)
    """What the system said of each table's file as it was loaded, which tells whether it changed since."""

    @property
    def schema(self) -> tuple[Attribute, ...]:
        """The attributes, in the order of the label columns."""
        return self.header.labels

    @property
    def size(self) -> int:
        """Edge of the images, pixels."""
        return self.header.preprocessing.size

    @property
    def shards(self) -> list[Shard]:
        """Each file once; one of others may hold samples of several splits."""
        some = chain(*(split.shards for split in self.splits.values()), self.header.empty)
        return list({shard.name: shard for shard in some}.values())

    def split(self, name: str) -> Split:
        """The split of that name; InputError names the ones there are."""
        if name not in self.splits:
            raise InputError(f"{self.folder}: no split {name!r}; allowed: {', '.join(self.splits)}")
        return self.splits[name]

    def check(self) -> None:
        """Look at all rows and shards, also of an index that opens without; InputError for what is wrong."""
        names: set[str] = set()
        for split in self.splits.values():
            mine = {shard.name for shard in split.shards}
            if len(mine) < len(split.shards) or (not self.header.is_foreign and mine & names):
                raise InputError(f"{self.folder / FILE}: a file is named twice")
            names |= mine
            for _ in split.portions():
                pass

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Read and check ``folder``'s index.json and sample tables; InputError for anything wrong.

        The shards themselves are not touched: a reader checks what it reads, shards.verify everything.
        OSError of the system (``system_error``) after some tries.
        """
        folder = Path(folder)
        return cls._of(folder, _header_bytes(folder))

    @classmethod
    def shared(cls, folder: Path, far: Far | None = None, place: str = "") -> Index:
        """The index of ``folder`` that this process holds already, else ``load``'s.

        A run opens its shards for training, validation and grids: one table serves all. It is loaded anew
        where index.json or a table's file is another one than was loaded, and goes with its last user.
        ``far`` has the tables that are not in the folder, of an address ``place``.
        """
        folder = Path(folder)
        data = _header_bytes(folder)
        key = (str(folder), str(folder.resolve()), hashlib.sha256(data).hexdigest(), place)
        index = _OPEN.get(key)
        if index is None or index.seen != _seen(folder, index.header):
            index = _OPEN[key] = cls._of(folder, data, far)
        return index

    @classmethod
    def _of(cls, folder: Path, data: bytes, far: Far | None = None) -> Index:
        header = parse_header(data, folder / FILE)
        seen = _seen(folder, header)  # before the load: a change during it is one
        splits = {
            name: _load_split(folder, name, entry, header, far) for name, entry in header.splits.items()
        }
        return cls(folder, header, hashlib.sha256(data).hexdigest(), splits, seen)


_OPEN: WeakValueDictionary[tuple[str, str, str, str], Index] = WeakValueDictionary()
"""What ``Index.shared`` gave: folder as it was given, where it leads, fingerprint, address."""


def _header_bytes(folder: Path) -> bytes:
    path = folder / FILE
    try:
        data = read_bytes(path, INDEX_CAP + 1)
    except NO_FILE:
        pack = shlex.join(["python", "-m", "shards.pack", "SOURCE", "--out", str(folder)])
        raise InputError(f"{path}: not found; pack a data set with: {pack}") from None
    if len(data) > INDEX_CAP:
        raise InputError(f"{path}: larger than {INDEX_CAP} bytes")
    return data


def _seen(folder: Path, header: Header) -> tuple[tuple[int, ...], ...]:
    """Each table's device, number, size and times; nothing of one that cannot be looked at."""

    def of(name: str) -> tuple[int, ...]:
        try:
            there = (folder / name).stat()
        except OSError:  # loading it tells why
            return ()
        return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns

    return tuple(of(table.name) for entry in header.splits.values() for table in entry.tables)


def _load_split(folder: Path, name: str, entry: SplitEntry, header: Header, far: Far | None) -> Split:
    if entry.listed:
        shards, starts = open_shards(folder, entry, header)
        rows = open_rows(folder, entry, header, shards, starts, far)
        return Split(name, shards, rows, starts, entry.listed.bytes, entry.listed.largest)
    path, schema, unknown = folder / entry.samples.name, header.attributes, bool(header.unknown)

    def load() -> tuple[np.dtype[np.void], int, bytes]:
        # Everything that says how much will be read is checked before it is: a wrong file costs nothing.
        with reading(path) as file:
            there = os.fstat(file.fileno()).st_size
            if there != entry.samples.bytes:
                raise InputError(f"{path}: {there} bytes; index.json says {entry.samples.bytes}")
            dtype, start = npy_head(
                file.read(HEAD),
                path,
                there,
                entry.count,
                "sample table",
                lambda dtype: is_sample_dtype(dtype, schema, unknown),
            )
            file.seek(0)
            try:
                return dtype, start, file.read(there)
            except MemoryError:
                raise InputError(f"{path}: its {there} bytes do not fit into memory") from None

    try:
        dtype, start, data = patiently(load, path)
    except NO_FILE:
        raise InputError(f"{path}: missing; index.json names it") from None
    if hashlib.sha256(data).hexdigest() != entry.samples.sha256:
        raise InputError(f"{path}: damaged (its SHA-256 differs from index.json's)")
    split = Split.of(name, entry.shards, np.frombuffer(data, dtype, entry.count, start))
    ends = np.repeat(
        np.array([shard.bytes for shard in entry.shards], np.int64), np.diff(split.starts)
    )  # bytes of each sample's shard
    check_rows(split.samples, ends, Allowed(schema, header.unknown, header.is_foreign), path)
    return split
