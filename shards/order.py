"""Which sample lies at which position of the endless stream: a function of (seed, epoch, place), no state.

1. A position becomes an epoch and a place in it (``Order.split``). The tail's rule says how long an epoch is:
   ``wrap``, n places for n samples, so that a global batch may go on into the next epoch; or ``drop``, the
   places of ``n // G`` whole batches of G, and the permutation's last ``n % G`` samples sit the epoch out
   (other ones each time).
2. An algorithm of ``ORDERS`` turns (seed, epoch, place) into a sample number, each number once per epoch.

All are computed a position at a time, in O(1) time and memory however large the split is and wherever the
position lies, by a keyed permutation (``scramble``). It consists of 64-bit integer arithmetic, so an order is
the same on every machine and with every version of numpy.

What is bounded, and by what, in ``block`` and ``shards``: the samples of ``w`` consecutive blocks of the
epoch's block order, at most WINDOW of them (or two blocks, if that is more), are permuted among themselves
and spread over as many places, one window after the other. So

- a reader of one window touches at most ``w`` runs of consecutive samples, one read each if it takes a block
  at a time, and what it must keep to read nothing twice is one window;
- a sample is at most one window away from any other sample of its block, and two neighbours of the stream
  come from one block with a chance of about 1 / w, instead of block / n in a full permutation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError

Places = NDArray[np.int64]

BLOCK = 128  # samples of a block: 0.7 MB of 64 x 64 PNGs, enough for a network disk to stream
WINDOW = 16384  # samples that are shuffled among themselves: 90 MB of 64 x 64 PNGs
ROUNDS, FEW, ROUNDS_OF_FEW = 8, 1024, 24  # small permutations mix slowly: measured, 8 rounds are not enough
TAILS = ("wrap", "drop")


def word(*parts: int) -> int:
    """64 bits that depend on every part and on their order (the finaliser of splitmix64)."""
    word = 0
    for part in parts:
        word = (word + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        word ^= word >> 31
    return word


def scramble(key: tuple[int, ...], count: int, places: Places) -> Places:
    """A permutation of 0 .. ``count`` - 1 (below 2**62), chosen by ``key``, applied to ``places`` [B].

    A Feistel network over a x b >= count, a and b near the square root (Black & Rogaway 2002, method 3):
    each round adds a hash of one half to the other. What falls on the few numbers from ``count`` on goes
    through again, which keeps it a permutation of the rest.
    """
    a = max(1, int(np.ceil(np.sqrt(count))))
    b = -(-count // a)
    assert a * b >= count and a < 1 << 32
    keys = [np.uint64(word(*key, r)) for r in range(ROUNDS if count >= FEW else ROUNDS_OF_FEW)]
    bounds = (np.uint64(a), np.uint64(b))

    def once(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        halves = [numbers % bounds[0], numbers // bounds[0]]
        for r, round_key in enumerate(keys):
            here, other, bound = r & 1, 1 - (r & 1), bounds[r & 1]
            word = (halves[other] ^ round_key) * np.uint64(0xBF58476D1CE4E5B9)
            word ^= word >> np.uint64(29)
            word *= np.uint64(0x94D049BB133111EB)
            # The upper 32 bits as a fraction of 1, times the bound: even enough, and no division.
            moved = halves[here] + (((word >> np.uint64(32)) * bound) >> np.uint64(32))
            halves[here] = np.where(moved >= bound, moved - bound, moved)
        return halves[0] + halves[1] * bounds[0]

    numbers = once(places.astype(np.uint64))
    while (outside := numbers >= np.uint64(count)).any():
        numbers[outside] = once(numbers[outside])
    return numbers.astype(np.int64)


@dataclass(frozen=True)
class Extent:
    """What an algorithm may know of the split: samples in all, and in a shard."""

    count: int
    shard: int


def full(seed: int, epoch: int, extent: Extent, places: Places) -> Places:
    """A permutation of the whole split: every read is a random one."""
    return scramble((seed, epoch, 1), extent.count, places)


def block(seed: int, epoch: int, extent: Extent, places: Places) -> Places:
    """BLOCK consecutive samples per block, cut anew each epoch so that no two samples always share one."""
    shift = word(seed, epoch, 2) % extent.count
    return (_blocks(seed, epoch, extent.count, BLOCK, places) + shift) % extent.count


def shards(seed: int, epoch: int, extent: Extent, places: Places) -> Places:
    """One whole shard per block: each is needed during one or two windows of an epoch and then no more.

    That is where shards are of one size, as a pack's are, but for the last. Other people's tars may not be: a
    block then is as many samples as they have on average, and lies across them.
    For shards that come through a cache smaller than the split. Two neighbours share a shard more often than
    in ``block``.
    """
    return _blocks(seed, epoch, extent.count, extent.shard, places)


def sequential(seed: int, epoch: int, extent: Extent, places: Places) -> Places:
    """The packed order in every epoch, for fixed evaluation sets."""
    return places


def _blocks(seed: int, epoch: int, count: int, size: int, places: Places) -> Places:
    whole = count // size
    width = _width(size)
    numbers = np.empty_like(places)
    windows, rests = np.divmod(places, width)
    for window in np.unique(windows).tolist():
        here = windows == window
        first = window * width
        inside = first + scramble((seed, epoch, 3, window), min(width, count - first), rests[here])
        slots, offsets = np.divmod(inside, size)
        # The rest that fills no block stays at the end; ``block``'s shift makes it other samples each time.
        full_blocks = slots < whole
        slots[full_blocks] = scramble((seed, epoch, 4), whole, slots[full_blocks])
        numbers[here] = slots * size + offsets
    return numbers


def _width(size: int) -> int:
    """Samples of a window of blocks of ``size``."""
    return max(2, WINDOW // size) * size


Algorithm = Callable[[int, int, Extent, Places], Places]
ORDERS: dict[str, Algorithm] = {"full": full, "block": block, "shards": shards, "sequential": sequential}


class Order:
    """The endless stream over ``extent.count`` samples (at least one).

    ``batch`` is the global batch, needed by the tail ``drop`` alone. Raises ValueError for an unknown order
    or tail or a seed outside 0 .. 2**64 - 1, InputError for a batch that the split cannot fill.
    """

    def __init__(self, name: str, seed: int, extent: Extent, tail: str = "wrap", batch: int | None = None):
        for what, value, allowed in (("order", name, tuple(ORDERS)), ("tail", tail, TAILS)):
            if value not in allowed:
                raise ValueError(f"{what} is {value!r}; allowed: {', '.join(allowed)}")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed is {seed}; allowed: 0 to 2**64 - 1")
        if batch is not None and batch < 1:
            raise ValueError(f"batch is {batch}; allowed: 1 or more")
        if tail == "drop" and batch is None:
            raise ValueError("tail drop needs the global batch")
        self.name, self.seed, self.extent, self.tail, self.batch = name, seed, extent, tail, batch
        self.length = extent.count
        if tail == "drop":
            assert batch is not None
            self.length -= extent.count % batch
            if not self.length:
                raise InputError(f"tail drop: a batch of {batch} is more than the {extent.count} samples")

    def split(self, positions: Places) -> tuple[Places, Places]:
        """Epochs and places in them, int64 [B] each, of the stream's ``positions`` [B]."""
        epochs, places = np.divmod(positions, self.length)
        return epochs, places

    def windows(self, position: int) -> list[range]:
        """The positions of the window that holds ``position`` and of the next; none where an order has none.

        Their samples are few runs of consecutive ones: worth reading before they are asked for one by one.
        """
        if self.name not in ("block", "shards"):
            return []
        width = _width(BLOCK if self.name == "block" else self.extent.shard)
        found: list[range] = []
        while len(found) < 2:
            epoch, place = divmod(position, self.length)
            first = place // width * width
            start = epoch * self.length
            found.append(range(start + first, start + min(first + width, self.length)))
            position = found[-1].stop
        return found

    def sample_of(self, positions: Places) -> Places:
        """Sample numbers at ``positions``, both int64 [B]; positions are not negative and below 2**62."""
        epochs, places = self.split(positions)
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            numbers[here] = ORDERS[self.name](self.seed, epoch, self.extent, places[here])
        return numbers


