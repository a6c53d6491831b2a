"""Read packed shards in an order that depends on (seed, epoch, position) alone.

The pipeline, and who may rely on what:

1. The stream is endless: epoch after epoch, each a fresh permutation of all samples of a split. Position p
   belongs to epoch ``p // n``; its sample is ``permutation(seed, p // n)[p % n]`` for n samples.
2. A caller asks for positions. Step k of a run with global batch G asks, over all its ranks, for positions
   k * G to (k + 1) * G - 1; how they are dealt to ranks, workers and micro batches is the caller's choice
   and cannot change what the global batch holds.
3. A position becomes a sample number, the index tells its shard, offsets and sizes, and two ``os.pread`` get
   the image and its labels. Nothing that goes before is read, and nothing is extracted.
4. Checksum, sizes, image dimensions and label ranges are checked; a bad sample is a CorruptSampleError that
   names shard and key. Nothing is unpickled.
5. ``prefetch`` does 3 and 4 in a background thread, a few batches ahead.

The contract of resume: the state is one position. The same folder (compare ``fingerprint``), split, seed
and order give the same samples from that position on, at any world size, whether or not anything was read
before. Resuming in an epoch costs its permutation: about 20 ms and 8 MB for a million samples. Permutations
come from numpy's Philox; they are the same on all machines, for the same numpy.

Needs numpy and Pillow, not torch.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import zlib
from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.attributes import Attribute
from shards.cli import InputError
from shards.decode import BadSample, decode_image
from shards.index import Index

OPEN_SHARDS = 128  # descriptors kept; the usual limit of a process is 1,024
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


def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of epoch ``epoch``: int64 [count], every number below ``count`` once."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    return generator.permutation(count)


class ShardReader:
    """One split of a packed folder as an endless stream; see the module's text.

    ``order`` is "shuffled" or, for fixed evaluation sets, "sequential": the packed order in every epoch.
    Safe to use from several threads. Raises InputError for a bad folder, an unknown or empty split.
    """

    def __init__(self, folder: Path, split: str = "train", *, seed: int = 0, order: str = "shuffled") -> None:
        if order not in ("shuffled", "sequential"):
            raise ValueError(f"order is {order!r}; allowed: shuffled, sequential")
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed is {seed}; allowed: 0 to 2**64 - 1")
        self.index = Index.load(Path(folder))
        self.split = self.index.split(split)
        if not len(self.split):
            raise InputError(f"{folder}: split {split!r} holds no samples")
        self.seed = seed
        self.order = order
        self._epochs: OrderedDict[int, NDArray[np.int64]] = OrderedDict()  # the last two permutations
        self._files: OrderedDict[int, int] | None = OrderedDict()  # shard -> descriptor, oldest use first
        self._lock = threading.Lock()

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
        """Samples in one epoch."""
        return len(self.split)

    def sample_of(self, positions: Positions) -> NDArray[np.int64]:
        """Sample numbers, int64 [B], at the stream's ``positions`` [B]; ValueError for a bad position."""
        places = np.asarray(positions)
        if places.size == 0:
            places = places.astype(np.int64)
        if places.ndim != 1 or places.dtype.kind not in "iu" or (places.size and places.max() >= 1 << 62):
            raise ValueError("positions must be one row of whole numbers below 2**62")
        if (places < 0).any():
            raise ValueError(f"position {places.min()} is negative")
        epochs, rests = np.divmod(places.astype(np.int64), len(self))
        if self.order == "sequential":
            return rests
        numbers = np.empty_like(rests)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            numbers[here] = self._permutation(epoch)[rests[here]]
        return numbers

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        with self._lock:
            if epoch not in self._epochs:
                self._epochs[epoch] = permutation(self.seed, epoch, len(self))
                while len(self._epochs) > 2:  # a batch across the end of an epoch needs two
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(epoch)
            return self._epochs[epoch]

    def read(self, positions: Positions) -> Batch:
        """The samples at the stream's ``positions``, in that order.

        Raises CorruptSampleError for a sample that is damaged or missing, ValueError for a bad position.
        """
        numbers = self.sample_of(positions)
        shards = self.split.shard_of(numbers)
        images = np.empty((len(numbers), self.size, self.size, 3), np.uint8)
        labels = np.empty((len(numbers), len(self.schema)), np.int64)
        keys = []
        for i, (number, shard) in enumerate(zip(numbers.tolist(), shards.tolist(), strict=True)):
            key, image_offset, label_offset, image_bytes, label_bytes, crc = self.split.samples[number].item()
            key = key.decode("ascii")
            try:
                image = self._pread(shard, image_offset, image_bytes)
                label = self._pread(shard, label_offset, label_bytes)
                if zlib.crc32(label, zlib.crc32(image)) != crc:
                    raise BadSample("damaged (its checksum differs from the index's)")
                decode_image(image, images[i], self.index.header.preprocessing.encoding)
                labels[i] = decode_labels(label, self.schema)
            except BadSample as error:
                raise CorruptSampleError(self.split.shards[shard].name, key, str(error)) from error
            keys.append(key)
        return Batch(images, labels, np.array(positions, np.int64), keys)

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        # The lock holds through the read, so that no other thread closes the descriptor meanwhile.
        with self._lock:
            data = os.pread(self._descriptor(shard), size, offset)
        if len(data) != size:
            raise BadSample("the shard ends before it does (truncated)")
        return data

    def _descriptor(self, shard: int) -> int:
        if self._files is None:
            raise ValueError("the reader is closed")
        if shard not in self._files:
            path = self.index.folder / self.split.shards[shard].name
            try:
                self._files[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise BadSample(f"cannot open the shard ({error.strerror})") from error
            if len(self._files) > OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]

    def close(self) -> None:
        """Close the shards; the reader cannot read afterwards."""
        with self._lock:
            files, self._files = self._files or OrderedDict(), None
            for descriptor in files.values():
                os.close(descriptor)

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_files", None):  # absent when __init__ raised
            self.close()


