"""The index of a packed folder: what is in the shards and where each sample's bytes lie.

``index.json`` is small and for people: format version, label schema, preprocessing, source, and for each
split its shards with count, bytes and SHA-256. What there is one of per sample (key, offsets, sizes,
checksum, labels) lies in one binary table per split, ``train-samples.npy``; its SHA-256 is in index.json.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from diffbase.cli import InputError
from diffbase.explain import explain
from diffbase.files import write_atomic
from diffbase.system_error import patiently, read_bytes
from shards.schema import (
    ATTRIBUTES_CAP,
    LABELS_CAP,
    NAME_CAP,
    SHARD_SIZE_CAP,
    SHARDS_CAP,
    SIZE_CAP,
    VARIANTS_CAP,
    Attribute,
    one_hot_width,
)

FILE = "index.json"
FORMAT = "diffcore-shards"
VERSION = 2  # 1 had no labels in the tables
INDEX_CAP = 16 << 20  # bytes of index.json, of which a shard takes 180; parsed, it may take thirty times that
TABLE_CAP = 16 << 30  # bytes of a sample table, which is kept in memory: 300 million samples
MEMBER_CAP = 64 << 20  # bytes of one image
NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

# One row per sample; the key's width is that of the longest one. Sizes and offsets in bytes; offsets count
# from the start of the shard to the member's data (not to its header). ``crc`` is zlib.crc32 of the image's
# bytes: it costs a microsecond, and PNG decoders let damaged pixels pass. After these comes ``labels``, one
# column of as many unsigned integers as the schema has attributes, just wide enough for the largest variant.
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


def sample_dtype(key_width: int, schema: Sequence[Attribute]) -> np.dtype[np.void]:
    """A table's row for labels of ``schema``; its longest key has ``key_width`` ASCII characters."""
    most = max((attribute.variants for attribute in schema), default=1) - 1
    labels = ("labels", np.min_scalar_type(most).newbyteorder("<"), (len(schema),))
    return np.dtype([("key", f"S{key_width}"), *_COLUMNS, labels])


def _plain_name(name: str) -> str:
    if not name or name in (".", "..") or set(name) & set("/\\\0:") or name.startswith("."):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("a name with characters that cannot be printed")
    return name


def _of_labels(attribute: Attribute) -> Attribute:
    """A Python dataclass, which sets no limits itself: its module knows no pydantic."""
    if attribute.variants < 1:
        raise ValueError(f"an attribute has no variants; allowed: 1 to {VARIANTS_CAP}")
    if attribute.variants > VARIANTS_CAP:
        raise ValueError(f"an attribute has more than {VARIANTS_CAP} variants")
    if not attribute.name or len(attribute.name) > NAME_CAP:
        raise ValueError(f"an attribute's name must have 1 to {NAME_CAP} characters")
    _printable(attribute.name)
    return attribute


Name = Annotated[str, Field(max_length=NAME_CAP), AfterValidator(_printable)]
PlainName = Annotated[Name, AfterValidator(_plain_name)]
Text = Annotated[str, Field(max_length=4096)]
SplitName = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,80}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=1 << 40)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shard(_Strict):
    """One tar file: its name, how many samples and bytes it holds, and its SHA-256."""

    name: PlainName
    count: Annotated[int, Field(ge=1, le=SHARD_SIZE_CAP)]
    bytes: Count
    sha256: Sha256


class Table(_Strict):
    """The sample table of a split."""

    name: PlainName
    bytes: Annotated[int, Field(ge=0, le=TABLE_CAP)]
    sha256: Sha256


class SplitEntry(_Strict):
    """One split as index.json tells it."""

    count: Count
    samples: Table
    shards: Annotated[tuple[Shard, ...], Field(max_length=SHARDS_CAP)]


class Preprocessing(_Strict):
    """What was done to every image: centre crop and edge in pixels, filter, ground, encoding.

    ``crop`` is None where the largest centred square of each image was taken.
    """

    crop: Annotated[int, Field(ge=1, le=SIZE_CAP)] | None
    size: Annotated[int, Field(ge=1, le=SIZE_CAP)]
    resample: Text
    background: Text
    encoding: Literal["png", "webp", "npy"]


class SourceEntry(_Strict):
    """Where the samples came from: adapter, name without folder, and digest of the source."""

    kind: Text
    name: Text
    digest: Sha256


class Header(_Strict):
    """The whole of index.json. ``variant_names`` names the variants of some attributes, for people."""

    format: str
    version: int
    attributes: Annotated[
        tuple[Annotated[Attribute, AfterValidator(_of_labels)], ...],
        Field(alias="schema", max_length=ATTRIBUTES_CAP),
    ]
    variant_names: dict[Name, tuple[Name, ...]] = {}
    preprocessing: Preprocessing
    source: SourceEntry
    shard_size: Annotated[int, Field(ge=1, le=SHARD_SIZE_CAP)]
    val: Annotated[float, Field(ge=0, lt=1)]
    splits: Annotated[dict[SplitName, SplitEntry], Field(max_length=16)]


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

    @property
    def schema(self) -> tuple[Attribute, ...]:
        """The attributes, in the order of the label columns."""
        return self.header.attributes

    @property
    def size(self) -> int:
        """Edge of the images, pixels."""
        return self.header.preprocessing.size

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
        path = folder / FILE
        try:
            data = read_bytes(path, INDEX_CAP + 1)
        except NO_FILE:
            raise InputError(
                f"{path}: not found; pack a data set with: python -m shards.pack SOURCE --out {folder}"
            ) from None
        if len(data) > INDEX_CAP:
            raise InputError(f"{path}: larger than {INDEX_CAP} bytes")
        header = parse_header(data, path)
        splits = {
            name: _load_split(folder, name, entry, header.attributes) for name, entry in header.splits.items()
        }
        return cls(folder, header, hashlib.sha256(data).hexdigest(), splits)