@dataclass(frozen=True)
class ReaderState:
    """Where a stream stands: the next position, and which stream it is.

    ``index`` is the packed folder's fingerprint. World size, workers and micro batches have no place here:
    they do not touch the stream. ``batch`` is None where the reader was not given one.
    """

    position: int
    index: str
    split: str
    seed: int
    batch: int | None
    order: str
    tail: str

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ReaderState:
        """The state that ``to_json`` wrote; InputError for any other text."""
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not a reader's state ({error})") from error
        return cls.of(given)

    @classmethod
    def of(cls, fields: Any) -> ReaderState:
        """The state with these ``fields``, a mapping of its own; InputError for anything else."""
        try:
            state = cls(**fields)
            whole = [state.position, state.seed, *([] if state.batch is None else [state.batch])]
            if not all(type(value) is int and 0 <= value < 1 << 64 for value in whole):
                raise ValueError("position, seed and batch are whole numbers")
            if not all(isinstance(v, str) for v in (state.index, state.split, state.order, state.tail)):
                raise ValueError("index, split, order and tail are text")
        except (ValueError, TypeError) as error:
            raise InputError(f"not a reader's state ({error})") from error
        return state

    def check(self, now: ReaderState) -> None:
        """InputError, with both values of the first field that differs, unless ``now`` is the same stream."""
        for field in fields(self):
            before, here = getattr(self, field.name), getattr(now, field.name)
            if field.name != "position" and before != here:
                raise InputError(
                    f"the state is of another stream: its {field.name} is {before!r}, here it is {here!r}"
                )
