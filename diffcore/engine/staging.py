"""From pinned memory to a GPU, one batch ahead of the work on it, so that nobody waits for a copy.

Two sets of buffers take turns. A stream of its own copies batch k + 1 while batch k is worked on; each side
waits for the other on the device, by events. The program itself never waits.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor

SETS = 2
"""Sets of buffers on the device."""
Tensors = tuple[Tensor, ...]


def buffers(micro: int, size: int, attributes: int, device: torch.device | str) -> list[Tensor]:
    """What ``staged`` holds on a GPU for a run: pixels uint8 [B, H, W, 3], labels [B, A] and positions [B],
    for each of its sets."""
    made = []
    for _ in range(SETS):
        made.append(torch.empty(micro, size, size, 3, dtype=torch.uint8, device=device))
        made += [torch.empty(micro, *more, dtype=torch.int64, device=device) for more in [[attributes], []]]
    return made


def pinned(tensors: Tensors, device: torch.device) -> Tensors:
    """The same in page-locked memory, from which a GPU copies by itself; as they are for other devices."""
    if device.type != "cuda":
        return tensors
    with torch.cuda.device(device):  # else a thread would make a context on the first GPU
        return tuple(tensor.pin_memory() for tensor in tensors)


def staged(batches: Iterator[Tensors], device: torch.device) -> Generator[Tensors, None, None]:
    """``batches`` of pinned tensors, all of the same shapes, on ``device``: a GPU.

    What is yielded is overwritten once the next batch was asked for and the work enqueued until then is done.
    """
    yield from _staged(batches, device, torch.cuda)


def _staged(batches: Iterator[Tensors], device: torch.device, cuda: Any) -> Generator[Tensors, None, None]:
    copying, buffers = cuda.Stream(device), list[Tensors]()
    free, there = ([cuda.Event() for _ in range(SETS)] for _ in range(2))
    last = -1
    try:
        for k, batch in enumerate(batches):
            # Made on the stream of the work: its pool has them, and a first copy waits for what was there.
            if k < SETS:
                buffers.append(tuple(torch.empty_like(x, device=device) for x in batch))
                free[k].record(cuda.current_stream(device))
            copying.wait_event(free[k % SETS])
            with cuda.stream(copying):
                for buffer, x in zip(buffers[k % SETS], batch, strict=True):
                    buffer.copy_(x, non_blocking=True)
            there[k % SETS].record(copying)
            last = k
            if k:
                cuda.current_stream(device).wait_event(there[(k - 1) % SETS])
                yield buffers[(k - 1) % SETS]
                free[(k - 1) % SETS].record(cuda.current_stream(device))
        if last >= 0:
            cuda.current_stream(device).wait_event(there[last % SETS])
            yield buffers[last % SETS]
    finally:
        # Before anything else gets the buffers' memory.
        cuda.current_stream(device).wait_stream(copying)
