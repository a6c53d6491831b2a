"""The order over canonical streams: each rank of any world reads a part of the split that is its own.

The idea is MosaicML Streaming's canonical nodes: a number of streams that is fixed, whatever the world, each
with its own samples and its own windows; ranks take whole streams.

1. C streams, at most STREAMS and no more than there are shards. C divides the global batch G, and is the one
   with which the most that any world of up to NODES nodes of RANKS ranks reads beyond its share is least.
   Stream c takes the c-th piece of every global batch. So whoever reads the r-th W-th of each batch, W
   dividing C, reads C / W streams, neighbours, and no other one's.
2. The samples of a stream are neighbours in packed order, as many as it has places in the epoch: the c-th
   C-th of the split. Where the epoch's end lies amid a batch the bounds move, by less than a batch; with the
   tail ``drop`` they never do. So a node needs the same 1 / N of the split in every epoch.
3. A stream's epoch is a permutation of its whole shards, one after the other; what is left of shards at both
   ends comes together, between two of them. A shard's samples are cut into runs of about PART bytes, of which
   any is the first and its neighbours follow, and each run's samples are permuted. Where there are so few
   streams that their runs hold less than WINDOW samples together, K shards are permuted as one instead.

All of it is a function of (seed, epoch, stream, place in it), in O(1). A global batch is thus a stratified
sample of the split, from C of its shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from shards.positions.permutation import Places, Words, scramble_each, word, words

STREAMS = 4096  # so that 1,000 nodes have four each, and worlds that do not divide share few of theirs
WINDOW = 16384  # samples that are in reach at a moment, of all streams together, at least
NODES, RANKS = 1000, 8  # of a node
PART = 1 << 20  # bytes read at once: 4,096 streams keep 4 GiB in reach, on one node or all together
PART_SAMPLES = 128  # the same where nothing is known of the samples' size
KEY = 6  # the words (seed, epoch, 1 to 4) are other orders'


class Span(NamedTuple):
    """Places ``first`` to ``stop`` - 1 of a stream's epoch, whose samples are few runs of neighbours."""

    epoch: int
    stream: int
    first: int
    stop: int


class _Found(NamedTuple):
    """Where places of a stream's epoch lie, int64 [B] each."""

    bound: Places  # first sample of the stream
    size: Places  # samples of the stream
    head: Places  # of these lie before its first whole shard
    whole: Places  # whole shards
    is_left: Places  # whether the place is one of those of no whole shard (0 or 1)
    unit: Places  # number of the unit: K shards, or what is of no whole shard
    unit_first: Places  # its first place
    unit_size: Places
    inside: Places  # place in the unit


