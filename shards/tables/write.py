"""An index is written: the tables in a stream, index.json last.

The rows of a split come in portions, and no more than one of them is in memory. How wide the keys are, and
whether labels are unknown, has to be known before the first row is written: whoever gives the rows says it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from diffbase.files import open_atomic, write_atomic
from shards.codec import KEPT
from shards.header import FILE, HELD_SAMPLES, INDEX_CAP, LIST_CAP, LISTED_CAP, VERSIONS, Shard, SplitEntry
from shards.schema import FORMAT, UNKNOWN, Attribute
from shards.tables.listed import BLOCK, HASHES, shard_dtype
from shards.tables.rows import HEAD, KEY_CAP, Row, npy_head, sample_dtype


@dataclass(frozen=True)
class Stream:
    """The rows of a split to come: how many, the width of the longest key, which attributes some lack.

    ``portions`` gives them, of any type of ``sample_dtype``'s, as often as it is called.
    """

    count: int
    width: int
    lacking: frozenset[int]
    portions: Callable[[], Iterable[NDArray[np.void]]]

    def __len__(self) -> int:
        return self.count

    @classmethod
    def of(cls, rows: Sequence[Row] | NDArray[np.void], schema: Sequence[Attribute]) -> Stream:
        """Those of rows in memory."""
        table = table_of(rows, schema)
        return cls(len(table), key_width(table), lacking(table), lambda: [table])


def table_of(rows: Sequence[Row] | NDArray[np.void], schema: Sequence[Attribute]) -> NDArray[np.void]:
    """Rows as a table, of the widest type where they are none yet."""
    if isinstance(rows, np.ndarray):
        return rows
    return np.array([(row[0].encode("ascii"), *row[1:]) for row in rows], widest(schema))


def widest(schema: Sequence[Attribute]) -> np.dtype[np.void]:
    """The type of a row that any sample fits in."""
    return sample_dtype(KEY_CAP, schema, unknown=True)


def key_width(table: NDArray[np.void]) -> int:
    """Characters of the longest key, at least 1."""
    return int(np.char.str_len(table["key"]).max(initial=1))


def lacking(table: NDArray[np.void]) -> frozenset[int]:
    """The columns of labels in which one is unknown."""
    return frozenset(np.flatnonzero((table["labels"] == UNKNOWN).any(axis=0)).tolist())


def write_index(
    folder: Path,
    schema: Sequence[Attribute],
    about: dict[str, Any],
    splits: Mapping[str, tuple[Sequence[Shard], Sequence[Row] | NDArray[np.void] | Stream]],
) -> None:
    """Write the tables, then index.json, each atomically: index.json last makes the folder whole.

    ``about`` holds the header's fields preprocessing, source, shard_size and val, and those of split_by,
    skipped, empty and reading that are not the usual ones. Rows may be a table already, of any width of keys.
    InputError where index.json would be larger than a reader takes.
    """
    streams = {
        name: rows if isinstance(rows, Stream) else Stream.of(rows, schema)
        for name, (_, rows) in splits.items()
    }
    lack = sorted(frozenset[int]().union(*(stream.lacking for stream in streams.values())))
    unknown = [schema[column].name for column in lack]
    variant_names = {a.name: a.names for a in schema if a.names}
    shards = {name: some for name, (some, _) in splits.items()}
    # A table of more samples no rank should have to hold; JPEGs earlier versions do not know.
    listed = sum(map(len, streams.values())) > HELD_SAMPLES or sum(map(len, shards.values())) > LISTED_CAP
    listed = listed or about["preprocessing"]["encoding"] == KEPT
    entries, hashes = {}, {}
    for name, stream in streams.items():
        dtype = sample_dtype(stream.width, schema, bool(unknown))
        samples, hashes[name] = _write_rows(folder, name, stream, dtype)
        entries[name] = {"count": stream.count, "samples": samples}

    def text_of(version: int, more: Mapping[str, dict[str, Any]]) -> bytes:
        header = {
            "format": FORMAT,
            "version": version,
            "schema": [{"name": a.name, "variants": a.variants} for a in schema],
            **({"variant_names": variant_names} if variant_names else {}),
            **({"unknown": unknown} if unknown else {}),
            **about,
            "splits": {name: entry | more[name] for name, entry in entries.items()},
        }
        return (json.dumps(header, indent=1) + "\n").encode()

    text = b""
    if not listed:
        version = VERSIONS[bool(unknown or about.keys() & {"split_by", "skipped", "reading"})]
        named = {n: {"shards": [s.model_dump(exclude_none=True) for s in some]} for n, some in shards.items()}
        text = text_of(version, named)
        listed = len(text) > INDEX_CAP
    if listed:
        lists = {name: _write_lists(folder, name, some, hashes[name]) for name, some in shards.items()}
        text = text_of(VERSIONS[-1], lists)
    if len(text) > INDEX_CAP:
        instead = "fewer tars" if "reading" in about else "fewer names of variants"
        raise InputError(f"{folder / FILE}: would be larger than {INDEX_CAP} bytes; give {instead}")
    write_atomic(folder / FILE, text)


def _write_rows(
    folder: Path, split: str, stream: Stream, dtype: np.dtype[np.void]
) -> tuple[dict[str, Any], NDArray[np.void]]:
    """Write a sample table; its entry in index.json, and the SHA-256 of each block of its rows."""
    hashes = np.zeros(-(-stream.count // BLOCK), HASHES)
    done = 0
    with _npy(folder / f"{split}-samples.npy", stream.count, dtype) as (write, entry):
        for block in _blocks(portion.astype(dtype) for portion in stream.portions()):
            write(block)
            hashes["sha256"][done // BLOCK] = np.frombuffer(hashlib.sha256(block.data).digest(), np.uint8)
            done += len(block)
    assert done == stream.count
    return entry, hashes


def _blocks(portions: Iterable[NDArray[np.void]]) -> Iterator[NDArray[np.void]]:
    """The rows of all portions, BLOCK at a time."""
    rest: list[NDArray[np.void]] = []
    held = 0
    for portion in portions:
        at = 0
        while held + len(portion) - at >= BLOCK:
            end = at + BLOCK - held
            yield np.concatenate([*rest, portion[at:end]])
            rest, held, at = [], 0, end
        if at < len(portion):
            rest.append(portion[at:])
            held += len(portion) - at
    if rest:
        yield np.concatenate(rest)


def _write_lists(
    folder: Path, split: str, shards: Sequence[Shard], hashes: NDArray[np.void]
) -> dict[str, Any]:
    """Write what version 4 has beside the rows of a split; its part of the entry in index.json."""
    if len(shards) > LIST_CAP:
        raise InputError(f"{folder}: more than {LIST_CAP} shards in a split; give a larger --shard-size")
    names = [shard.name.encode() for shard in shards]
    places = [(shard.place or "").encode() for shard in shards]
    widths = max(map(len, names), default=1), max(map(len, places), default=0)
    records = np.zeros(len(shards), shard_dtype(*widths))
    records["first"] = np.cumsum([0, *(shard.count for shard in shards)])[:-1]
    records["bytes"] = [shard.bytes for shard in shards]
    digests = b"".join(bytes.fromhex(shard.sha256) for shard in shards)
    records["sha256"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
    records["name"] = names
    if any(places):
        records["place"] = places
    entries = {}
    for what, array in (("shards", records), ("blocks", hashes)):
        with _npy(folder / f"{split}-{what}.npy", len(array), array.dtype) as (write, entries[what]):
            write(array)
    kinds = {"addresses" if shard.is_elsewhere else "paths" for shard in shards if shard.place}
    sizes = [shard.bytes for shard in shards]
    listed = {"count": len(shards), "bytes": sum(sizes), "largest": max(sizes, default=0)}
    where = {"places": min(kinds)} if kinds else {}
    return {"listed": listed | where | {"file": entries["shards"]}, "blocks": entries["blocks"]}


@contextmanager
def _npy(
    path: Path, count: int, dtype: np.dtype[np.void]
) -> Iterator[tuple[Callable[[NDArray[np.void]], None], dict[str, Any]]]:
    """Write an npy file of ``count`` records: what takes them, and the file's entry, filled at the end."""
    entry: dict[str, Any] = {"name": path.name}
    digest, size = hashlib.sha256(), 0

    with open_atomic(path) as file:

        def write(data: bytes | NDArray[np.void]) -> None:
            nonlocal size
            some = data if isinstance(data, bytes) else data.tobytes()
            file.write(some)
            digest.update(some)
            size += len(some)

        write(npy_header(count, dtype))
        yield write, entry
    entry.update(bytes=size, sha256=digest.hexdigest())


