"""glibc's malloc for training on a CPU: what a step frees stays with the process for the next one."""

from __future__ import annotations

import ctypes
import os

# mallopt's parameters (malloc.h) and the environment's names for the same (mallopt(3)).
SETTINGS = {
    "MALLOC_MMAP_MAX_": (-4, 0),  # large tensors come from the heap, not from maps of their own
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # whose end is never handed back
    "MALLOC_ARENA_MAX": (-8, 1),  # one heap, so that what one thread frees serves the others
}


def keep_freed() -> None:
    """Have malloc keep freed memory.

    A step frees its large tensors and the next one asks for the same again. By default glibc maps each of
    them anew, and the system clears every page as it is first touched: DeepSpeed's flat buffers made that a
    quarter of a ZeRO-1 step (``benchmarks/engine_step.py``). On a GPU torch's own allocator does the same.
    What the environment sets stays; without glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    for variable, (parameter, value) in SETTINGS.items():
        if variable not in os.environ:
            mallopt(parameter, value)
