"""The index of a packed folder: what is in the shards and where each sample's bytes lie.

``index.json`` (``shards.header``) is small and for people: format version, label schema, preprocessing,
source, and for each split its shards with count, bytes and SHA-256. What there is one of per sample (key,
offsets, sizes, checksum, labels) lies in one binary table per split, ``train-samples.npy``; its SHA-256 is in
index.json.
A table of a million samples is about 60 MB that load as one read and one hash; the same as JSON takes ten
times as long to parse and a gigabyte of Python objects. It is a plain numpy array of fixed-width rows,
without pickle, in the order of the shards and of the samples in them. The labels are those of the shards'
JSON members, which other readers take them from: to parse JSON for each sample costs more than to read raw
pixels.

The fingerprint of an index is the SHA-256 of index.json's bytes: through the hashes in it, it seals the
tables and every shard. Loading trusts nothing: plain file names only, every count, offset and size is
checked, and anything wrong is one InputError. Needs no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from diffbase.files import write_atomic
from diffbase.system_error import NO_FILE, patiently, read_bytes, reading
from shards.header import FILE, FORMAT, INDEX_CAP, VERSIONS, Header, Shard, SplitEntry, parse_header
from shards.schema import (
    LABELS_CAP,
    UNKNOWN,
    Attribute,
)

MEMBER_CAP = 64 << 20  # bytes of one image

# One row per sample; the key's width is that of the longest one. Sizes and offsets in bytes; offsets count
# from the start of the shard to the member's data (not to its header); those of labels are 0 in the tars of
# others. ``crc`` is zlib.crc32 of the image's bytes: it costs a microsecond, and PNG decoders let damaged
# pixels pass. After these comes ``labels``, one column of as many integers as the schema has attributes, just
# wide enough for the largest variant: unsigned ones, or signed ones where some are UNKNOWN.
_COLUMNS = [
    ("image_offset", "<i8"),
    ("label_offset", "<i8"),
    ("image_bytes", "<i4"),
    ("label_bytes", "<i4"),
    ("crc", "<u4"),
]
Row = tuple[str, int, int, int, int, int, tuple[int, ...]]  # key, then the columns, then the labels
HEAD = 1 << 17  # bytes in which a table's npy header lies
KEY_CAP = 80
KEY_CHARACTERS = (string.ascii_letters + string.digits + "_-").encode()


def sample_dtype(key_width: int, schema: Sequence[Attribute], unknown: bool = False) -> np.dtype[np.void]:
    """A table's row: a key of ``key_width`` characters at most, labels of ``schema``, some ``unknown``."""
    most = max((attribute.variants for attribute in schema), default=1) - 1
    kind = np.min_scalar_type(-most - 1 if unknown else most).newbyteorder("<")
    labels = ("labels", kind, (len(schema),))
    return np.dtype([("key", f"S{key_width}"), *_COLUMNS, labels])


