"""What is wrong with a packed folder: held against its index, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import lru_cache
from pathlib import Path
from typing import IO

from diffbase.cli import one_line
from diffbase.system_error import is_passing, is_there, patiently, reading
from shards.codec.decode import BadSample
from shards.codec.labels import decode_labels
from shards.packing.plan import split_of
from shards.packing.tar import read_back
from shards.packing.workers import map_in_order
from shards.read import CorruptSampleError, ShardReader
from shards.table import Index, Split

Task = tuple[Path, str, int]  # folder, split, number of the shard in it
Found = tuple[list[str], dict[int, str]]  # faults of a shard, and of its samples by their number


def problems(folder: Path, jobs: int = 1) -> Iterator[str]:
    """Every fault of a packed folder, one line each; InputError where the index itself cannot be read.

    The shards are looked at by ``jobs`` processes.
    """
    yield from map(one_line, _problems(folder, jobs))


def _problems(folder: Path, jobs: int) -> Iterator[str]:
    index = Index.load(folder)
    tasks = [(folder, name, n) for name, split in index.splits.items() for n in range(len(split.shards))]
    by_key = index.header.split_by == "key"
    seen: set[str] = set()
    with (
        ExitStack() as stack,
        closing(map_in_order(_look_at, tasks, min(jobs, len(tasks)) or 1)) as results,
    ):
        stack.callback(_opened.cache_clear)  # the folder may change before the next call in this process
        for (_, name, place), (shard_faults, sample_faults) in zip(tasks, results, strict=True):
            split = index.splits[name]
            shard = split.shards[place]
            yield from shard_faults
            if not is_there(folder / shard.name):
                continue
            for number in _numbers(split, place):
                key = split.key(number)
                if key in seen:
                    yield f"{shard.name}: sample {key}: its key appears twice"
                seen.add(key)
                if by_key and split_of(key, index.header.val) != name:
                    yield f"{shard.name}: sample {key}: belongs to another split"
                if number in sample_faults:
                    yield sample_faults[number]


def _look_at(task: Task) -> Found:
    """The faults of one shard and of its samples; the work of a worker process.

    OSError of the system after some tries: it says nothing of what is in the shard.
    """
    folder, name, place = task
    index, reader = _opened(folder, name)
    path = folder / index.splits[name].shards[place].name
    try:
        return patiently(lambda: _faults(path, index, reader, place), path)
    except OSError as error:
        if is_passing(error):
            raise
        return [f"{path.name}: cannot be read ({error.strerror or error})"], {}


def _faults(path: Path, index: Index, reader: ShardReader, place: int) -> Found:
    split = reader.split
    shard = split.shards[place]
    if not is_there(path):
        return [f"{shard.name}: missing, with {shard.count} samples"], {}
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
    row = split.samples[number]
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
