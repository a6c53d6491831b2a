"""What a checkpoint of many ranks costs the file system: a file a rank, as older code wrote it, beside ours.

    python benchmarks/checkpoint_scale.py [--ranks 256] [--onto 192] [--millions 8] [--sample 8] [--zero0 4]

Writes both checkpoints of a network of ``--millions`` parameters under ZeRO-1, without processes: the parts
of every rank are made and handed over in this one. Then ``--sample`` of ``--onto`` ranks load them in turns,
from the page cache. Prints one JSON object: files, and for a rank what it opens, reads and waits for
(medians). Openings of the older files are counted twice, since safetensors and torch both open them; and of
those the ranks check nothing, rank 0 reads and checks all before: the new side's ranks check what they read.

Then ``--zero0`` processes under gloo load ours as ZeRO-0 does, where each holds all: each on its own, and
each a part that it gives to the others (in turns; the slowest one's seconds, from the page cache).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from diffcore.engine.filling import CHUNK, fill_together
from diffcore.engine.ranks import World, barrier
from diffcore.runs import checkpoint, saver, tensors
from diffcore.runs.stored.record import KINDS, State
from diffcore.runs.stored.shards import Shards

PARAMETERS = 200


def share(rank: int, world: int, sizes: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """(parameter, start, count) of a rank's equal part of all parameters in a row, as under ZeRO-1 and 2."""
    step, begin = -(-sum(sizes.values()) // world), 0
    for name, size in sizes.items():
        low, high = max(rank * step - begin, 0), min((rank + 1) * step - begin, size)
        if low < high:
            yield name, low, high - low
        begin += size


def write(run: Path, world: int, values: dict[str, Tensor], sizes: dict[str, int], *, old: bool) -> Path:
    """A checkpoint of step 1; ``old``: a file a rank, with one digest each."""
    together = 1 if old else saver.ranks_a_file(4 * len(KINDS) * sum(sizes.values()), world)
    sent: dict[int, deque[bytes]] = defaultdict(deque)
    saver.receive_bytes = lambda source, _: bytearray(sent[source].popleft())
    manifest: dict[str, Any] = {}
    where = saver.temporary_of(run, 1)
    for writer in range(0, world, together):
        for rank in [*range(writer + 1, min(writer + together, world)), writer]:
            saver.send_bytes = lambda data, _to, _group, rank=rank: sent[rank].append(bytes(data))
            mine, starts = {}, {}
            for name, start, count in share(rank, world, sizes):
                for kind in KINDS:
                    mine[f"{kind}/{name}"] = values[f"{kind}/{name}"][start : start + count].clone()
                    starts[f"{kind}/{name}"] = start
            cpu = torch.device("cpu")
            found = saver.collected(mine, starts, World(rank, world, 0, cpu), together, None)
            if found is not None:
                place = World(writer // together, -(-world // together), 0, cpu)
                manifest |= saver.write_shard(where, place, *found)
    if old:
        manifest = {name: said for path in manifest for name, said in saver._synced(where / path).items()}
    shapes = {name: [size] for name, size in sizes.items()}
    saver.finish(run, State(1, 1, 1, {}, {}, world, 1, "fp32", "", shapes), manifest)
    return checkpoint.folder_at(run, 1)


class Counted:
    """Counts what this process opens and reads of a checkpoint's shards."""

    def __init__(self) -> None:
        self.opens = self.read = 0
        self._open, self._safe, self._piece = tensors.open_plain, tensors.safe_open, tensors.SealedFile._read
        counted = self

        def opening(path: Any) -> int:
            counted.opens += 1
            return counted._open(path)

        def safely(*given: Any, **how: Any) -> Any:
            counted.opens += 2
            return counted._safe(*given, **how)

        def piece(file: Any, start: int) -> bytes:
            data = counted._piece(file, start)
            counted.read += len(data)
            return data

        tensors.open_plain, tensors.safe_open, tensors.SealedFile._read = opening, safely, piece


def load(folder: Path, rank: int, world: int, sizes: dict[str, int], values: dict[str, Tensor]) -> int:
    """All that a rank holds, compared with what was written; the bytes of it."""
    shards, size = Shards(folder), 0
    for kind in KINDS:
        for name, start, count in share(rank, world, sizes):
            found = shards.read(kind, name, start, count)
            assert torch.equal(found, values[f"{kind}/{name}"][start : start + count])
            size += 4 * count
    return size


def alike(rank: int, world: int, folder: Path, meet: Path, sizes: dict[str, int], turns: int) -> None:
    """One of ``world`` ranks that hold all of a checkpoint; what loading it took goes into a file."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meet}/meet", rank=rank, world_size=world
    )
    place = World(rank, world, rank, torch.device("cpu"))
    held = {(kind, name): torch.empty(size) for kind in KINDS for name, size in sizes.items()}
    counted, rows = Counted(), list[dict[str, float]]()
    for turn in range(2 * turns):
        shards = Shards(folder)
        barrier()
        counted.opens = counted.read = 0
        began = time.perf_counter()
        if turn % 2:
            fill_together(held, shards.slices, shards.read, place, min(CHUNK, sum(sizes.values())))
        else:
            for (kind, name), tensor in held.items():
                tensor.copy_(shards.read(kind, name, 0, len(tensor)))
        rows.append(
            {"s": time.perf_counter() - began, "opens": counted.opens, "MiB read": counted.read / 2**20}
        )
    (meet / f"{rank}").write_text(json.dumps(rows))
    torch.distributed.destroy_process_group()


def each_holds_all(folder: Path, meet: Path, world: int, sizes: dict[str, int], turns: int) -> dict[str, Any]:
    """Of both ways the slowest rank's seconds, and the sums of what all opened and read: medians."""
    meet.mkdir()
    spawn = multiprocessing.get_context("spawn")
    ranks = [
        spawn.Process(target=alike, args=(rank, world, folder, meet, sizes, turns)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    found = [json.loads((meet / f"{rank}").read_text()) for rank in range(world)]
    result = {}
    for first, way in enumerate(("each reads all", "each a part for all")):
        of = [[rank[turn] for rank in found] for turn in range(first, 2 * turns, 2)]
        result[way] = {
            name: round(statistics.median(take(row[name] for row in turn) for turn in of), 3)
            for name, take in (("s", max), ("opens", sum), ("MiB read", sum))
        }
    return {"ranks": world} | result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--onto", type=int, default=192)
    parser.add_argument("--millions", type=float, default=8)
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--zero0", type=int, default=4)
    a = parser.parse_args()
    sizes = {f"block.{i:03d}.weight": int(a.millions * 1e6) // PARAMETERS + i for i in range(PARAMETERS)}
    values = {f"{kind}/{name}": torch.randn(size) for kind in KINDS for name, size in sizes.items()}
    counted = Counted()
    rows: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as where:
        sides = {
            side: write(Path(where) / side, a.ranks, values, sizes, old=side == "before")
            for side in ("before", "now")
        }
        for number in range(a.sample):
            for side, folder in sides.items():
                row = rows.setdefault(side, defaultdict(list))
                counted.opens = counted.read = 0
                began = time.perf_counter()
                assert checkpoint.check(folder, whole=side == "before") is None
                row["rank 0 checks, s"].append(time.perf_counter() - began)
                counted.opens = counted.read = 0
                began = time.perf_counter()
                held = load(folder, number * a.onto // a.sample, a.onto, sizes, values)
                row["a rank loads, s"].append(time.perf_counter() - began)
                row["opens of a rank"].append(counted.opens)
                row["MiB read by a rank"].append((held if side == "before" else counted.read) / 2**20)
                row["MiB held by a rank"].append(held / 2**20)
        alone = each_holds_all(sides["now"], Path(where) / "meet", a.zero0, sizes, 3) if a.zero0 else {}
        print(
            json.dumps(
                {"ranks": a.ranks, "onto": a.onto, "ZeRO-0": alone}
                | {
                    side: {"files": len(list(folder.glob("shard-*")))}
                    | {name: round(statistics.median(row), 4) for name, row in rows[side].items()}
                    for side, folder in sides.items()
                }
            )
        )


if __name__ == "__main__":
    main()
