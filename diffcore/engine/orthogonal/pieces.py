"""Which ranks have which elements of a parameter's fp32 weights, as DeepSpeed shares them out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

Piece = tuple[int, int, int]
"""(rank, start, count): elements start .. start + count of the flattened parameter are with this rank."""


def pieces(
    sizes: Mapping[K, int], stage: int, world: int, partition: int
) -> dict[K, tuple[Piece, ...]] | None:
    """The pieces of each parameter, in order; None under ZeRO-0, where every rank has all.

    ``sizes``: elements of the parameters, by name or number, in their order. ``partition``: elements of a
    rank's part of the flat buffer of stages 1 and 2. Stage 3 cuts each parameter into equal parts.
    """
    if stage == 0:
        return None
    found, end = dict[K, tuple[Piece, ...]](), 0
    for name, size in sizes.items():
        begin, end = end, end + size
        if stage == 3:
            begin, part = 0, max(1, -(-size // world))
        else:
            part = partition
        ranks = range(begin // part, -(-(begin + size) // part))
        bounds = [(max(begin, r * part), min(begin + size, (r + 1) * part), r) for r in ranks]
        found[name] = tuple((r, low - begin, high - low) for low, high, r in bounds if high > low)
    return found
