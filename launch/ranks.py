"""python -m launch.ranks: how many processes a run on this machine wants (for deepspeed --num_gpus).

One a GPU. Without a GPU one a core, four at most: on a CPU two processes of one thread train faster than one
of two threads, and each holds the whole model.
"""

from __future__ import annotations

import os

from diffcore.memory.nvml import count_gpus

CPU_RANKS = 4


def local_ranks() -> int:
    """Processes for one node."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    powers = [n for n in (1, 2, 4) if n <= min(cores, CPU_RANKS)]
    return count_gpus() or powers[-1]


if __name__ == "__main__":
    print(local_ranks())
