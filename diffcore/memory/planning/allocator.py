"""What CUDA's caching allocator makes of a stream of allocations: bytes reserved against bytes allocated.

The rules of c10/cuda/CUDACachingAllocator.cpp with its default settings: sizes are rounded up to 512 bytes;
up to 1 MiB comes from segments of 2 MiB, up to 10 MiB from segments of 20 MiB, more gets a segment of its own
in steps of 2 MiB; the best fitting free block is taken and split where enough is left (512 bytes in the small
pool, 1 MiB in the large one); neighbours that are free are joined; no segment is given back. Each stream has
pools of its own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass

ROUND = 512
SMALL = 1 << 20
SMALL_SEGMENT = 2 << 20
LARGE_SEGMENT = 20 << 20
LARGE_FROM = 10 << 20
LARGE_ROUND = 2 << 20


def rounded(size: int) -> int:
    """Bytes that an allocation of ``size`` takes of a block."""
    return max(ROUND, -(-size // ROUND) * ROUND)


def segment(size: int) -> int:
    """Bytes asked of the driver for a (rounded) size that no free block holds."""
    if size <= SMALL:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < LARGE_FROM else -(-size // LARGE_ROUND) * LARGE_ROUND


@dataclass(slots=True)
class _Block:
    address: int
    size: int
    pool: tuple[int, bool]
    """Its stream, and whether it is large."""
    free: bool = True
    before: _Block | None = None
    after: _Block | None = None


class CachingAllocator:
    """``allocated`` counts rounded sizes, ``reserved`` segments, both in bytes; ``peak`` of reserved."""

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self._next = 0
        # Free blocks of each pool as (size, address), and the blocks themselves.
        self._free: dict[tuple[int, bool], list[tuple[int, int]]] = defaultdict(list)
        self._blocks: dict[int, _Block] = {}
        self._held: dict[int, _Block] = {}

    def allocate(self, number: int, size: int, lane: int = 0) -> None:
        """``lane``: the CUDA stream."""
        size = rounded(size)
        pool = (lane, size > SMALL)
        at = bisect_left(self._free[pool], (size, -1))
        if at < len(self._free[pool]):
            block = self._blocks[self._free[pool].pop(at)[1]]
        else:
            block = _Block(self._next, segment(size), pool)
            self._next += 2 * block.size  # a gap: blocks of different segments are never neighbours
            self._blocks[block.address] = block
            self.reserved += block.size
        left = block.size - size
        if left > SMALL if pool[1] else left >= ROUND:
            rest = _Block(block.address + size, left, pool, before=block, after=block.after)
            if rest.after:
                rest.after.before = rest
            block.after, block.size = rest, size
            self._blocks[rest.address] = rest
            insort(self._free[pool], (rest.size, rest.address))
        block.free = False
        self.allocated += block.size
        self._held[number] = block

    def release(self, number: int) -> None:
        """Free the allocation ``number``; its segment stays reserved."""
        block = self._held.pop(number)
        self.allocated -= block.size
        block.free = True
        if block.before is not None and block.before.free:
            block = self._joined(block.before, block, known=block.before)
        if block.after is not None and block.after.free:
            block = self._joined(block, block.after, known=block.after)
        insort(self._free[block.pool], (block.size, block.address))

    def _joined(self, first: _Block, second: _Block, known: _Block) -> _Block:
        """Two neighbours as one; ``known`` is the one that is listed as free."""
        self._free[known.pool].remove((known.size, known.address))
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        del self._blocks[second.address]
        return first
