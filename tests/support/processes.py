"""Ranks as processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


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
