"""A row of a sample table: its columns, and what is checked of it before anybody uses one.

A table is a plain numpy array of fixed-width rows, without pickle, in the order of the shards and of the
samples in them.
"""

from __future__ import annotations

import io
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from shards.schema import LABELS_CAP, UNKNOWN, Attribute

MEMBER_CAP = 64 << 20  # bytes of one image

# One row per sample; the key's width is that of the longest one. Sizes and offsets in bytes; offsets count
# from the start of the shard to the member's data (not to its header); those of labels are 0 in the tars of
# others. ``crc`` is zlib.crc32 of the image's bytes: it costs a microsecond, and PNG decoders let damaged
# pixels pass. After these comes ``labels``, one column of as many integers as the schema has attributes, just
# wide enough for the largest variant: unsigned ones, or signed ones where some are UNKNOWN.
COLUMNS = [
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
    return np.dtype([("key", f"S{key_width}"), *COLUMNS, labels])


def tuples(some: NDArray[np.void]) -> list[Row]:
    """Rows of a table as Python has them."""
    columns = [some[name].tolist() for name, _ in COLUMNS]
    labels = map(tuple, some["labels"].tolist())
    return list(zip((key.decode("ascii") for key in some["key"].tolist()), *columns, labels, strict=True))


class Rows(Protocol):
    """The rows of a split, in memory or on the disk; InputError where those asked for are damaged."""

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.void]:
        """The rows of the samples ``numbers`` [B], each from 0 to the number of rows: [B]."""
        ...

    def part(self, first: int, count: int) -> NDArray[np.void]:
        """The rows of ``count`` samples from number ``first`` on: [count]."""
        ...


class Held:
    """Rows that are in memory, all of them."""

    def __init__(self, table: NDArray[np.void]) -> None:
        self._table = table

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.void]:
        """See Rows."""
        return self._table[numbers]

    def part(self, first: int, count: int) -> NDArray[np.void]:
        """See Rows."""
        return self._table[first : first + count]


def npy_head(
    data: bytes, path: Path, size: int, count: int, what: str, fits: Callable[[np.dtype[np.void]], bool]
) -> tuple[np.dtype[np.void], int]:
    """The type and place of ``count`` records in an npy file of ``size`` bytes that begins with ``data``.

    InputError unless it is ``what``: so many records, of a type that ``fits``, and nothing else.
    """
    # np.load would allocate what the header asks for; here an array is a view of the bytes that are there.
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0 of the npy format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy's header parser raises whatever the damaged text leads to
        raise InputError(f"{path}: not a {what} ({error})") from error
    if not fits(dtype):
        raise InputError(f"{path}: not a {what} (its columns differ)")
    if shape != (count,) or size - stream.tell() != count * dtype.itemsize:
        raise InputError(f"{path}: holds another number of {what.split()[0]}s than the {count} of index.json")
    return dtype, stream.tell()


def is_sample_dtype(dtype: np.dtype[np.void], schema: Sequence[Attribute], unknown: bool) -> bool:
    """Whether it is one of ``sample_dtype``'s."""
    width = dtype["key"].itemsize if dtype.names and "key" in dtype.names else 0
    return 1 <= width <= KEY_CAP and dtype == sample_dtype(width, schema, unknown)


class Allowed(NamedTuple):
    """What a row may hold: labels of ``schema``, UNKNOWN ones of the attributes ``unknown`` alone."""

    schema: Sequence[Attribute]
    unknown: Sequence[str]
    foreign: bool
    """Whether it is of a tar of others: then it tells no labels' place."""


def check_rows(
    rows: NDArray[np.void], ends: NDArray[np.int64], allowed: Allowed, path: Path, first: int = 0
) -> None:
    """InputError unless the keys are ones, every member lies in its shard, and the labels are the schema's.

    ``ends`` [N]: bytes of each row's shard; ``first``: number of the first row in the file at ``path``.
    """
    _check_keys(rows, path)
    for member, cap in (("image", MEMBER_CAP), ("label", LABELS_CAP)):
        offset, size = rows[f"{member}_offset"], rows[f"{member}_bytes"].astype(np.int64)
        wrong = (offset < 0) | (size < 1) | (size > cap) | (offset > ends - size)
        if member == "label" and allowed.foreign:  # they are made of whatever a sample has
            wrong = (offset != 0) | (size != 0)
        if wrong.any():
            row = first + int(np.argmax(wrong))
            raise InputError(f"{path}: row {row}: the {member}'s bytes lie outside its shard")
    most_A, least_A = (find(0, initial=0).tolist() for find in (rows["labels"].max, rows["labels"].min))
    for attribute, most, least in zip(allowed.schema, most_A, least_A, strict=True):
        lowest = UNKNOWN if attribute.name in allowed.unknown else 0
        if most >= attribute.variants or least < lowest:
            raise InputError(
                f"{path}: a sample's {attribute.name} is {most if least >= lowest else least}; "
                f"allowed: {lowest} to {attribute.variants - 1}"
            )


def _check_keys(table: NDArray[np.void], path: Path) -> None:
    """InputError unless every key is one: plain characters, then the zeros that fill up its field."""
    keys = table["key"].tobytes()
    zero = np.frombuffer(keys, np.uint8).reshape(len(table), table.dtype["key"].itemsize) == 0
    inside = zero[:, :-1] & ~zero[:, 1:]
    if zero[:, :1].any() or inside.any() or keys.translate(None, b"\0" + KEY_CHARACTERS):
        raise InputError(
            f"{path}: holds an empty key or one with other characters than letters, digits, _, -"
        )
