"""Sizes in DeepSpeed's JSON that are "auto": they follow the network's parameters.

DeepSpeed's own (500 million elements) and fixed ones weigh more than a small network's states, and defeat
ZeRO: 50 million fp32 elements are 191 MiB. Every size is in elements, which are as wide as the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

PARTS = 8
"""Buckets that a network's gradients fill: the first is reduced when an eighth of backward is done, and an
eighth is left to reduce after it. (torch's DDP has buckets of 25 MiB: 12 for 77 million parameters.)"""
LEAST = 1 << 18
"""1 MiB of fp32, as DDP's first bucket: what is smaller pays more for the start of a collective."""
MOST = 50_000_000
"""What was here before for every network: 95 MiB of bf16."""
PERSISTENT = 100_000
"""DeepSpeed's own: elements of the largest parameters that stay whole on every rank under ZeRO-3."""
WHOLE = 16
"""What stays whole is at most 1 / WHOLE of the weights. Of a small network nearly all would."""


def bucket(numels: Sequence[int]) -> int:
    """Elements of a bucket for parameters of these sizes. What is larger alone is reduced as it is."""
    total = sum(numels)
    return max(1, min(total, MOST, max(LEAST, -(-total // PARTS))))


def divided(numels: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of neighbours, together in buckets of at most ``capacity`` elements; a larger one is alone."""
    buckets: list[list[int]] = []
    room = 0
    for number, numel in enumerate(numels):
        if not buckets or numel > room:
            buckets.append([])
            room = capacity
        buckets[-1].append(number)
        room -= numel
    return buckets


def persistent(numels: Sequence[int]) -> int:
    """Elements up to which a parameter stays whole under ZeRO-3."""
    largest = 0
    for size in sorted({numel for numel in numels if numel <= PERSISTENT}):
        if WHOLE * sum(numel for numel in numels if numel <= size) > sum(numels):
            return largest
        largest = size
    return PERSISTENT


AUTO: dict[str, Callable[[Sequence[int]], int]] = {
    "reduce_bucket_size": bucket,
    "stage3_prefetch_bucket_size": bucket,
    "stage3_param_persistence_threshold": persistent,
}
"""Keys of ``zero_optimization`` that may be "auto"."""


def bucket_of(tree: dict[str, Any], numels: Sequence[int]) -> int:
    """Elements of a bucket under ZeRO-0: what DeepSpeed's settings ``tree`` say, or as ``bucket``."""
    return int(tree.get("zero_optimization", {}).get("reduce_bucket_size", bucket(numels)))


def filled(zero: dict[str, Any], numels: Sequence[int] | None) -> dict[str, Any]:
    """``zero_optimization`` with a number for each "auto": for parameters of ``numels`` elements.

    None where no network is at hand: those keys are left out, and stand for DeepSpeed's own sizes.
    """
    auto = {key for key, value in zero.items() if key in AUTO and value == "auto"}
    rest = {key: value for key, value in zero.items() if key not in auto}
    return rest if numels is None else rest | {key: AUTO[key](numels) for key in sorted(auto)}
