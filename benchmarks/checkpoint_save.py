"""Our checkpoints beside torch's distributed ones (``async_save``): what the loop waits for, all, a load.

    python benchmarks/checkpoint_save.py [--millions 20] [--ranks 2] [--rounds 3] [--onto DIR]

Gloo processes on this machine, each with its part of a network of ``--millions`` parameters as under ZeRO-1:
fp32 weights, EMA and both moments. The sides take turns on the same tensors, and each save is read back and
compared. Ours sends small networks' parts to one writer, makes SHA-256 digests and checks them when it reads;
torch's writes a file a rank with a pickled index and no digests. Prints one JSON object: medians over the
rounds, rank 0's seconds (``stall``: until training may go on; ``save``: until all is on the disk; ``load``),
and the ratios torch's / ours, above 1 where ours is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.checkpoint_scale import PARAMETERS, share
from diffbase.machine import malloc
from diffcore.engine.ranks import World, barrier
from diffcore.runs import checkpoint
from diffcore.runs.saver import Saver
from diffcore.runs.stored.record import KINDS, State
from diffcore.runs.stored.shards import Shards


class Holder:
    """What the saver asks of an engine and its EMA, over tensors that lie as DeepSpeed's do: one a state."""

    def __init__(self, world: World, sizes: dict[str, int]) -> None:
        self.group = torch.distributed.new_group(backend="gloo")
        self.world, self.sizes, self.parameters = world, sizes, sum(sizes.values())
        self.places = list(share(world.rank, world.size, sizes))
        torch.manual_seed(world.rank)
        self.states = {kind: torch.randn(sum(count for *_, count in self.places)) for kind in KINDS}
        self.shards = [self.states["ema"]]

    def masters(self) -> list[Tensor]:
        return [self.states["weights"]]

    def averages(self) -> dict[str, list[Tensor]]:
        return {"ema": self.shards}

    def moments(self) -> dict[str, list[Tensor]]:
        return {kind: [self.states[kind]] for kind in KINDS[2:]}

    def parts(self, shards: Sequence[Tensor]) -> Iterator[tuple[str, int, Tensor]]:
        parts = shards[0].split([count for *_, count in self.places])
        for (name, start, _), part in zip(self.places, parts, strict=True):
            yield name, start, part


def ours(folder: Path, saver: Saver, holder: Any) -> Iterator[None]:
    """Begin, end and read back; a step of the iterator each."""
    shapes = {name: [size] for name, size in holder.sizes.items()}
    saver.run = folder
    saver.save(State(1, 1, 1, {}, {}, holder.world.size, 1, "fp32", "", shapes), holder, holder)
    yield
    saver.wait()
    yield
    found, _ = checkpoint.newest(folder, whole=False) if holder.world.main else (None, [])
    shards = Shards(found or checkpoint.folder_at(folder, 1))
    back = {kind: torch.empty_like(state) for kind, state in holder.states.items()}
    for kind, state in back.items():
        for name, start, part in holder.parts([state]):
            part.copy_(shards.read(kind, name, start, len(part)))
    yield
    assert all(torch.equal(back[kind], state) for kind, state in holder.states.items())


def torchs(folder: Path, saver: Saver, holder: Any) -> Iterator[None]:
    """The same with ``torch.distributed.checkpoint``."""

    def tree(states: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = {kind: holder.parts([state]) for kind, state in states.items()}
        return {f"{k}/{n}/{start}": part for k, found in parts.items() for n, start, part in found}

    group = holder.group
    began = dcp.async_save(tree(holder.states), checkpoint_id=folder, process_group=group)
    yield
    began.result()
    yield
    back = {kind: torch.empty_like(state) for kind, state in holder.states.items()}
    dcp.load(tree(back), checkpoint_id=folder, process_group=group)
    yield
    assert all(torch.equal(back[kind], state) for kind, state in holder.states.items())


def rank(where: Path, rounds: int, sizes: dict[str, int]) -> None:
    """One of the processes."""
    warnings.filterwarnings("ignore")
    malloc.keep_freed()  # as training does on a CPU
    torch.distributed.init_process_group("gloo")
    number, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    words = torch.distributed.FileStore(f"{where}/words", count)
    world = World(number, count, number, torch.device("cpu"), words)
    holder, saver = Holder(world, sizes), Saver(where, 1, world)
    sides, took = {"ours": ours, "torchs": torchs}, defaultdict[str, list[float]](list)
    for turn in range(rounds + 1):  # the first of each warms up
        for side in sorted(sides, reverse=bool(turn % 2)):
            folder = where / side
            if world.main:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            barrier()
            began, steps = time.perf_counter(), sides[side](folder, saver, holder)
            for part in ("stall", "save", "load"):
                if part == "load":
                    barrier()
                    began = time.perf_counter()
                next(steps)
                if turn:
                    took[f"{side} {part}"].append(time.perf_counter() - began)
            next(steps, None)
            barrier()
    if world.main:
        found: dict[str, Any] = {name: round(statistics.median(row), 4) for name, row in took.items()}
        for part in ("stall", "save", "load"):
            pairs = zip(took[f"torchs {part}"], took[f"ours {part}"], strict=True)
            found[f"{part}, torchs / ours"] = round(statistics.median(a / b for a, b in pairs), 2)
        files = {side: sum(path.is_file() for path in (where / side).rglob("*")) for side in sides}
        print(json.dumps({"ranks": count, "parameters": sum(sizes.values()), "files": files} | found))
    barrier()
    torch.distributed.destroy_process_group()


def main() -> None:
    """Start the processes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--onto", type=Path, help="a folder of the disk to write to; default: the temporary one"
    )
    a = parser.parse_args()
    if "RANK" in os.environ:
        sizes = {f"block.{i:03d}.weight": int(a.millions * 1e6) // PARAMETERS + i for i in range(PARAMETERS)}
        rank(a.onto, a.rounds, sizes)
        return
    with tempfile.TemporaryDirectory(dir=a.onto) as where, socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
        free.close()
        command = [sys.executable, *sys.argv[:1], "--millions", str(a.millions), "--rounds", str(a.rounds)]
        place = {"WORLD_SIZE": str(a.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes = [
            subprocess.Popen([*command, "--onto", where], env=os.environ | place | {"RANK": str(number)})
            for number in range(a.ranks)
        ]
        codes = [process.wait() for process in processes]
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
