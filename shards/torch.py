"""Packed shards for another project's PyTorch loop: by number, or as one rank's endless stream of batches.

    stream = ShardStream("data/demo", batch=256, seed=0)
    loader = StatefulDataLoader(stream, batch_size=None, num_workers=2)  # or torch's own DataLoader
    for images, labels, keys, positions in loader:
        ...

The stream is the one of ``shards.read``: step k has the positions k * G to (k + 1) * G - 1, G being the
global batch. Rank r of W reads the r-th part of them. N workers take the steps in turn, which is the order
in which a DataLoader asks them: what a loop sees does not depend on their number. A state is the step to come
and the name of the stream, so it is good for any world size; nothing that lies before is read again.

Whatever is here can be sent to a spawned worker: its folder is opened anew there.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from diffbase.cli import InputError
from diffbase.machine import launcher
from shards.order import ReaderState
from shards.positions.flip import flip
from shards.prefetch import prefetch
from shards.read import ShardReader
from shards.remote.cache import Cache
from shards.schema import Attribute


class ShardSample(NamedTuple):
    """One sample: image uint8 [3, H, W], labels int64 [A] in the schema's order (-1: unknown), key."""

    image: Tensor
    labels: Tensor
    key: str


class ShardBatch(NamedTuple):
    """Images uint8 [B, 3, H, W], labels int64 [B, A], keys, and positions int64 [B] in the stream."""

    images: Tensor
    labels: Tensor
    keys: list[str]
    positions: Tensor


class Reading(TypedDict, total=False):
    """How the stream is read: settings of ShardReader, of which the defaults are too."""

    seed: int
    order: str
    tail: str
    on_error: str
    replace_limit: int
    threads: int
    cache: Cache | None


class Share(Reading, total=False):
    """And whose part of it: this process's number among the ranks, and how many there are."""

    rank: int | None
    world: int | None


def _chw(images_BHWC: NDArray[np.uint8]) -> Tensor:
    """The same bytes as uint8 [B, 3, H, W], in the memory format channels_last."""
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2)


class Opened:
    """Holds a ShardReader, and another one of the same folder where it is unpickled."""

    def __init__(self, folder: Path | str, split: str, **settings: Any) -> None:
        self._arguments = folder, split, settings
        self._open()

    def _open(self) -> None:
        folder, split, settings = self._arguments
        self.reader = ShardReader(folder, split, **settings)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "reader"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    @property
    def schema(self) -> tuple[Attribute, ...]:
        """The labels' names and variants, in the order of the labels' columns."""
        return self.reader.schema

    @property
    def size(self) -> int:
        """Edge of the images, in pixels."""
        return self.reader.size


class ShardDataset(Opened, Dataset[ShardSample]):
    """A split by number, in the packed order, for torch's samplers; number i is always the same sample.

    A DataLoader reads a batch of it at once. ``on_error``, ``threads`` and ``cache`` are ShardReader's, the
    errors too.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str = "train",
        *,
        on_error: str = "raise",
        threads: int = 1,
        cache: Cache | None = None,
    ) -> None:
        super().__init__(folder, split, order="sequential", on_error=on_error, threads=threads, cache=cache)

    def __len__(self) -> int:
        """Samples in the split."""
        return len(self.reader)

    def __getitem__(self, index: int) -> ShardSample:
        """One sample; IndexError beyond the last one."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[ShardSample]:
        """Some samples in one read, which is much faster than one by one."""
        numbers = [operator.index(index) for index in indices]
        if bad := [index for index in numbers if not -len(self) <= index < len(self)]:
            raise IndexError(f"sample {bad[0]} of a split of {len(self)}")
        batch = self.reader.read([index % len(self) for index in numbers])
        return list(map(ShardSample, _chw(batch.images), torch.from_numpy(batch.labels), batch.keys))