@dataclass(frozen=True)
class Split:
    """The shards and samples of one split; a sample's number is its row in ``samples``.

    ``samples`` is the table [N] (see ``sample_dtype``); ``starts`` int64 [S + 1] holds the number of the
    first sample of each shard, and N last.
    """

    name: str
    shards: tuple[Shard, ...]
    samples: NDArray[np.void]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, name: str, shards: Sequence[Shard], samples: NDArray[np.void]) -> Split:
        """The split of these shards and this table."""
        starts = np.cumsum([0, *(shard.count for shard in shards)], dtype=np.int64)
        return cls(name, tuple(shards), samples, starts)

    def __len__(self) -> int:
        return len(self.samples)

    def shard_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index into ``shards`` for each sample number; both int64 [B]."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def key(self, number: int) -> str:
        """The key of one sample."""
        return str(self.samples["key"][number].decode("ascii"))

    def rows(self, first: int, count: int) -> list[Row]:
        """The table's rows of ``count`` samples from number ``first`` on."""
        some = self.samples[first : first + count]
        columns = [some[name].tolist() for name, _ in _COLUMNS]
        labels = map(tuple, some["labels"].tolist())
        return list(zip((key.decode("ascii") for key in some["key"].tolist()), *columns, labels, strict=True))


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
        return list({shard.name: shard for shard in self.header.shards}.values())

    def split(self, name: str) -> Split:
        """The split of that name; InputError names the ones there are."""
        if name not in self.splits:
            raise InputError(f"{self.folder}: no split {name!r}; allowed: {', '.join(self.splits)}")
        return self.splits[name]

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Read and check ``folder``'s index.json and sample tables; InputError for anything wrong.

        The shards themselves are not touched: a reader checks what it reads, shards.verify everything.
        OSError of the system (``system_error``) after some tries.
        """
        folder = Path(folder)
        return cls._of(folder, _header_bytes(folder))

    @classmethod
    def shared(cls, folder: Path) -> Index:
        """The index of ``folder`` that this process holds already, else ``load``'s.

        A run opens its shards for training, validation and grids: one table serves all. It is loaded anew
        where index.json or a table's file is another one than was loaded, and goes with its last user.
        """
        folder = Path(folder)
        data = _header_bytes(folder)
        key = (str(folder), str(folder.resolve()), hashlib.sha256(data).hexdigest())
        index = _OPEN.get(key)
        if index is None or index.seen != _seen(folder, index.header):
            index = _OPEN[key] = cls._of(folder, data)
        return index

    @classmethod
    def _of(cls, folder: Path, data: bytes) -> Index:
        header = parse_header(data, folder / FILE)
        seen = _seen(folder, header)  # before the load: a change during it is one
        splits = {name: _load_split(folder, name, entry, header) for name, entry in header.splits.items()}
        return cls(folder, header, hashlib.sha256(data).hexdigest(), splits, seen)


_OPEN: WeakValueDictionary[tuple[str, str, str], Index] = WeakValueDictionary()
"""What ``Index.shared`` gave: folder as it was given, where it leads, fingerprint."""


def _header_bytes(folder: Path) -> bytes:
    path = folder / FILE
    try:
        data = read_bytes(path, INDEX_CAP + 1)
    except NO_FILE:
        raise InputError(
            f"{path}: not found; pack a data set with: python -m shards.pack SOURCE --out {folder}"
        ) from None
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

    return tuple(of(entry.samples.name) for entry in header.splits.values())


def _load_split(folder: Path, name: str, entry: SplitEntry, header: Header) -> Split:
    path, schema, unknown = folder / entry.samples.name, header.attributes, bool(header.unknown)

    def load() -> tuple[np.dtype[np.void], int, bytes]:
        # Everything that says how much will be read is checked before it is: a wrong file costs nothing.
        with reading(path) as file:
            there = os.fstat(file.fileno()).st_size
            if there != entry.samples.bytes:
                raise InputError(f"{path}: {there} bytes; index.json says {entry.samples.bytes}")
            dtype, start = _table_head(file.read(HEAD), path, entry, schema, unknown)
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
    samples = np.frombuffer(data, dtype, entry.count, start)
    _check_keys(samples, path)
    split = Split.of(name, entry.shards, samples)
    ends = np.repeat(
        np.array([shard.bytes for shard in entry.shards], np.int64), np.diff(split.starts)
    )  # bytes of each sample's shard
    for member, cap in (("image", MEMBER_CAP), ("label", LABELS_CAP)):
        offset, size = samples[f"{member}_offset"], samples[f"{member}_bytes"].astype(np.int64)
        wrong = (offset < 0) | (size < 1) | (size > cap) | (offset > ends - size)
        if member == "label" and header.is_foreign:  # they are made of whatever a sample has
            wrong = (offset != 0) | (size != 0)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(f"{path}: row {row}: the {member}'s bytes lie outside its shard")
    most_A, least_A = (find(0, initial=0).tolist() for find in (samples["labels"].max, samples["labels"].min))
    for attribute, most, least in zip(schema, most_A, least_A, strict=True):
        lowest = UNKNOWN if attribute.name in header.unknown else 0
        if most >= attribute.variants or least < lowest:
            raise InputError(
                f"{path}: a sample's {attribute.name} is {most if least >= lowest else least}; "
                f"allowed: {lowest} to {attribute.variants - 1}"
            )
    return split


def _table_head(
    data: bytes, path: Path, entry: SplitEntry, schema: Sequence[Attribute], unknown: bool
) -> tuple[np.dtype[np.void], int]:
    """The rows' type and where they begin, by the first bytes of a table that has the size it should have."""
    # np.load would allocate what the header asks for; here the array is a view of the bytes that are there.
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0 of the npy format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy's header parser raises whatever the damaged text leads to
        raise InputError(f"{path}: not a sample table ({error})") from error
    width = dtype["key"].itemsize if dtype.names and "key" in dtype.names else 0
    if not 1 <= width <= KEY_CAP or dtype != sample_dtype(width, schema, unknown):
        raise InputError(f"{path}: not a sample table (its columns differ)")
    if shape != (entry.count,) or entry.samples.bytes - stream.tell() != entry.count * dtype.itemsize:
        raise InputError(f"{path}: holds another number of samples than the {entry.count} of index.json")
    return dtype, stream.tell()


