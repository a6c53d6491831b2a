"""How many processes train on a machine without GPUs."""

from __future__ import annotations

import os

MOST = 4


def cpu_ranks() -> int:
    """Processes that share this machine's cores: one per core, four at most.

    On a CPU two processes of one thread train faster than one of two threads, and each holds the whole model.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(n for n in (1, 2, MOST) if n <= max(cores, 1))
