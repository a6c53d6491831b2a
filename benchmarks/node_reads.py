"""What a node reads of what it needs, by order and number of nodes: a simulation of indexes, and real shards.

    python benchmarks/node_reads.py [--samples 4000000] [--quick]

Each world reads one epoch with ``--ranks`` ranks a node, as ``positions_of`` shares it out; some of its nodes
are looked at. Per order and number of nodes, all as multiples of the bytes of the node's samples:

- "read": what a disk reads that gives PIECE bytes at a time, where a piece is read once while the window that
  it is asked for in lasts (``full``: while the batch lasts), and nothing else is asked for ahead;
- "asked": what the reader's read-ahead asks for (``Order.windows``), which is of ``block`` every window;
- "shards": the shards that the node touches in an epoch, whole, each once, as from a URL into a large cache;
- "shards_in_3_epochs": those of three epochs, each once, against three times the samples;
- "worst": the larger one of "read" and "asked" of the worst node looked at.

"elastic" has one global batch for all worlds; "other_worlds" have their own ones, by size. "shuffling": pairs
of samples of one global batch, and of a batch and the next one, that are from one shard, and the time that
the order takes. "real" packs small images and reads an epoch through ShardReader, one reader a rank, counting
what they tell the system that they will read (posix_fadvise) and read (pread); the headers of the tars count
as needed. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from diffcore.training.batches import positions_of
from shards import order as order_module
from shards.order import Extent, Order
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.positions import streams as streams_module
from shards.read import ShardReader

SHARD, BYTES = 1000, 5400  # samples of a shard, bytes of a sample
PIECE = 128 << 10  # bytes that Linux reads at least, reading ahead
ELASTIC, BATCH = [1, 8, 125, 1000], 8000
OTHERS = [7, 96, 384, 512, 700, 768, 896, 960, 1000]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--samples", type=int, default=4_000_000)
    parser.add_argument("--ranks", type=int, default=8, help="of a node")
    parser.add_argument("--nodes", type=int, nargs="+", help="of the elastic worlds")
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples, few worlds")
    given = parser.parse_args()
    count = given.samples // 10 if given.quick else given.samples
    nodes = given.nodes or ([1, 8, 1000] if given.quick else ELASTIC)
    others = [3, 768, 1000] if given.quick else OTHERS
    orders = ("full", "block", "streams")
    report = {
        "samples": count,
        "ranks_a_node": given.ranks,
        "elastic": {name: {n: world(name, count, n, given.ranks, BATCH) for n in nodes} for name in orders},
        "other_worlds": {n: other_world(count, n, given.ranks) for n in others},
        "shuffling": {name: shuffling(name, count) for name in (*orders, "shards")},
        "real": {name: real(name) for name in orders},
    }
    print(json.dumps(report, indent=2))


def order_of(name: str, count: int, batch: int) -> Order:
    """Of the simulated set."""
    return Order(name, 0, Extent(count, SHARD, BYTES), batch=batch)


def places_of(node: int, nodes: int, ranks: int, batch: int, name: str) -> np.ndarray:
    """A node's places in each global batch, ascending; one micro batch a step."""
    micro, first = batch // (nodes * ranks), node * ranks
    shares = [positions_of(0, 0, first + r, nodes * ranks, micro, batch, name) for r in range(ranks)]
    return np.concatenate(shares)


