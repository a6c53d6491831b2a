"""Read packed shards in an order that depends on (seed, epoch, position) alone.

The pipeline, and who may rely on what:

1. The stream is endless: epoch after epoch, each a fresh permutation of all samples of a split. What lies at
   a position is computed from (seed, epoch, place), in O(1) (``shards.order``, which also says what the
   block orders bound).
2. A caller asks for positions. Step k of a run with global batch G asks, over all its ranks, for positions
   k * G to (k + 1) * G - 1; how they are dealt to ranks, workers and micro batches is the caller's choice
   and cannot change what the global batch holds.
3. A position becomes a sample number, and the index tells its labels, shard, offset and size. The images that
   a batch needs are read by position, neighbours in one read (``shards.images``). Nothing that goes before is
   read, and nothing is extracted. (The shards' own label members are for other readers and for
   ``shards.verify``.)
4. Checksum, size and image dimensions are checked; a bad sample is a CorruptSampleError that names shard and
   key, or is replaced by a fixed rule. Nothing is unpickled.
5. ``threads`` threads share 3 and 4 of one batch; ``shards.prefetch`` does them in the background, a few
   batches ahead. The block orders have the next window's shards read, or fetched from their URL, while this
   one's are used; what is needed of a shard that is not there yet comes in ranges (``shards.remote.ahead``).

The contract of resume: the state is one position and the name of its stream (``ReaderState``). The same
folder, split, seed, order and tail (and batch, for the tail ``drop``) give the same samples from there on, at
any world size, whether or not anything was read before.

Memory: the index's table (60 bytes per sample up to a million; of a larger folder 8 bytes a shard and the
rows read last, 16 MiB; a process's readers of one folder share it), the batches that ``prefetch`` holds, and
per thread one read of at most images.RUN_CAP bytes (or one member, if it is larger).
Descriptors: at most images.OPEN_SHARDS, of the order ``streams`` one a stream, up to an eighth of what the
process may have.

Needs numpy, Pillow and pydantic, not torch.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from diffbase.line import printable
from diffbase.redaction import shown
from shards.codec.decode import BadSample
from shards.header import Shard
from shards.images import Out, SplitImages
from shards.order import AUTO, Extent, Order, ReaderState, Window, chosen
from shards.positions.streams import Span
from shards.prefetch import prefetch
from shards.remote.ahead import SMALL, Ahead
from shards.remote.cache import Cache, RemoteFolder, RemoteShards
from shards.remote.fetch import is_url
from shards.schema import Attribute
from shards.table import Index

REPLACEMENT_TRIES = 16
ON_ERROR = ("raise", "replace")
Positions = Sequence[int] | NDArray[np.integer[Any]]


class CorruptSampleError(InputError):
    """A sample whose bytes are not what the index says; ``shard`` and ``key`` name it."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(f"{shard}: sample {key}: {reason}")
        self.shard, self.key, self.reason = shard, key, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.shard, self.key, self.reason)


@dataclass(frozen=True)
class Batch:
    """Samples in the order of the positions asked for."""

    images: NDArray[np.uint8]  # [B, H, W, 3], RGB, 0 to 255
    labels: NDArray[np.int64]  # [B, A], columns in the schema's order
    positions: NDArray[np.int64]  # [B], positions in the stream
    keys: list[str]


@dataclass(frozen=True)
class Files:
    """The same, but the images are files as they lie in the shards, whose paths or URLs are ``places``."""

    images: list[bytes]
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]
    keys: list[str]
    places: list[str]


def _warn(line: str) -> None:
    print(f"warning: {printable(line)}", file=sys.stderr, flush=True)


