"""What is wrong with an index of other people's tars: each is read again and held against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from diffbase.cli import InputError, one_line
from diffbase.system_error import is_passing, told
from shards.foreign.indexer import scanner, tables
from shards.header import FILE
from shards.packing.workers import map_in_order
from shards.remote.fetch import address
from shards.sources.base import Asked
from shards.sources.tars.collection import collect
from shards.sources.tars.places import Place
from shards.sources.tars.samples import Tar, plain_key
from shards.table import Index, Split
from shards.tables.rows import Row

COMPARED = ("key", "offset", "labels' offset", "size", "labels' size", "checksum", "labels")
"""What a row holds, in its order."""


def problems(folder: Path, jobs: int = 1, url: str | None = None) -> Iterator[str]:
    """Every fault of the tars and of their index in ``folder``, one line each, in the order of the index.

    ``url``: where the tars lie that have no address, if not in ``folder``; the index is one that
    ``check_remote`` let pass. InputError where the index itself cannot be read.
    """
    yield from map(one_line, _problems(folder, jobs, url))


def _problems(folder: Path, jobs: int, url: str | None) -> Iterator[str]:
    index = Index.load(folder)
    header, reading = index.header, index.header.reading
    assert reading is not None
    asked = Asked(columns=reading.columns, bins=reading.bins, image_field=reading.image_field)
    shards = index.shards
    here: list[Place] = [s.path if s.is_elsewhere else folder / s.path for s in shards]
    places = here if url is None else [s.place or address(url, s.name) for s in shards]
    work = partial(_attempt, asked=asked, crop=header.preprocessing.crop, size=header.preprocessing.size)
    tars: list[Tar] = []
    bad: dict[tuple[str, str], str] = {}
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
            for key, where, reason in tar.bad:
                for one in (key, plain_key(key, shard.name)):  # as it is, and as where several tars have it
                    bad[shard.name, one] = f"{where}: {reason}"
    if bad:  # the others were left out
        indexed = ((tar_name, row[0]) for _, tar_name, row in _rows(index.splits.values()))
        bad = {sample: bad[sample] for sample in indexed if sample in bad}
        yield from bad.values()
    if len(tars) < len(shards):  # the others' labels would be made of a part of the values
        return
    try:
        together = collect(places, [shard.name for shard in shards], asked, tars)
    except InputError as error:
        yield str(error)
        return
    if [(a, a.names) for a in together.schema] != [(a, a.names) for a in index.schema]:
        yield f"{FILE}: the tars' fields give other attributes than the index's"
        return
    # Also behind a URL: a shard has no address of this machine's files.
    together = replace(together, places=here)
    now = tables(together, header.val, folder)
    expected = {(tar_name, row[1]): (split_name, row) for split_name, tar_name, row in _rows(now.values())}
    keys: set[str] = set()
    seen: set[tuple[str, int]] = set()
    for split_name, tar_name, row in _rows(index.splits.values()):
        where, place = f"{tar_name}: sample {row[0]}", (tar_name, row[1])
        if place in seen:
            yield f"{where}: its image is in the index twice"
            continue
        seen.add(place)
        if row[0] in keys:
            yield f"{where}: its key appears twice"
        keys.add(row[0])
        there = expected.pop(place, None)
        if there is None:
            if (tar_name, row[0]) not in bad:
                yield f"{where}: no good image where the index says"
            continue
        if there[0] != split_name:
            yield f"{where}: belongs to another split"
        for what, mine, theirs in zip(COMPARED, row, there[1], strict=True):
            if mine != theirs:
                yield f"{where}: its {what} {'are' if what == 'labels' else 'is'} not the index's"
    for tar_name, offset in expected:
        yield f"{tar_name}: the image at byte {offset} is not in the index"


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


def _rows(splits: Iterable[Split]) -> Iterator[tuple[str, str, Row]]:
    """Split, tar's name and row of every sample."""
    for split in splits:
        for number, shard in enumerate(split.shards):
            for row in split.rows(int(split.starts[number]), shard.count):
                yield split.name, shard.name, row
