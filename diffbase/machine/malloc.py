"""glibc's malloc: what a step, or an image, frees stays with the process for the next one."""

from __future__ import annotations

import ctypes
import os
import resource

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and values of malloc.h
# mallopt's parameters (malloc.h) and the environment's names for the same (mallopt(3)).
SETTINGS = {
    "MALLOC_MMAP_MAX_": (-4, 0),  # large tensors come from the heap, not from maps of their own
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # whose end is never handed back
    "MALLOC_ARENA_MAX": (-8, 1),  # one heap, so that what one thread frees serves the others
}


class Mallinfo2(ctypes.Structure):
    """What malloc counts over all its heaps, in bytes but for the numbers of blocks (mallinfo(3))."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
            "keepcost",
        )
    )  # fmt: skip


def keep_freed() -> None:
    """Have malloc keep freed memory.

    A step frees its large tensors and the next one asks for the same again. By default glibc maps each of
    them anew, and the system clears every page as it is first touched: DeepSpeed's flat buffers made that a
    quarter of a ZeRO-1 step (``benchmarks/engine_step.py``). On a GPU torch's own allocator does the same.
    What the environment sets stays. Nothing happens without glibc, and under ``ulimit -v``, where addresses
    that are kept could be missing elsewhere.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    if mallopt is None or limited or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    for variable, (parameter, value) in SETTINGS.items():
        if variable not in os.environ:
            mallopt(parameter, value)


def keep_images() -> None:
    """Have malloc keep what an image of some megabytes frees for the next one.

    glibc maps each of them anew otherwise, and to have its pages cleared takes longer than to inflate it.
    Other C libraries lack the call, or do what they like. Cheap enough to be called for every portion.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 256 << 20)


def kept() -> int:
    """Bytes that were freed and that malloc keeps; 0 where it does not say (glibc before 2.33)."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = Mallinfo2
    return int(mallinfo2().fordblks)
