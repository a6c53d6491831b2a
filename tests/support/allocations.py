"""How much is allocated at most while something is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


def peak_of(work: Callable[[], T]) -> tuple[T, int]:
    """(what ``work()`` returns, the most bytes of CPU tensors that it held at once), by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as followed:
        result = work()
    tree: list[Any] = list(followed.profiler.kineto_results.experimental_event_tree())
    events = []
    while tree:
        event = tree.pop()
        tree.extend(event.children)
        if event.name == "[memory]":
            events.append((event.start_time_ns, event.typed[1].alloc_size))
    held = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        peak = max(peak, held)
    return result, peak
