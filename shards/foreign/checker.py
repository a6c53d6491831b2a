"""What is wrong with an index of other people's tars: each is read again and held against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from diffbase.cli import InputError, one_line
from diffbase.system_error import is_passing, told
from shards.foreign.indexer import scanner, tables
from shards.packing.workers import map_in_order
from shards.sources.base import Asked
from shards.sources.tars.collection import collect
from shards.sources.tars.places import Place
from shards.sources.tars.samples import Tar
from shards.table import Index, Row, Split

COMPARED = ("key", "offset", "labels' offset", "size", "labels' size", "checksum", "labels")
"""What a row holds, in its order."""


def problems(folder: Path, jobs: int = 1) -> Iterator[str]:
    """Every fault of the tars and of their index in ``folder``, one line each, in the order of the index.

    InputError where the index itself cannot be read.
    """
    yield from map(one_line, _problems(folder, jobs))


def _problems(folder: Path, jobs: int) -> Iterator[str]:
    index = Index.load(folder)
    header, reading = index.header, index.header.reading
    assert reading is not None
    asked = Asked(columns=reading.columns, bins=reading.bins, image_field=reading.image_field)
    shards = index.shards
    places: list[Place] = [s.path if s.is_elsewhere else folder / s.path for s in shards]
    work = partial(_attempt, asked=asked, crop=header.preprocessing.crop, size=header.preprocessing.size)
    tars: list[Tar] = []
    with closing(map_in_order(work, places, min(jobs, len(places)) or 1)) as found:
        for shard, tar in zip(shards, found, strict=True):
            if isinstance(tar, str):
                yield tar
                continue
            if tar.bytes != shard.bytes:
                yield f"{shard.name}: {tar.bytes} bytes; the index says {shard.bytes}"
            elif tar.sha256 != shard.sha256:
                yield f"{shard.name}: its SHA-256 differs from the index's"
            tars.append(tar)
    bad = [one for tar in tars for one in tar.bad]
    if len(bad) != header.skipped:
        yield from (f"{where}: {reason}" for _, where, reason in bad)
    if len(tars) < len(shards):  # the others' labels would be made of a part of the values
        return
    try:
        together = collect(places, [shard.name for shard in shards], asked, tars)
    except InputError as error:
        yield str(error)
        return
    if [(a, a.names) for a in together.schema] != [(a, a.names) for a in index.schema]:
        yield f"{folder.name}: the tars' fields give other attributes than the index's"
        return
    expected = _by_place(tables(together, header.val, folder).values())
    seen: set[str] = set()
    for (tar_name, offset), (split, row) in _by_place(index.splits.values()).items():
        where = f"{tar_name}: sample {row[0]}"
        if row[0] in seen:
            yield f"{where}: its key appears twice"
        seen.add(row[0])
        there = expected.pop((tar_name, offset), None)
        if there is None:
            yield f"{where}: no good image where the index says"
            continue
        if there[0] != split:
            yield f"{where}: belongs to another split"
        for what, mine, theirs in zip(COMPARED, row, there[1], strict=True):
            if mine != theirs:
                yield f"{where}: its {what} {'are' if what == 'labels' else 'is'} not the index's"
    for tar_name, offset in expected:
        yield f"{tar_name}: the image at byte {offset} is not in the index, or twice"


def _attempt(place: Place, *, asked: Asked, crop: int | None, size: int) -> Tar | str:
    """The scan of one tar, or what is wrong with it; the work of a worker process."""
    try:
        return scanner(asked, crop, size)(place)
    except InputError as error:
        return str(error)
    except OSError as error:
        if is_passing(error):
            raise
        return told(error)


def _by_place(splits: Iterable[Split]) -> dict[tuple[str, int], tuple[str, Row]]:
    """Split and row of every sample, by its tar's name and the image's offset."""
    return {
        (shard.name, row[1]): (split.name, row)
        for split in splits
        for number, shard in enumerate(split.shards)
        for row in split.rows(int(split.starts[number]), shard.count)
    }
