"""What it costs a rank each step to hear whether all are to stop: an all-reduce beside words in the store.

    python benchmarks/stop_flag.py [--ranks 2 16 64] [--store 250 1000] [--steps 100]

``--ranks``: processes of this machine. A step is a barrier, which both sides share; then each side, in turns,
does what a training does after a step: gloo's all-reduce of one number that the step before began (older
code), or ``Agreement.of``. ``--store``: ranks of the second side alone, as threads of few processes with a
connection each; all ask at once. Prints one JSON object: microseconds a step of the slowest rank, without the
barrier (medians), open files of a rank, and ratios.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import threading
import time
import warnings
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from diffcore.engine.ranks import World
from diffcore.training.guards.stopping import Agreement

fork = multiprocessing.get_context("fork")  # torch is loaded once
TURNS = 5
PROCESSES = 8
CPU = torch.device("cpu")


class AllReduce:
    """The highest flag of all ranks, a step late, over a group of all of them."""

    def __init__(self) -> None:
        self.work: Any = None
        self.flag = torch.zeros(1, dtype=torch.int32)

    def of(self, mine: int) -> int:
        """As ``Agreement.of``."""
        agreed = 0
        if self.work is not None:
            self.work.wait()
            agreed = int(self.flag.item())
        self.flag = torch.tensor([mine], dtype=torch.int32)
        self.work = dist.all_reduce(self.flag, dist.ReduceOp.MAX, async_op=True)
        return agreed


def files() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count, not paths


def rank(number: int, count: int, port: int, steps: int, barrier: Barrier, out: Any) -> None:
    """One of the processes."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    start = files()
    store = dist.TCPStore("127.0.0.1", port, is_master=number == 0, wait_for_workers=False)
    agreement = Agreement(World(number, count, number, CPU, dist.PrefixStore("words", store)))
    words = files() - start
    dist.init_process_group("gloo", store=dist.PrefixStore("group", store), rank=number, world_size=count)
    sides: dict[str, Any] = {"all_reduce": AllReduce(), "words": agreement}
    open_files = {"all_reduce": files() - start - words, "words": words}
    took: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(TURNS + 1):  # the first warms up
        for name, side in sorted(sides.items(), reverse=bool(turn % 2)):
            seconds = 0.0
            for _ in range(steps):
                barrier.wait()
                began = time.perf_counter()
                assert side.of(0) == 0
                seconds += time.perf_counter() - began
            if turn:
                took[name].append(seconds / steps * 1e6)
    out.put((number, took, open_files))
    barrier.wait()
    os._exit(0)


def beside(count: int, port: int, steps: int) -> dict[str, Any]:
    """Both sides, of ``count`` processes."""
    barrier, out = fork.Barrier(count), fork.SimpleQueue()
    processes = [
        fork.Process(target=rank, args=(number, count, port, steps, barrier, out)) for number in range(count)
    ]
    found = results(processes, out)
    turns = {name: [max(row[name][i] for _, row, _ in found) for i in range(TURNS)] for name in found[0][1]}
    worst = {name: max(row[name] for *_, row in found) for name in turns}
    ratio = statistics.median(a / b for a, b in zip(turns["all_reduce"], turns["words"], strict=True))
    return {
        "microseconds a step": {name: round(statistics.median(row), 1) for name, row in turns.items()},
        "all_reduce / words": round(ratio, 1),
        "open files of rank 0": worst,
        "open files of another": {name: min(row[name] for *_, row in found) for name in worst},
    }


def threads(numbers: range, count: int, port: int, steps: int, barrier: Barrier, out: Any) -> None:
    """Some ranks of the second side as threads of one process."""
    took = dict.fromkeys(numbers, 0.0)

    def one(number: int) -> None:
        store = dist.TCPStore("127.0.0.1", port, is_master=number == 0, wait_for_workers=False)
        agreement = Agreement(World(number, count, number, CPU, store))
        for _ in range(steps):
            barrier.wait()  # the gradients
            began = time.perf_counter()
            assert agreement.of(0) == 0
            took[number] += time.perf_counter() - began
        barrier.wait()  # the store is rank 0's

    running = [threading.Thread(target=one, args=(number,)) for number in numbers]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    out.put(max(took.values()) / steps * 1e6)


def alone(count: int, port: int, steps: int) -> dict[str, Any]:
    """The words in the store of ``count`` ranks."""
    barrier, out = fork.Barrier(count), fork.SimpleQueue()
    processes = [
        fork.Process(target=threads, args=(range(first, count, PROCESSES), count, port, steps, barrier, out))
        for first in range(PROCESSES)
    ]
    found = results(processes, out)
    return {"microseconds a step": round(max(found), 1), "of which a rank": round(max(found) / count, 2)}


def results(processes: list[Any], out: Any) -> list[Any]:
    """What each process says; all are ended."""
    for process in processes:
        process.start()
    try:
        return [out.get() for _ in processes]
    finally:
        for process in processes:
            process.join(20)
            process.kill()


def main() -> None:
    """Measure each world and print."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 16, 64])
    parser.add_argument("--store", type=int, nargs="*", default=[250, 1000])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--port", type=int, default=20100)
    a = parser.parse_args()
    found: dict[str, Any] = {"beside": {}, "store": {}}
    for i, count in enumerate(a.ranks):
        found["beside"][count] = beside(count, a.port + i, a.steps)
    for i, count in enumerate(a.store, start=len(a.ranks)):
        found["store"][count] = alone(count, a.port + i, a.steps)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
