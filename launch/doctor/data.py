"""A packed folder, here or behind a URL: its index, its shards, and how fast they are read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from diffbase.cli import InputError
from diffbase.redaction import shown
from launch.doctor.finding import Finding, bad, ok
from shards.header import FILE, Shard
from shards.read import ShardReader
from shards.remote.cache import Cache, RemoteFolder
from shards.remote.fetch import address, check_url, is_url, unreachable
from shards.table import Index

NAMED = 5
"""Of the shards that are missing, so many are named."""
ASKED = 256
"""Of the shards behind a URL, so many are looked for: each is a request."""
BATCH, SECONDS, THREADS = 64, 0.5, 2
"""Images of a read, how long reads go on, and threads as data.threads has them."""


def data(place: str) -> Iterator[Finding]:
    """The index of ``place``, a folder or a URL, its shards, and a timed read."""
    name = "data"
    try:
        index = _index(place)
    except InputError as error:
        todo = "pack it with python -m shards.pack, or give the folder that it made"
        if is_url(place):
            todo = "open that address from here by other means; is there a proxy, are there credentials?"
        yield bad(name, str(error), todo)
        return
    shards = index.shards
    counts = ", ".join(f"{len(split):,} {one}" for one, split in index.splits.items())
    yield ok(
        name, f"{shown(place)}: {counts} images of {index.size} x {index.size} in {len(shards):,} shards"
    )
    yield from _shards(place, index, shards)
    yield _timed(place, index)


def _index(place: str) -> Index:
    if not is_url(place):
        return Index.load(Path(place))
    check_url(place)
    # One look, before the cache: it would try again for longer than a check may take.
    if why := unreachable(address(place, FILE)):
        raise InputError(why)
    return RemoteFolder(place, Cache()).index


def _shards(place: str, index: Index, shards: Sequence[Shard]) -> Iterator[Finding]:
    name = "shard files"
    if is_url(place) or index.header.is_elsewhere:
        step = -(-len(shards) // ASKED) or 1
        some = shards[::step]
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(unreachable, [_address(place, shard) for shard in some])
            problems = [f"{shard.name}: missing" for shard, why in zip(some, answers, strict=True) if why]
    else:
        some = shards
        problems = [why for shard in shards if (why := _problem(index.folder / shard.path, shard))]
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        todo = "copy the folder again, or pack it anew; python -m shards.verify says more"
        yield bad(name, "; ".join(problems[:NAMED]) + more, todo)
    elif len(some) < len(shards):
        yield ok(name, f"{len(some)} of {len(shards):,} were looked for, and are there")
    else:
        yield ok(name, f"all {len(shards):,} are there")


def _address(place: str, shard: Shard) -> str:
    if shard.place is not None:
        check_url(shard.place)  # an index names it
    return shard.place or address(place, shard.name)


def _problem(path: Path, shard: Shard) -> str | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{shard.name}: missing"
    except OSError as error:
        return f"{shard.name}: {error.strerror or error}"
    return None if size == shard.bytes else f"{shard.name}: {size} bytes, the index says {shard.bytes}"


def _timed(place: str, index: Index) -> Finding:
    name, todo = "reading", "python -m shards.verify checks every sample"
    splits = [one for one, split in index.splits.items() if len(split)]
    if not splits:
        return bad(name, "no split holds an image", "pack it anew")
    split = "train" if "train" in splits else splits[0]
    # Behind a URL in packed order, which fetches one shard and no more.
    far = is_url(place) or index.header.is_elsewhere
    order = "sequential" if far else "full"
    try:
        with ShardReader(place, split, order=order, threads=THREADS) as reader:
            size, reads = min(BATCH, len(reader)), 0
            reader.read(range(size))  # a remote shard is fetched, and code is loaded
            began = time.monotonic()
            while (passed := time.monotonic() - began) < SECONDS:
                first = size * (reads + 1) if order == "full" else 0
                reader.read(range(first, first + size))
                reads += 1
    except InputError as error:
        return bad(name, str(error), todo)
    rate = f"{reads * size / passed:,.0f} images/s with {THREADS} threads"
    if far:
        return ok(name, f"{rate}, from the cache")
    return ok(name, f"{rate}, in shuffled order")