class Streams:
    """Of ``count`` samples in shards of ``shard``, in global batches of ``batch``; see the module's text.

    ``length`` is the length of an epoch, ``sample_bytes`` the mean size of a sample, 0 where it is unknown.
    """

    def __init__(self, seed: int, count: int, length: int, batch: int, shard: int, sample_bytes: int) -> None:
        self.number = streams_of(count, batch, shard)
        self._seed, self._count, self._length = np.uint64(word(seed)), count, length
        self._batch, self._piece, self._shard = batch, batch // self.number, shard
        least = -(-WINDOW // self.number)
        run = max(PART // sample_bytes if sample_bytes else PART_SAMPLES, least)
        self._unit = max(1, -(-least // shard)) * shard
        self._run = self._unit if run >= shard else -(-shard // -(-shard // run))

    def split(self, positions: Places) -> tuple[Places, Places, Places]:
        """Epochs, streams and places in the stream's epoch, int64 [B] each, of ``positions`` [B]."""
        epochs = positions // self._length
        batches, places = np.divmod(positions, self._batch)
        streams = places // self._piece
        before = self._before(epochs * self._length, streams)
        return epochs, streams, batches * self._piece + places % self._piece - before

    def sample_of(self, positions: Places) -> Places:
        """Sample numbers, int64 [B], at ``positions`` [B]."""
        return self._numbers(*self.split(positions))

    def spans(self, positions: Places, whole: bool) -> list[Span]:
        """The spans that ``positions`` [B] lie in, each once: runs, or whole units of shards."""
        epochs, streams, places = self.split(positions)
        firsts, stops = self._span(epochs, streams, places, whole)
        codes = ((epochs - epochs.min()) * self.number + streams) * (self._count + 1) + firsts
        rows = np.stack([epochs, streams, firsts, stops], axis=1)[np.unique(codes, return_index=True)[1]]
        return [Span(*row) for row in rows.tolist()]

    def following(self, spans: Sequence[Span], whole: bool) -> list[Span]:
        """The spans that come after these in their streams; in its next epoch a tiny split may have none."""
        epochs, streams, _, places = np.array(spans, np.int64).reshape(-1, 4).T.copy()
        over = places >= self._places(epochs, streams)
        epochs[over] += 1
        places[over] = 0
        some = np.flatnonzero(self._places(epochs, streams))
        epochs, streams, places = epochs[some], streams[some], places[some]
        rows = np.stack([epochs, streams, *self._span(epochs, streams, places, whole)], axis=1)
        return [Span(*row) for row in rows.tolist()]

    def bounds(self, positions: Places, whole: bool = False) -> tuple[Places, Places]:
        """First places, and those after the last, int64 [B] each, of the spans of ``positions`` [B]."""
        return self._span(*self.split(positions), whole)

    def samples(self, spans: Sequence[Span]) -> Places:
        """Numbers of the samples in ``spans``, in ascending order."""
        if not spans:
            return np.empty(0, np.int64)
        sizes = [span.stop - span.first for span in spans]
        places = np.concatenate([np.arange(span.first, span.stop) for span in spans])
        epochs, streams = (np.repeat([span[i] for span in spans], sizes) for i in (0, 1))
        return np.sort(self._numbers(epochs, streams, places))

    def _before(self, position: Places, streams: Places) -> Places:
        """How many places of the stream lie before ``position``."""
        batches, rest = np.divmod(position, self._batch)
        return batches * self._piece + np.clip(rest - streams * self._piece, 0, self._piece)

    def _places(self, epochs: Places, streams: Places) -> Places:
        """How many places the stream has in the epoch."""
        begin = epochs * self._length
        return self._before(begin + self._length, streams) - self._before(begin, streams)

    def _bounds(self, epochs: Places, streams: Places) -> tuple[Places, Places]:
        """First sample of the stream, and how many are its own: as many as its places, or more (``drop``)."""
        if self._length != self._count:
            first = streams * self._count // self.number
            return first, (streams + 1) * self._count // self.number - first
        # Of all streams before it: as many samples as they have places between the epoch's two ends.
        below, begin = streams * self._piece, epochs * self._length
        ends = begin + self._length
        first = (ends // self._batch - begin // self._batch) * below
        first += np.minimum(ends % self._batch, below) - np.minimum(begin % self._batch, below)
        return first, self._places(epochs, streams)

    def _find(self, epochs: Places, streams: Places, places: Places) -> tuple[Words, _Found]:
        keys = words(words(words(np.full(len(places), self._seed), epochs), KEY), streams)
        bound, size = self._bounds(epochs, streams)
        head = np.minimum(-bound % self._shard, size)
        whole = (size - head) // self._shard
        left = size - whole * self._shard
        units = whole * self._shard // self._unit
        # What is left over comes before one of the units, or after all.
        begin = (words(keys, 0) % (units + 1).astype(np.uint64)).astype(np.int64) * self._unit
        is_left = (places >= begin) & (places < begin + left)
        passed = np.where(places < begin, 0, left)
        unit = np.where(is_left, 0, 1 + (places - passed) // self._unit)
        unit_first = np.where(is_left, 0, (unit - 1) * self._unit)
        unit_size = np.where(is_left, left, np.minimum(self._unit, whole * self._shard - unit_first))
        first = np.where(is_left, begin, unit_first + passed)
        inside = places - first
        return keys, _Found(
            bound, size, head, whole, is_left.astype(np.int64), unit, first, unit_size, inside
        )

    def _span(self, epochs: Places, streams: Places, places: Places, whole: bool) -> tuple[Places, Places]:
        _, at = self._find(epochs, streams, places)
        first = at.inside * 0 if whole else at.inside // self._run * self._run
        stop = at.unit_size if whole else np.minimum(first + self._run, at.unit_size)
        return at.unit_first + first, np.minimum(at.unit_first + stop, self._places(epochs, streams))

    def _numbers(self, epochs: Places, streams: Places, places: Places) -> Places:
        keys, at = self._find(epochs, streams, places)
        # In the unit: its runs from any of them on, but for a shorter last one; a run's samples permuted.
        of_unit = words(words(keys, 1), at.unit)
        run, rest = np.divmod(at.inside, self._run)
        full = at.unit_size // self._run
        size = np.where(run < full, self._run, at.unit_size - full * self._run)
        rest = scramble_each(words(of_unit, run + 1), size, rest)
        turned = words(of_unit, 0) % np.maximum(full, 1).astype(np.uint64)
        moved = (run + turned.astype(np.int64)) % np.maximum(full, 1)
        inside = np.where(run < full, moved, run) * self._run + rest
        # In the stream: the unit's shards are any of the whole ones.
        is_left = at.is_left.astype(bool)
        slot, rest = np.divmod((at.unit - 1) * self._unit + inside, self._shard)
        slot = scramble_each(words(keys, 2), np.where(is_left, 1, at.whole), np.where(is_left, 0, slot))
        left = np.where(inside < at.head, inside, inside + at.whole * self._shard)
        found: Places = at.bound + np.where(is_left, left, at.head + slot * self._shard + rest)
        return found


@cache
def streams_of(count: int, batch: int, shard: int) -> int:
    """How many streams there are: see the module's text."""
    most = max(1, min(STREAMS, batch, count // shard))
    numbers = np.arange(most, 0, -1)
    numbers = numbers[batch % numbers == 0]
    nodes = np.arange(1, NODES + 1)
    for ranks in (RANKS, 1):
        shares = batch // nodes[batch % (nodes * ranks) == 0]
        if len(shares):
            break
    # A share touches so many pieces, wherever it begins, on average; whose it is not alone is read twice.
    pieces = (batch // numbers)[:, None]
    worst = ((shares + pieces - np.gcd(shares, pieces)) / shares).max(axis=1)
    return int(numbers[np.argmin(worst)])  # the largest of the best
