"""Single damaged or missing files of a packed folder, made again to the same bytes.

A shard is made from the source, with the settings that the index tells; a sample table from its shards.
What comes out is held against the index's SHA-256: it takes the old file's place where they agree, else the
old one stays.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from diffbase.files import open_atomic, write_atomic
from diffbase.system_error import NO_FILE, read_bytes, sha256_of
from shards.codec import KEEP, KEPT
from shards.header import FILE, INDEX_CAP, Header, Shard, SplitEntry, Table, parse_header
from shards.packing.plan import Plan, Settings, plan_shards
from shards.packing.portion import encode
from shards.packing.tar import OtherBytesError, read_back, write_shard
from shards.packing.workers import map_in_order
from shards.sources import AS_IT_IS, Asked, Sample, Source, detect
from shards.tables.listed import open_shards
from shards.tables.write import Stream, block_bytes, key_width, table_bytes, table_of


def repair(
    folder: Path, path: Path | Sequence[str], *, asked: Asked = AS_IT_IS, jobs: int = 1
) -> Iterator[str]:
    """Make what is damaged or missing in ``folder`` again from the source at ``path``; a line for each file.

    The source, as ``detect`` takes it, is looked at where a shard is damaged. InputError where it is not what
    was packed, or the index is of other people's tars or cannot be read; nothing has changed then.
    """
    header = parse_header(read_bytes(folder / FILE, INDEX_CAP), folder / FILE)
    if header.is_foreign:
        raise InputError(
            f"{folder}: an index of other people's tars, which --repair cannot make again: "
            "copy them back, or run shards.index again into another --out"
        )
    shards = {name: _shards(folder, header, entry) for name, entry in header.splits.items()}
    if wanted := {s.name: s for some in shards.values() for s in some if not _is_whole(folder, s)}:
        source = detect(path, header.source.kind, asked)
        yield from _shards_again(folder, header, wanted, source, jobs)
    for name, entry in header.splits.items():
        if not _is_whole(folder, entry.samples):
            yield _table_again(folder, header, entry, shards[name])
        if entry.blocks and not _is_whole(folder, entry.blocks):
            yield _blocks_again(folder, entry, entry.blocks)


def _shards(folder: Path, header: Header, entry: SplitEntry) -> Sequence[Shard]:
    """The shards of a split; InputError where their list is damaged, which nothing can make again."""
    return open_shards(folder, entry, header)[0] if entry.listed else entry.shards


def _is_whole(folder: Path, file: Shard | Table) -> bool:
    path = folder / file.name
    try:
        return sha256_of(path) == file.sha256
    except IsADirectoryError:
        raise InputError(f"{path}: a folder is in the place of a file; remove it") from None
    except NO_FILE:
        return False


def _shards_again(
    folder: Path, header: Header, wanted: dict[str, Shard], source: Source, jobs: int
) -> Iterator[str]:
    settings = _settings(folder, header, source)
    waiting: deque[Plan] = deque()

    def chunks() -> Iterator[list[Sample]]:
        for plan in plan_shards(source.samples(), settings):
            if plan.name in wanted:
                waiting.append(plan)
                yield from plan.chunks()

    crop, size, encoding = settings.crop_for(source), settings.size, settings.encoding
    names = [attribute.name for attribute in source.schema]
    work = partial(encode, names=names, crop=crop, size=size, encoding=encoding)
    left = set(wanted)
    with closing(map_in_order(work, chunks(), jobs)) as encoded:
        for first in encoded:
            plan = waiting.popleft()
            left.remove(plan.name)
            portions = chain([first], islice(encoded, len(plan.chunks()) - 1))
            parts = (portion.records for portion in portions if portion.records.rows)
            try:
                write_shard(folder / plan.name, parts, wanted[plan.name].sha256)
                yield f"{plan.name}: made again from {source.name}"
            except OtherBytesError:
                yield (
                    f"{plan.name}: not repaired: {source.name} gives other bytes than the index's SHA-256 "
                    "(another content, or another version of Pillow)"
                )
    yield from (f"{name}: not repaired: {source.name} holds no samples for it" for name in sorted(left))


def _settings(folder: Path, header: Header, source: Source) -> Settings:
    """The settings of a pack, told by its index. InputError where ``source`` cannot be what was packed."""
    how = header.preprocessing
    image = KEEP if how.encoding == KEPT else how.encoding
    settings = Settings(how.size, how.crop, image, header.shard_size, header.val)
    about = settings.about(source, header.source.digest)
    labels = [(attribute.name, attribute.variants) for attribute in source.schema]
    for what, there, given in (
        ("labels", [(attribute.name, attribute.variants) for attribute in header.attributes], labels),
        ("preprocessing", how.model_dump(), about["preprocessing"]),
        ("splits", header.split_by, source.split_by),
    ):
        if there != given:
            raise InputError(f"{folder}: not packed from {source.name} as it is read here: other {what}")
    return settings


def _table_again(folder: Path, header: Header, entry: SplitEntry, shards: Sequence[Shard]) -> str:
    name = entry.samples.name
    if broken := next((shard for shard in shards if not _is_whole(folder, shard)), None):
        return f"{name}: not repaired: its shard {broken.name} is damaged"

    def tables() -> Iterator[NDArray[np.void]]:
        for shard in shards:
            yield table_of(read_back(folder / shard.name, header.attributes)[1], header.attributes)

    digest = hashlib.sha256()
    try:
        width = max(map(key_width, tables()), default=1)
        rows = Stream(entry.count, width, frozenset(), tables)
        with open_atomic(folder / name) as file:
            for data in table_bytes(rows, header.attributes, bool(header.unknown)):
                file.write(data)
                digest.update(data)
            if digest.hexdigest() != entry.samples.sha256:
                raise OtherBytesError
    except OtherBytesError:
        return f"{name}: not repaired: its shards give other bytes than the index's SHA-256"
    except ValueError as error:
        return f"{name}: not repaired: {error}"
    return f"{name}: made again from its shards"


def _blocks_again(folder: Path, entry: SplitEntry, blocks: Table) -> str:
    if not _is_whole(folder, entry.samples):
        return f"{blocks.name}: not repaired: {entry.samples.name} is damaged"
    data = block_bytes(folder / entry.samples.name, entry)
    if hashlib.sha256(data).hexdigest() != blocks.sha256:
        return f"{blocks.name}: not repaired: the rows give other bytes than the index's SHA-256"
    write_atomic(folder / blocks.name, data)
    return f"{blocks.name}: made again from {entry.samples.name}"
