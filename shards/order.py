"""Which sample lies at which position of the endless stream: a function of (seed, epoch, place), no state.

1. A position becomes an epoch and a place in it (``Order.split``). The tail's rule says how long an epoch is:
   ``wrap``, n places for n samples, so that a global batch may go on into the next epoch; or ``drop``, the
   places of ``n // G`` whole batches of G, and the permutation's last ``n % G`` samples sit the epoch out
   (other ones each time).
2. An algorithm turns (seed, epoch, place) into a sample number, each number once per epoch.

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

Whoever takes a part of every batch still reads every window. ``streams`` is for many nodes: each reads its
own part of the split (``shards.positions.streams``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from diffbase.cli import InputError
from shards.positions.permutation import Places, scramble, word
from shards.positions.streams import Span, Streams, streams_of

BLOCK = 128  # samples of a block: 0.7 MB of 64 x 64 PNGs, enough for a network disk to stream
WINDOW = 16384  # samples that are shuffled among themselves: 90 MB of 64 x 64 PNGs
TAILS = ("wrap", "drop")
RESIDENT = 4 << 30  # bytes of a split that every node can be expected to keep in memory
FEW_STREAMS = 8  # with fewer of them a block order mixes better
Window = range | Span
"""Positions, or places of a stream, whose samples are few runs of consecutive ones."""


@dataclass(frozen=True)
class Extent:
    """What an algorithm may know of the split: samples, those of a shard, mean bytes of one (0: unknown)."""

    count: int
    shard: int
    sample_bytes: int = 0


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
ALGORITHMS: dict[str, Algorithm] = {
    "full": full,
    "block": block,
    "shards": shards,
    "sequential": sequential,
}
ORDERS = (*ALGORITHMS, "streams")
AUTO = "auto"


def chosen(extent: Extent, batch: int | None, cache: int | None) -> str:
    """The order that ``auto`` stands for; the data and the settings decide, never the world.

    ``cache``: bytes that the cache of a URL's shards may hold; None: the shards are files here. ``full``
    where every node can keep the split in memory; else ``streams``, if there are enough of them and the
    cache holds two shards of each even on one node; else ``block``, of a URL ``shards``.
    """
    needed = extent.count * extent.sample_bytes
    if needed <= (RESIDENT if cache is None else min(RESIDENT, cache)):
        return "full"
    streams = streams_of(extent.count, batch, extent.shard) if batch else 0
    fits = cache is None or 2 * streams * extent.shard * extent.sample_bytes <= cache
    if streams >= FEW_STREAMS and fits:
        return "streams"
    return "block" if cache is None else "shards"


class Order:
    """The endless stream over ``extent.count`` samples (at least one).

    ``batch`` is the global batch, needed by ``streams`` and by the tail ``drop``. Raises ValueError for an
    unknown order or tail or a seed outside 0 .. 2**64 - 1, InputError for a batch that the split cannot fill.
    """

    def __init__(self, name: str, seed: int, extent: Extent, tail: str = "wrap", batch: int | None = None):
        for what, value, allowed in (("order", name, ORDERS), ("tail", tail, TAILS)):
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
        self.streams: Streams | None = None
        if name == "streams":
            if batch is None:
                raise ValueError("order streams needs the global batch")
            count, shard, size = extent.count, extent.shard, extent.sample_bytes
            self.streams = Streams(seed, count, self.length, batch, shard, size)

    def split(self, positions: Places) -> tuple[Places, Places]:
        """Epochs and places in them, int64 [B] each, of the stream's ``positions`` [B]."""
        epochs, places = np.divmod(positions, self.length)
        return epochs, places

    def windows(self, positions: Places, whole: bool = False) -> list[Window]:
        """The windows of ``positions`` [B]; none where an order has none.

        Their samples are few runs of consecutive ones: worth reading before they are asked for one by one.
        In a block order it is the window of the first position; in ``streams`` one of each stream, with
        ``whole`` of whole shards.
        """
        if self.streams:
            return list(self.streams.spans(positions, whole))
        if self.name not in ("block", "shards"):
            return []
        return [self._window(int(positions.min()))]

    def windows_after(self, windows: Sequence[Window], whole: bool = False) -> list[Window]:
        """Those that follow."""
        if self.streams:
            spans = [window for window in windows if isinstance(window, Span)]
            return list(self.streams.following(spans, whole))
        return [self._window(window.stop) for window in windows]

    def _window(self, position: int) -> range:
        width = _width(BLOCK if self.name == "block" else self.extent.shard)
        epoch, place = divmod(position, self.length)
        first, start = place // width * width, epoch * self.length
        return range(start + first, start + min(first + width, self.length))

    def samples_in(self, windows: Sequence[Window]) -> Places:
        """Numbers of the samples in ``windows``, in ascending order."""
        if self.streams:
            return self.streams.samples([window for window in windows if isinstance(window, Span)])
        ranges = [np.arange(window.start, window.stop) for window in windows if isinstance(window, range)]
        return np.sort(self.sample_of(np.concatenate([np.empty(0, np.int64), *ranges])))

    def sample_of(self, positions: Places) -> Places:
        """Sample numbers at ``positions``, both int64 [B]; positions are not negative and below 2**62."""
        if self.streams:
            return self.streams.sample_of(positions)
        epochs, places = self.split(positions)
        numbers = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            numbers[here] = ALGORITHMS[self.name](self.seed, epoch, self.extent, places[here])
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
