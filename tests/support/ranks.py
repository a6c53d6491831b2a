"""Ranks as processes of their own, or as threads of this one."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import HashStore

from diffcore.engine.ranks import World

CPU = torch.device("cpu")


def run_ranks(work: Callable[..., None], ranks: range, *arguments: Any, seconds: float = 60) -> None:
    """``work(rank, *arguments)`` of each of ``ranks``, side by side; none is left when ``seconds`` are over.

    How each ended is for ``work`` to leave in a file.
    """
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=work, args=(rank, *arguments)) for rank in ranks]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()


def on_threads(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What ``work`` gives on each of ``size`` ranks that run side by side."""
    store, found = HashStore() if size > 1 else None, [None] * size

    def run(rank: int) -> None:
        found[rank] = work(World(rank, size, rank, CPU, store))

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return found