def decode_labels(data: bytes, schema: Sequence[Attribute]) -> list[int]:
    """The variants in a label member, in the schema's order; BadSample unless each fits the schema."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample("its labels are not JSON") from error
    if not isinstance(given, dict) or len(given) != len(schema):
        raise BadSample("its labels are not the schema's")
    values = []
    for attribute in schema:
        value = given.get(attribute.name)
        # type(), not isinstance(): true and false are ints in Python.
        if type(value) is not int or not 0 <= value < attribute.variants:
            raise BadSample(f"{attribute.name} is {value!r:.40}; allowed: 0 to {attribute.variants - 1}")
        values.append(value)
    return values


def prefetch(
    reader: ShardReader, requests: Iterable[Positions], depth: int = 2
) -> Generator[Batch, None, None]:
    """Batches of ``requests``, in order, read by one background thread up to ``depth`` ahead.

    ``requests`` may be endless; it is consumed in that thread. An exception there, the reader's or the
    iterable's, is raised here in its place. The thread starts with the first batch asked for and ends with
    the generator: closing it waits for the read that is under way. The reader stays open.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; allowed: 1 or more")
    return _prefetch(reader, requests, depth)


def _prefetch(reader: ShardReader, requests: Iterable[Positions], depth: int) -> Generator[Batch, None, None]:
    ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
    slots = threading.Semaphore(depth)  # one for each batch that is ready or being read
    stop = threading.Event()

    def work() -> None:
        try:
            for positions in requests:
                slots.acquire()
                if stop.is_set():
                    return
                ready.put(reader.read(positions))
        except BaseException as error:
            ready.put(error)
        else:
            ready.put(None)

    thread = threading.Thread(target=work, name="shards-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            slots.release()
            yield item
    finally:
        stop.set()
        slots.release()
        thread.join()