class ShardReader:
    """One split of a packed folder as an endless stream; see the module's text.

    ``order`` is a name in ``shards.order.ORDERS`` ("sequential" for fixed evaluation sets), or "auto": then
    ``order.name`` is what ``shards.order.chosen`` says. ``tail`` is one in ``shards.order.TAILS``, ``batch``
    the global batch (only the order ``streams``, the tail ``drop``, ``batches`` and ``epoch`` need it).

    ``on_error``: what becomes of a corrupt sample. ``raise``: a CorruptSampleError. ``replace``: the next
    good one of the packed order (after the last comes the first) takes its place, labels and key and all. It
    depends on the data alone, so the stream stays the same for every world size. ``replaced`` counts them,
    ``report`` gets one line for each, and more than ``replace_limit`` of them in one reader are an error.

    ``folder`` may be a URL, or its index name tars at URLs; then ``cache`` says where these files are kept
    meanwhile (``shards.remote.cache``).

    Safe to use from several threads, and in a process forked from the one that made it. Raises InputError for
    a bad folder, an unknown or empty split, ValueError for a setting that is not allowed.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str = "train",
        *,
        seed: int = 0,
        order: str = "full",
        tail: str = "wrap",
        batch: int | None = None,
        on_error: str = "raise",
        replace_limit: int = 100,
        report: Callable[[str], None] = _warn,
        threads: int = 1,
        cache: Cache | None = None,
    ) -> None:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error is {on_error!r}; allowed: {', '.join(ON_ERROR)}")
        if not 1 <= threads <= 256:
            raise ValueError(f"threads is {threads}; allowed: 1 to 256")
        self._remote: RemoteShards | None = None
        if isinstance(folder, str) and is_url(folder):
            self._remote = RemoteFolder(folder, cache or Cache(), report)
            self.index = self._remote.index
        else:
            self.index = Index.shared(Path(folder))
            if self.index.header.is_elsewhere:
                self._remote = RemoteShards(self.index, cache or Cache(), report=report)
        self.split = self.index.split(split)
        if not len(self.split):
            raise InputError(f"{shown(folder)}: split {split!r} holds no samples")
        count, limit = len(self.split), self._remote.cache.limit if self._remote else None
        needed = self.split.bytes
        extent = Extent(count, min(self.index.header.shard_size, count), -(-needed // count))
        if order == AUTO:
            order = chosen(extent, batch, limit)
        self.order = Order(order, seed, extent, tail, batch)
        self._fits = limit is None or needed <= limit  # all shards at once, into the cache
        if not self._fits and order in ("full", "block"):  # every shard would be fetched again and again
            raise InputError(
                f"{shown(folder)}: order {order} needs the whole split ({needed} bytes) in the cache, "
                f"whose limit is {limit}; give more, or order shards"
            )
        self.on_error, self.replace_limit, self.threads = on_error, replace_limit, threads
        self.replaced: dict[int, int] = {}  # number of a corrupt sample -> of the one in its place
        self._report = report
        self._ahead = Ahead(self._remote, self.split.shards) if self._remote else None
        streams = self.order.streams.number if self.order.streams else 1
        self._images = SplitImages(self.index, self.split, self._remote, threads, self._ahead, streams)
        self._lock = threading.Lock()
        # Windows that were read from, and those that were asked for ahead of need; the oldest first.
        self._entered: dict[Window, None] = {}
        self._asked: dict[Window, None] = {}
        self._closed = False

    @property
    def schema(self) -> tuple[Attribute, ...]:
        """The labels' names and numbers of variants, in the order of ``Batch.labels``' columns."""
        return self.index.schema

    @property
    def size(self) -> int:
        """Edge of the images, in pixels."""
        return self.index.size

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes when any packed byte, label or setting does."""
        return self.index.fingerprint

    def __len__(self) -> int:
        """Samples in the split."""
        return len(self.split)

    def state(self, position: int) -> ReaderState:
        """What to keep in order to go on from ``position``."""
        order = self.order
        return ReaderState(
            position, self.fingerprint, self.split.name, order.seed, order.batch, order.name, order.tail
        )

    def resume(self, state: ReaderState) -> int:
        """The position to go on from; InputError if ``state`` is of other data or another stream."""
        state.check(self.state(0))
        return state.position

    def sample_of(self, positions: Positions) -> NDArray[np.int64]:
        """Sample numbers, int64 [B], at the stream's ``positions`` [B]; ValueError for a bad position."""
        places = np.asarray(positions)
        if places.size == 0:
            places = places.astype(np.int64)
        if places.ndim != 1 or places.dtype.kind not in "iu" or (places.size and places.max() >= 1 << 62):
            raise ValueError("positions must be one row of whole numbers below 2**62")
        if (places < 0).any():
            raise ValueError(f"position {places.min()} is negative")
        return self.order.sample_of(places.astype(np.int64))

    def read(self, positions: Positions) -> Batch:
        """The samples at the stream's ``positions``, in that order.

        Raises CorruptSampleError for the first sample that is damaged or missing (unless it is replaced),
        InputError beyond the limit of replacements, ValueError for a bad position.
        """
        numbers = self.sample_of(positions)
        images = np.empty((len(numbers), self.size, self.size, 3), np.uint8)
        return Batch(images, *self._fill(positions, numbers, images))

    def read_files(self, positions: Positions) -> Files:
        """As ``read``, but no image is decoded, and none is bad whose checksum is right."""
        numbers = self.sample_of(positions)
        images = [b""] * len(numbers)
        rest = self._fill(positions, numbers, images)
        places = [self._place(self.split.shards[shard]) for shard in self.split.shard_of(numbers).tolist()]
        return Files(images, *rest, places)

    def _place(self, shard: Shard) -> str:
        return shown(self._remote.address(shard)) if self._remote else f"{self.index.folder}/{shard.path}"

    def _fill(
        self, positions: Positions, numbers: NDArray[np.int64], images: Out
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
        """Fill ``images``; labels, positions and keys. ``numbers`` become those that were read instead."""
        if len(numbers):
            self._read_ahead(np.asarray(positions, np.int64), numbers)
        if self.replaced:
            numbers[:] = [self.replaced.get(n, n) for n in numbers.tolist()]
        table = self.split.take(numbers)
        bad = self._images.fill(numbers, images, table)
        for i in sorted(bad):
            other = images[i : i + 1]
            numbers[i] = self._replace(int(numbers[i]), bad[i], other)
            images[i : i + 1] = other
        if bad:
            table = self.split.take(numbers)
        keys = [key.decode("ascii") for key in table["key"].tolist()]
        return table["labels"].astype(np.int64), np.array(positions, np.int64), keys

    def batches(
        self, start: int = 0, stop: int | None = None, *, ahead: int = 2
    ) -> Generator[Batch, None, None]:
        """The batches of the steps ``start`` .. ``stop`` - 1, without end where ``stop`` is None.

        Step k has the positions k * G .. (k + 1) * G - 1, G being the reader's ``batch``. A thread reads up
        to ``ahead`` batches in advance and ends with the generator. Errors are those of ``read``.
        """
        size = self._batch()
        steps = count(start) if stop is None else range(start, stop)
        return prefetch(self.read, (range(k * size, (k + 1) * size) for k in steps), ahead)

    def epoch(self, number: int = 0, *, ahead: int = 2) -> Generator[Batch, None, None]:
        """Every sample of an epoch once, in batches of which the last may be smaller; else as ``batches``."""
        size, end = self._batch(), (number + 1) * self.order.length
        firsts = range(number * self.order.length, end, size)
        return prefetch(self.read, (range(at, min(at + size, end)) for at in firsts), ahead)

    def _batch(self) -> int:
        if self.order.batch is None:
            raise ValueError("the reader was opened without batch")
        return self.order.batch

    def _read_ahead(self, positions: NDArray[np.int64], asked: NDArray[np.int64]) -> None:
        """Have what these windows and the next need brought near: into the page cache, or the node's cache.

        Of an order without windows, the shards of the samples ``asked``.

        A block order's samples are asked for one by one all over a window; a network disk serves the window's
        few long runs far better. The processes of a node share what was read.
        """
        wanted: list[int] = []
        turn = os.getpid()  # the processes of a node begin at different shards, and so share the work
        whole = self._remote is not None
        now = self.order.windows(positions, whole)
        self._check_room(now)
        # Most reads are of windows that others were of before.
        entered = self._new(now, self._entered)
        for windows in (entered, self.order.windows_after(entered, whole)) if entered else ():
            if not (new := self._new(windows, self._asked)):
                continue
            numbers = self.order.samples_in(new)
            if self._ahead and self._remote:
                shards = np.unique(self.split.shard_of(numbers)).tolist()
                # Only where two windows find room: else the cache would drop what this one still needs.
                if 2 * sum(self.split.shards[shard].bytes for shard in shards) <= self._remote.cache.limit:
                    wanted += [shards[(turn + i) % len(shards)] for i in range(len(shards))]
            else:
                self._images.advise(numbers)
        if self._ahead and not now and self._fits:
            shards = np.unique(self.split.shard_of(asked)).tolist()
            wanted = [shard for shard in shards if self.split.shards[shard].bytes >= SMALL]
        if self._ahead and wanted:
            self._ahead.want(wanted)

    def _check_room(self, windows: list[Window]) -> None:
        """InputError where the shards that the streams of one read are in find no room in the cache."""
        if self._remote and self.order.streams:
            spans = [window for window in windows if isinstance(window, Span)]
            needed = sum(span.stop - span.first for span in spans) * self.order.extent.sample_bytes
            if needed > (limit := self._remote.cache.limit):  # every shard would be fetched again and again
                raise InputError(
                    f"order streams: the {len(spans)} streams of this process need {needed} bytes in the "
                    f"cache, whose limit is {limit}; give more, or more nodes, or order shards"
                )

    def _new(self, windows: list[Window], before: dict[Window, None]) -> list[Window]:
        """Those that were not there of late, which then are."""
        kept = 4 * self.order.streams.number if self.order.streams else 8
        with self._lock:
            new = [window for window in windows if window not in before]
            before.update(dict.fromkeys(new))
            while len(before) > kept:
                del before[next(iter(before))]
        return new

    def _replace(self, number: int, error: BadSample, images: Out) -> int:
        """Fill the one row of ``images`` with another sample and return its number, or raise."""
        bad = self._error(number, error)
        if self.on_error == "raise":
            raise bad from error
        for step in range(1, min(REPLACEMENT_TRIES, len(self) - 1) + 1):
            other = (number + step) % len(self)
            if not self._images.fill(np.array([other]), images):
                break
        else:
            raise InputError(f"{bad}; none of the {REPLACEMENT_TRIES} samples after it is good either")
        with self._lock:
            if number not in self.replaced:
                if len(self.replaced) >= self.replace_limit:
                    raise InputError(f"{bad}; more samples to replace than the limit, {self.replace_limit}")
                self.replaced[number] = other
                self._report(f"{bad}; {self.split.key(other)} takes its place")
        return other

    def _error(self, number: int, error: BadSample) -> CorruptSampleError:
        shard = int(self.split.shard_of(np.array([number]))[0])
        return CorruptSampleError(self.split.shards[shard].name, self.split.key(number), str(error))

    def close(self) -> None:
        """Close the shards and end the threads; the reader cannot read afterwards."""
        self._closed = True
        if self._ahead:
            self._ahead.close()
        self._images.close()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):  # absent when __init__ raised
            self.close()