def npy_header(count: int, dtype: np.dtype[np.void]) -> bytes:
    """What numpy writes before ``count`` records."""
    stream = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": (count,)})
    return stream.getvalue()


def table_bytes(stream: Stream, schema: Sequence[Attribute], unknown: bool) -> Iterator[bytes]:
    """The bytes of the sample table of a split, in portions.

    ``unknown``: whether any sample of the folder has an unknown label.
    """
    dtype = sample_dtype(stream.width, schema, unknown)
    yield npy_header(stream.count, dtype)
    for portion in stream.portions():
        yield portion.astype(dtype).tobytes()


def block_bytes(path: Path, entry: SplitEntry) -> bytes:
    """The file of the blocks' hashes, made from the rows at ``path``, which are sound."""
    hashes = np.zeros(-(-entry.count // BLOCK), HASHES)
    with path.open("rb") as file:
        dtype, start = npy_head(
            file.read(HEAD), path, entry.samples.bytes, entry.count, "sample table", lambda dtype: True
        )
        file.seek(start)
        for at in range(len(hashes)):
            digest = hashlib.sha256(file.read(BLOCK * dtype.itemsize)).digest()
            hashes["sha256"][at] = np.frombuffer(digest, np.uint8)
    return npy_header(len(hashes), HASHES) + hashes.tobytes()