def other_world(count: int, nodes: int, ranks: int) -> dict[int, Any]:
    """``streams`` with global batches of 4,000 samples or more that the ranks share, once and three times."""
    least = nodes * ranks * -(-4000 // (nodes * ranks))
    looked_at = 10 if nodes > 100 else 1
    return {batch: world("streams", count, nodes, ranks, batch, looked_at) for batch in (least, 3 * least)}


def world(name: str, count: int, nodes: int, ranks: int, batch: int, looked_at: int = 2) -> dict[str, float]:
    """The multiples of one order and world."""
    order = order_of(name, count, batch)
    steps = np.arange(count // batch)[:, None] * batch
    found: list[dict[str, float]] = []
    for node in np.unique(np.linspace(0, nodes - 1, min(nodes, looked_at)).astype(int)).tolist():
        positions = (steps + places_of(node, nodes, ranks, batch, name)).ravel()
        found.append(node_reads(order, positions, batch))
    return {key: round(float(np.mean([one[key] for one in found])), 3) for key in found[0]} | {
        "worst": round(max(max(one["read"], one["asked"]) for one in found), 3)
    }


def node_reads(order: Order, positions: np.ndarray, batch: int) -> dict[str, float]:
    """The multiples of one node."""
    numbers, windows, asked = np.empty_like(positions), np.empty_like(positions), 0
    for at in range(0, len(positions), 1 << 20):
        some = slice(at, at + (1 << 20))
        numbers[some] = order.sample_of(positions[some])
        if order.streams is None:
            windows[some] = positions[some] // (order_module.WINDOW if order.name == "block" else batch)
        else:
            firsts, _ = order.streams.bounds(positions[some])
            windows[some] = order.streams.split(positions[some])[1] * order.extent.count + firsts
    if order.streams is not None:
        _, rows = np.unique(windows, return_index=True)
        firsts, stops = order.streams.bounds(positions[rows])
        asked = int((stops - firsts).sum())
    elif order.name == "block":
        asked = len(np.unique(windows)) * order_module.WINDOW
    piece = max(1, PIECE // BYTES)
    pieces = -(-order.extent.count // piece)
    read = len(np.unique(windows * pieces + numbers // piece)) * piece
    touched = np.unique(numbers // SHARD)
    later = [np.unique(order.sample_of(positions + e * order.extent.count) // SHARD) for e in (1, 2)]
    needed = len(positions)
    return {
        "read": read / needed,
        "asked": asked / needed,
        "shards": len(touched) * SHARD / needed,
        "shards_in_3_epochs": len(np.unique(np.concatenate([touched, *later]))) * SHARD / (3 * needed),
    }


def shuffling(name: str, count: int) -> dict[str, float]:
    """How samples that come together are related; ``full`` is what chance gives."""
    batch = 4096
    order = order_of(name, count, batch)
    within, between, pairs = 0.0, 0.0, batch * (batch - 1) / 2
    steps = np.linspace(0, count // batch - 2, 40).astype(int).tolist()
    for step in steps:
        numbers = order.sample_of(np.arange(2 * batch) + step * batch) // SHARD
        one, other = (np.bincount(half, minlength=count // SHARD + 1) for half in np.split(numbers, 2))
        within += float((one * (one - 1)).sum() / 2 / pairs)
        between += float((one * other).sum() / batch**2)
    started = time.perf_counter()
    for step in steps:
        order.sample_of(np.arange(batch) + step * batch)
    seconds = time.perf_counter() - started
    return {
        "pairs_of_a_batch_of_one_shard": round(within / len(steps), 6),
        "pairs_with_the_next_batch_of_one_shard": round(between / len(steps), 6),
        "microseconds_a_position": round(seconds / len(steps) / batch * 1e6, 2),
    }


def real(name: str, nodes: int = 8, ranks: int = 2, batch: int = 64) -> dict[str, float]:
    """An epoch of 6,400 small images, in windows that are as small beside the set as they are in use."""
    per_node = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch.object(order_module, "WINDOW", 256),
        mock.patch.object(order_module, "BLOCK", 16),
        mock.patch.object(streams_module, "WINDOW", 256),
        mock.patch.object(streams_module, "PART", 64 << 10),
    ):
        folder = real_shards(Path(scratch))
        for node in range(nodes):
            world = nodes * ranks
            counts = Counted()
            for rank in range(node * ranks, (node + 1) * ranks):
                with ShardReader(folder, order=name, batch=batch) as reader, counts.of(reader):
                    for step in range(len(reader) // batch):
                        mine = positions_of(step, 0, rank, world, batch // world, batch, name)
                        counts.needed += len(mine) * reader.order.extent.sample_bytes
                        reader.read(mine)
            per_node.append((counts.asked / counts.needed, counts.read / counts.needed))
    asked, read = (round(float(np.mean(column)), 3) for column in zip(*per_node, strict=True))
    return {"nodes": nodes, "ranks": nodes * ranks, "asked": asked, "read": read}


class Counted:
    """Bytes that a node's ranks need, ask the system for ahead (all together once) and read."""

    def __init__(self) -> None:
        self.needed = self.asked = self.read = 0
        self._seen: set[bytes] = set()

    @contextmanager
    def of(self, reader: ShardReader) -> Iterator[None]:
        """While one rank reads."""
        told = reader._images.advise
        advise, pread = os.posix_fadvise, os.pread
        is_new = False

        def telling(numbers: np.ndarray) -> None:
            nonlocal is_new
            is_new = numbers.tobytes() not in self._seen
            self._seen.add(numbers.tobytes())
            told(numbers)

        def advising(descriptor: int, start: int, length: int, advice: int) -> None:
            self.asked += length * is_new
            advise(descriptor, start, length, advice)

        def reading(descriptor: int, length: int, start: int) -> bytes:
            self.read += length
            return pread(descriptor, length, start)

        with (
            mock.patch.object(reader._images, "advise", telling),
            mock.patch("os.posix_fadvise", advising),
            mock.patch("os.pread", reading),
        ):
            yield


def real_shards(scratch: Path) -> Path:
    """Noise: 6,400 images of 32 x 32 in shards of 50."""
    generator = np.random.default_rng(0)
    (scratch / "source").mkdir()
    for number in range(6400):
        pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(scratch / "source" / f"{number}.png")
    pack(scratch / "source", scratch / "out", Settings(size=32, val=0.0, shard_size=50))
    return scratch / "out"


if __name__ == "__main__":
    main()