class Steps(Opened):
    """One rank's share of the endless stream, step by step: what ShardStream and ``shards.wds`` share.

    ``batch`` is the global batch; ``rank`` of ``world`` is torch.distributed's where that is initialised,
    else the launcher's ($RANK, $WORLD_SIZE, or srun's or mpirun's), else 0 of 1. The other settings are
    ShardReader's, the errors too; InputError for a batch that the ranks cannot share.

    Every iteration begins anew: at step 0, or where a state of ``state_at`` put the stream. ``state_dict``
    tells where the newest iteration in this process is, and where it is loaded the next one goes on there,
    that one alone. With workers only they know, and a StatefulDataLoader asks them; whoever counts steps gets
    a state from ``state_at``.
    """

    def __init__(
        self,
        folder: Path | str,
        split: str = "train",
        *,
        batch: int,
        rank: int | None = None,
        world: int | None = None,
        **reading: Unpack[Reading],
    ) -> None:
        if unknown := reading.keys() - Reading.__optional_keys__:
            allowed = ", ".join(sorted(Share.__optional_keys__))
            raise TypeError(f"unexpected setting {min(unknown)!r}; beside its own a stream has {allowed}")
        # Plain numbers, here: they go into states.
        if "seed" in reading:
            reading["seed"] = _whole("seed", reading["seed"])
        batch = _whole("batch", batch)
        # Once, here: in a worker process torch.distributed would not know.
        self.rank, self.world = _place(rank, world)
        if batch < 1 or batch % self.world:
            ranks = "1 rank" if self.world == 1 else f"{self.world} ranks"
            raise InputError(
                f"batch is {batch} for {ranks}; allowed: a multiple of {self.world}, for all together"
            )
        self.batch = batch
        # Steps: where an iteration begins, where the first worker began the newest one, the one to come.
        self._put = self._origin = self._next = 0
        self._loaded = False  # a state, with which the next iteration goes on
        super().__init__(folder, split, batch=batch, **reading)

    def turns(self) -> Iterator[int]:
        """A new iteration's steps: each so many-th from where it begins, such that the workers take turns.

        It begins at ``_next``, and whoever hands out what the steps hold keeps that at the one to come.
        """
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if not self._loaded:
            self._origin = self._next = self._put
        self._loaded = False
        return count(self._next + (self._origin + index - self._next) % workers, workers)

    def positions(self, step: int) -> NDArray[np.int64]:
        """This rank's positions of a step: int64 [batch / world]."""
        size = self.batch // self.world
        first = step * self.batch + self.rank * size
        return np.arange(first, first + size)

    def state_at(self, step: int) -> dict[str, Any]:
        """The state after ``step`` steps of a run, for any number of workers; see ``load_state_dict``."""
        step, most = _whole("step", step), (1 << 62) // self.batch - 1
        if not 0 <= step <= most:
            raise InputError(f"step is {step}; allowed: 0 to {most}")
        return self._state(None, step)

    def state_dict(self) -> dict[str, Any]:
        """Where the newest iteration is, in plain numbers and text."""
        return self._state(self._origin if get_worker_info() else self._next, self._next)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there in the next iteration, at any world size, or in each if the state is of ``state_at``.

        InputError for another stream's state, or none.
        """
        if not isinstance(state, Mapping):
            raise InputError(f"not a stream's state ({state!r:.40})")
        given = dict(state)
        self._load(given)
        origin = given.pop("origin", "")  # None: of ``state_at``
        position = self.reader.resume(ReaderState.of(given))
        step = position // self.batch
        first = step if origin is None else origin
        if type(first) is not int or position % self.batch or not 0 <= first <= step or position >= 1 << 62:
            raise InputError(f"not a stream's state (position {position}, origin {origin!r:.40})")
        if first != step and not get_worker_info():
            raise InputError("the state of one worker; allowed: its StatefulDataLoader's, loaded by one")
        if origin is None:
            self._put = step
        self._origin, self._next, self._loaded = first, step, origin is not None

    def _state(self, origin: int | None, step: int) -> dict[str, Any]:
        return asdict(self.reader.state(step * self.batch)) | {"origin": origin}

    def _load(self, given: dict[str, Any]) -> None:
        """Take out of a state what a subclass put into it."""


class ShardStream(Steps, IterableDataset[ShardBatch]):
    """One rank's batches of the endless stream, for a DataLoader with ``batch_size=None``; see ``Steps``.

    ``flip``: half of the images are mirrored; which, the seed and the position say. Without workers a thread
    reads ``ahead`` batches in advance (0: none).
    """

    def __init__(
        self,
        folder: Path | str,
        split: str = "train",
        *,
        batch: int,
        flip: bool = False,
        ahead: int = 2,
        **share: Unpack[Share],
    ) -> None:
        if ahead < 0:
            raise ValueError(f"ahead is {ahead}; allowed: 0 or more")
        self.flip, self.ahead = bool(flip), ahead
        super().__init__(folder, split, batch=batch, **share)

    def read(self, step: int) -> ShardBatch:
        """This rank's batch of a step."""
        batch = self.reader.read(self.positions(step))
        if self.flip:
            flip(batch.images, self.reader.order.seed, batch.positions)
        labels, positions = torch.from_numpy(batch.labels), torch.from_numpy(batch.positions)
        return ShardBatch(_chw(batch.images), labels, batch.keys, positions)

    def __iter__(self) -> Iterator[ShardBatch]:
        """This rank's batches, or those of them whose turn it is in this worker."""
        return self._batches(self.turns())

    def _batches(self, steps: Iterator[int]) -> Iterator[ShardBatch]:
        if self.ahead and get_worker_info() is None:
            made: Generator[tuple[int, ShardBatch], None, None] = prefetch(self._step, steps, self.ahead)
        else:
            made = (self._step(step) for step in steps)
        with closing(made):
            for step, batch in made:
                self._next = step + 1
                yield batch

    def _step(self, step: int) -> tuple[int, ShardBatch]:
        return step, self.read(step)

    def _state(self, origin: int | None, step: int) -> dict[str, Any]:
        return super()._state(origin, step) | {"flip": self.flip}

    def _load(self, given: dict[str, Any]) -> None:
        before = given.pop("flip", None)
        if before is not self.flip:
            raise InputError(
                f"the state is of another stream: its flip is {before!r:.40}, here it is {self.flip}"
            )


def _place(rank: int | None, world: int | None) -> tuple[int, int]:
    if (rank is None) != (world is None):
        raise InputError(f"rank is {rank} and world {world}; allowed: both, or none of them")
    if rank is None or world is None:
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return launcher.rank_and_size(launcher.told(os.environ))
    rank, world = _whole("rank", rank), _whole("world", world)
    if world < 1:
        raise InputError(f"world is {world}; allowed: 1 or more")
    if not 0 <= rank < world:
        raise InputError(f"rank is {rank} of world {world}; allowed: 0 to {world - 1}")
    return rank, world


def _whole(name: str, given: Any) -> int:
    """A whole number of any library's as Python's own; InputError for what is none."""
    try:
        if not isinstance(given, bool):
            return operator.index(given)
    except TypeError:
        pass
    raise InputError(f"{name} is {given!r:.40}; allowed: whole numbers")
