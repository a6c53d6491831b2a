"""What is wrong with a packed folder: held against its index, sample by sample."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import lru_cache
from pathlib import Path

from diffbase.system_error import is_there, patiently
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
    index = Index.load(folder)
    tasks = [(folder, name, n) for name, split in index.splits.items() for n in range(len(split.shards))]
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
                if split_of(key, index.header.val) != name:
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
    return patiently(lambda: _faults(path, index, reader, place), path)


def _faults(path: Path, index: Index, reader: ShardReader, place: int) -> Found:
    split = reader.split
    shard = split.shards[place]
    faults: list[str] = []
    if not is_there(path):
        return [f"{shard.name}: missing, with {shard.count} samples"], {}
    size = path.stat().st_size
    if size != shard.bytes:
        faults.append(f"{shard.name}: {size} bytes; the index says {shard.bytes}")
    numbers = _numbers(split, place)
    try:
        there, found = read_back(path, index.schema)
        if there.sha256 != shard.sha256:
            faults.append(f"{shard.name}: its SHA-256 differs from the index's")
        if found != split.rows(numbers.start, shard.count):
            faults.append(f"{shard.name}: its members are not the ones of the index")
    except (tarfile.TarError, ValueError) as error:
        faults.append(f"{shard.name}: not a whole shard ({error})")
    bad: dict[int, str] = {}
    with path.open("rb") as file:
        for number in numbers:
            try:
                reader.read([number])
            except CorruptSampleError as error:
                bad[number] = str(error)
                continue
            row = split.samples[number]
            file.seek(int(row["label_offset"]))
            try:
                if decode_labels(file.read(int(row["label_bytes"])), index.schema) != tuple(row["labels"]):
                    raise BadSample("its labels are not the index's")
            except BadSample as error:
                bad[number] = f"{shard.name}: sample {split.key(number)}: {error}"
    return faults, bad


def _numbers(split: Split, place: int) -> range:
    """The numbers of the samples in one shard."""
    return range(int(split.starts[place]), int(split.starts[place + 1]))


@lru_cache(maxsize=1)
def _opened(folder: Path, name: str) -> tuple[Index, ShardReader]:
    """The index and reader that a worker keeps from one shard to the next."""
    reader = ShardReader(folder, name, order="sequential")
    return reader.index, reader
