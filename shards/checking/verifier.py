"""What is wrong with a packed folder: held against its index, sample by sample."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from diffbase.cli import InputError, one_line
from diffbase.system_error import is_passing, is_there, patiently, reading
from shards.checking.doubles import maybe_twice
from shards.codec.decode import BadSample
from shards.codec.labels import decode_labels
from shards.header import FILE, INDEX_CAP, Shard, Table, parse_header
from shards.packing.plan import split_of
from shards.packing.tar import read_back
from shards.packing.workers import map_in_order
from shards.read import CorruptSampleError, ShardReader
from shards.remote.fetch import address, check_url, copy, fetch_small
from shards.remote.filesystem import NotThereError
from shards.table import Index, Split

SLACK = 1 << 20  # bytes that a shard behind a URL may be too long, and is still looked at

Task = tuple[Path, str | None, str, int]  # folder, its URL, split, number of the shard in it
Found = tuple[
    list[str], dict[int, str] | None
]  # faults of a shard, and of its samples by number, if it is there


def problems(folder: Path, jobs: int = 1, url: str | None = None) -> Iterator[str]:
    """Every fault of a packed folder, one line each; InputError where the index itself cannot be read.

    The shards are looked at by ``jobs`` processes. ``url``: where they are, if ``folder`` is that of
    ``index_of``; each process has one of them here at a time.
    """
    yield from map(one_line, _problems(folder, jobs, url))


@contextmanager
def index_of(url: str) -> Iterator[Path]:
    """A temporary folder with the index and the sample tables of the packed folder at ``url``.

    They may be damaged. InputError where there is no index, or no access; TimeoutError as of ``fetch``.
    """
    check_url(url)
    data = fetch_small(address(url, FILE), INDEX_CAP)
    with TemporaryDirectory(prefix="diffcore-verify-") as name:
        folder = Path(name)
        (folder / FILE).write_bytes(data)
        with suppress(InputError):  # said by whoever loads it
            for entry in parse_header(data, folder / FILE).splits.values():
                for table in entry.tables:
                    _fetch(url, folder, table)
        yield folder


def _fetch(url: str, folder: Path, file: Shard | Table) -> int:
    """Have a file of the folder at ``url`` here as it is; its size. NotThereError where it is not there."""
    with (folder / file.name).open("xb") as here:
        try:
            return copy(address(url, file.name), here.fileno(), file.bytes + SLACK)
        except NotThereError:
            (folder / file.name).unlink()
            raise


def _problems(folder: Path, jobs: int, url: str | None) -> Iterator[str]:
    index = Index.load(folder)
    tasks = [(folder, url, name, n) for name, split in index.splits.items() for n in range(len(split.shards))]
    by_key = index.header.split_by == "key"
    twice, seen = maybe_twice(index), set[str]()
    with (
        ExitStack() as stack,
        closing(map_in_order(_look_at, tasks, min(jobs, len(tasks)) or 1)) as results,
    ):
        stack.callback(_opened.cache_clear)  # the folder may change before the next call in this process
        for (_, _, name, place), (shard_faults, sample_faults) in zip(tasks, results, strict=True):
            split = index.splits[name]
            shard = split.shards[place]
            yield from shard_faults
            if sample_faults is None:
                continue
            for number in _numbers(split, place):
                key = split.key(number)
                if key in seen:
                    yield f"{shard.name}: sample {key}: its key appears twice"
                if key in twice:
                    seen.add(key)
                if by_key and split_of(key, index.header.val) != name:
                    yield f"{shard.name}: sample {key}: belongs to another split"
                if number in sample_faults:
                    yield sample_faults[number]


def _look_at(task: Task) -> Found:
    """The faults of one shard and of its samples; the work of a worker process.

    OSError of the system after some tries: it says nothing of what is in the shard.
    """
    folder, url, name, place = task
    index, reader = _opened(folder, name)
    shard = index.splits[name].shards[place]
    path = folder / shard.name
    try:
        if url is None:
            return patiently(lambda: _faults(path, index, reader, place), path)
        with suppress(NotThereError):
            if (size := _fetch(url, folder, shard)) > shard.bytes + SLACK:
                return [f"{shard.name}: {size} bytes or more; the index says {shard.bytes}"], {}
        return patiently(lambda: _faults(path, index, reader, place), path)
    except OSError as error:
        if is_passing(error):
            raise
        return [f"{path.name}: cannot be read ({error.strerror or error})"], {}
    finally:
        if url is not None and path.exists():
            os.truncate(path, 0)  # the reader may have it open, which would hold the disk's room
            path.unlink()


def _faults(path: Path, index: Index, reader: ShardReader, place: int) -> Found:
    split = reader.split
    shard = split.shards[place]
    if not is_there(path):
        return [f"{shard.name}: missing, with {shard.count} samples"], None
    faults = list(_shard_faults(path, index, split, place))
    bad: dict[int, str] = {}
    with reading(path) as file:
        for number in _numbers(split, place):
            if fault := _sample_fault(file, index, split, number, reader):
                bad[number] = f"{shard.name}: sample {split.key(number)}: {fault}"
    return faults, bad


def _shard_faults(path: Path, index: Index, split: Split, place: int) -> Iterator[str]:
    shard = split.shards[place]
    size = path.stat().st_size
    if size != shard.bytes:
        yield f"{shard.name}: {size} bytes; the index says {shard.bytes}"
    try:
        there, found = read_back(path, index.schema)
    except ValueError as error:
        yield f"{shard.name}: not a whole shard ({error})"
        return
    if there.sha256 != shard.sha256:
        yield f"{shard.name}: its SHA-256 differs from the index's"
    if found != split.rows(int(split.starts[place]), shard.count):
        yield f"{shard.name}: its members are not the ones of the index"


def _sample_fault(
    file: IO[bytes], index: Index, split: Split, number: int, reader: ShardReader
) -> str | None:
    """What is wrong with a sample's image or with the labels in its shard, the open ``file``."""
    try:
        reader.read([number])
    except CorruptSampleError as error:
        return error.reason
    row = split.table.part(number, 1)[0]
    file.seek(int(row["label_offset"]))
    try:
        labels = decode_labels(file.read(int(row["label_bytes"])), index.schema)
    except BadSample as error:
        return str(error)
    return None if labels == tuple(row["labels"]) else "its labels are not the index's"


def _numbers(split: Split, place: int) -> range:
    """The numbers of the samples in one shard."""
    return range(int(split.starts[place]), int(split.starts[place + 1]))


@lru_cache(maxsize=1)
def _opened(folder: Path, name: str) -> tuple[Index, ShardReader]:
    """The index and reader that a worker keeps from one shard to the next."""
    reader = ShardReader(folder, name, order="sequential")
    return reader.index, reader
