"""python -m launch.ranks: the deepspeed launcher's arguments for a run on all of this machine.

One process a GPU. Without a GPU one a core, four at most: on a CPU two processes of one thread train faster
than one of two threads, and each holds the whole model.
"""

from __future__ import annotations

import os

from diffbase.nvml import count_gpus

CPU_RANKS = 4


def launcher_arguments() -> str:
    """``--num_gpus N``, or nothing where CUDA_VISIBLE_DEVICES already says which GPUs are ours.

    The launcher takes that variable for itself, but deletes it when it is told a number.
    """
    if gpus := count_gpus():
        return "" if os.environ.get("CUDA_VISIBLE_DEVICES") else f"--num_gpus {gpus}"
    return f"--num_gpus {cpu_ranks()}"


def cpu_ranks() -> int:
    """Processes that share this machine's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(n for n in (1, 2, CPU_RANKS) if n <= max(cores, 1))


if __name__ == "__main__":
    print(launcher_arguments())