def parse_header(data: bytes, path: Path) -> Header:
    """The checked content of an index.json; InputError, naming ``path``, for anything wrong."""
    try:
        given = json.loads(data)
        # Checked before the rest: an index of a later version may have any fields.
        if not isinstance(given, dict) or given.get("format") != FORMAT:
            raise InputError(f'{path}: not an index of shards.pack (no "format": "{FORMAT}")')
        if given.get("version") != VERSION:
            raise InputError(
                f"{path}: version {given.get('version')!r}; this code reads version {VERSION}: pack it anew"
            )
        header = Header.model_validate_json(data)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, Header)}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not JSON ({error})") from error
    names = [attribute.name for attribute in header.attributes]
    if len(set(names)) != len(names) or not all(names):
        raise InputError(f"{path}: schema: attribute names must be unique and not empty")
    if one_hot_width(header.attributes) > VARIANTS_CAP:
        raise InputError(f"{path}: schema: more than {VARIANTS_CAP} variants in all")
    variants = {attribute.name: attribute.variants for attribute in header.attributes}
    for name, given_names in header.variant_names.items():
        if len(given_names) != variants.get(name):
            raise InputError(f"{path}: variant_names.{name}: not one name for each variant of the schema's")
    files = [e.samples.name for e in header.splits.values()]
    files += [shard.name for e in header.splits.values() for shard in e.shards]
    if len(set(files)) != len(files):
        raise InputError(f"{path}: a file is named twice")
    for name, entry in header.splits.items():
        if sum(shard.count for shard in entry.shards) != entry.count:
            raise InputError(f"{path}: splits.{name}: count is {entry.count}, its shards hold another number")
    return header


def _load_split(folder: Path, name: str, entry: SplitEntry, schema: Sequence[Attribute]) -> Split:
    path = folder / entry.samples.name

    def load() -> tuple[np.dtype[np.void], int, bytes]:
        # Everything that says how much will be read is checked before it is: a wrong file costs nothing.
        with path.open("rb") as file:
            there = os.fstat(file.fileno()).st_size
            if there != entry.samples.bytes:
                raise InputError(f"{path}: {there} bytes; index.json says {entry.samples.bytes}")
            dtype, start = _table_head(file.read(HEAD), path, entry, schema)
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
    starts = np.cumsum([0, *(shard.count for shard in entry.shards)], dtype=np.int64)
    ends = np.repeat(
        np.array([shard.bytes for shard in entry.shards], np.int64), np.diff(starts)
    )  # bytes of each sample's shard
    for member, cap in (("image", MEMBER_CAP), ("label", LABELS_CAP)):
        offset, size = samples[f"{member}_offset"], samples[f"{member}_bytes"].astype(np.int64)
        wrong = (offset < 0) | (size < 1) | (size > cap) | (offset > ends - size)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(f"{path}: row {row}: the {member}'s bytes lie outside its shard")
    for attribute, most in zip(schema, samples["labels"].max(0, initial=0).tolist(), strict=True):
        if most >= attribute.variants:
            raise InputError(
                f"{path}: a sample's {attribute.name} is {most}; allowed: 0 to {attribute.variants - 1}"
            )
    return Split(name, entry.shards, samples, starts)


def _table_head(
    data: bytes, path: Path, entry: SplitEntry, schema: Sequence[Attribute]
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
    if not 1 <= width <= KEY_CAP or dtype != sample_dtype(width, schema):
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


def write_index(
    folder: Path,
    schema: Sequence[Attribute],
    about: dict[str, Any],
    splits: dict[str, tuple[list[Shard], list[Row]]],
    variant_names: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Write the sample tables, then index.json, each atomically: index.json last makes the folder whole.

    InputError where index.json would be larger than a reader takes.

    ``about`` holds the header's fields preprocessing, source, shard_size and val.
    """
    entries = {}
    for name, (shards, rows) in splits.items():
        width = max((len(row[0]) for row in rows), default=1)
        stream = io.BytesIO()
        table = np.array([(row[0].encode("ascii"), *row[1:]) for row in rows], sample_dtype(width, schema))
        np.lib.format.write_array(stream, table, version=(1, 0), allow_pickle=False)
        data = stream.getvalue()
        write_atomic(folder / f"{name}-samples.npy", data)
        entries[name] = {
            "count": len(rows),
            "samples": {
                "name": f"{name}-samples.npy",
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            },
            "shards": [shard.model_dump() for shard in shards],
        }
    header = {
        "format": FORMAT,
        "version": VERSION,
        "schema": [{"name": a.name, "variants": a.variants} for a in schema],
        **({"variant_names": variant_names} if variant_names else {}),
        **about,
        "splits": entries,
    }
    text = (json.dumps(header, indent=1) + "\n").encode()
    if len(text) > INDEX_CAP:
        raise InputError(
            f"{folder / FILE}: would be larger than {INDEX_CAP} bytes; give a larger --shard-size"
        )
    write_atomic(folder / FILE, text)