def _check_keys(table: NDArray[np.void], path: Path) -> None:
    """InputError unless every key is one: plain characters, then the zeros that fill up its field."""
    plain = np.zeros(256, bool)
    plain[[0, *KEY_CHARACTERS]] = True
    keys = np.frombuffer(table["key"].tobytes(), np.uint8).reshape(len(table), table.dtype["key"].itemsize)
    zero = keys == 0
    inside = zero[:, :-1] & ~zero[:, 1:]
    if zero[:, :1].any() or inside.any() or not plain[keys].all():
        raise InputError(
            f"{path}: holds an empty key or one with other characters than letters, digits, _, -"
        )


def table_bytes(rows: Sequence[Row] | NDArray[np.void], schema: Sequence[Attribute], unknown: bool) -> bytes:
    """The sample table of a split, which may be one already, of any width of keys.

    ``unknown``: whether any sample of the folder has an unknown label.
    """
    table = _table_of(rows, schema)
    width = int(np.char.str_len(table["key"]).max(initial=1))
    stream = io.BytesIO()
    np.lib.format.write_array(
        stream, table.astype(sample_dtype(width, schema, unknown)), version=(1, 0), allow_pickle=False
    )
    return stream.getvalue()


def _table_of(rows: Sequence[Row] | NDArray[np.void], schema: Sequence[Attribute]) -> NDArray[np.void]:
    if isinstance(rows, np.ndarray):
        return rows
    widest = sample_dtype(KEY_CAP, schema, unknown=True)
    return np.array([(row[0].encode("ascii"), *row[1:]) for row in rows], widest)


def write_index(
    folder: Path,
    schema: Sequence[Attribute],
    about: dict[str, Any],
    splits: Mapping[str, tuple[Sequence[Shard], list[Row] | NDArray[np.void]]],
) -> None:
    """Write the sample tables, then index.json, each atomically: index.json last makes the folder whole.

    InputError where index.json would be larger than a reader takes.

    ``about`` holds the header's fields preprocessing, source, shard_size and val, and those of split_by,
    skipped, empty and reading that are not the usual ones. Rows may be a table already, of any width of keys.
    """
    entries = {}
    tables = {name: _table_of(rows, schema) for name, (_, rows) in splits.items()}
    lacking = [(table["labels"] == UNKNOWN).any(axis=0) for table in tables.values()]
    unknown = [a.name for a, some in zip(schema, np.any(lacking, axis=0).tolist(), strict=True) if some]
    variant_names = {a.name: a.names for a in schema if a.names}
    for name, (shards, rows) in splits.items():
        data = table_bytes(tables[name], schema, bool(unknown))
        write_atomic(folder / f"{name}-samples.npy", data)
        entries[name] = {
            "count": len(rows),
            "samples": {
                "name": f"{name}-samples.npy",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            },
            "shards": [shard.model_dump(exclude_none=True) for shard in shards],
        }
    header = {
        "format": FORMAT,
        "version": VERSIONS[bool(unknown or about.keys() & {"split_by", "skipped", "reading"})],
        "schema": [{"name": a.name, "variants": a.variants} for a in schema],
        **({"variant_names": variant_names} if variant_names else {}),
        **({"unknown": unknown} if unknown else {}),
        **about,
        "splits": entries,
    }
    text = (json.dumps(header, indent=1) + "\n").encode()
    if len(text) > INDEX_CAP:
        instead = "fewer tars" if "reading" in about else "a larger --shard-size"
        raise InputError(f"{folder / FILE}: would be larger than {INDEX_CAP} bytes; give {instead}")
    write_atomic(folder / FILE, text)
