"""From shards to tensors: the micro batches of one rank, with everything random about them.

The stream of samples is endless and the same for every run with this seed. Step k of a run with global batch
G uses positions k G .. (k + 1) G - 1, whatever the world: ranks and micro batches only share them out.

A thread reads ahead. On a CPU it makes the whole micro batch. To a GPU go pixels as bytes, labels and
positions, an eighth of what is made of them there; nothing waits for the copies (engine/staging.py).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffcore.config.diffusion import FIRST_DRAWS
from diffcore.config.tree import Config
from diffcore.diffusion import timesteps
from diffcore.diffusion.pixels import to_signal
from diffcore.diffusion.randomness import Draws
from diffcore.engine.ranks import World
from diffcore.engine.staging import pinned, staged
from shards.positions.flip import flip
from shards.prefetch import prefetch
from shards.read import ShardReader


@dataclass(frozen=True)
class MicroBatch:
    """Images fp32 [B, 3, H, W] in [-1, 1], labels int64 [B, A], and their noise, timesteps and drops."""

    images: Tensor
    labels: Tensor
    draws: Draws

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it, as ``of`` takes it."""
        return self.images, self.labels, self.draws.t_B, self.draws.eps_BCHW, self.draws.keep_B

    @classmethod
    def of(cls, tensors: tuple[Tensor, ...]) -> MicroBatch:
        """The micro batch that has these ``tensors``."""
        images, labels, *draws = tensors
        return cls(images, labels, Draws(*draws))

    def rows(self, rows: Tensor) -> MicroBatch:
        """The samples of ``rows``, int64 [N]."""
        return self.of(tuple(tensor[rows] for tensor in self.tensors))

    def to(self, device: torch.device, non_blocking: bool = False) -> MicroBatch:
        """The same micro batch on ``device``; ``non_blocking`` as in torch, for pinned tensors."""
        return self.of(tuple(tensor.to(device, non_blocking=non_blocking) for tensor in self.tensors))


@dataclass(frozen=True)
class Samples:
    """What is read: pixels uint8 [B, H, W, 3], labels int64 [B, A], positions in the stream int64 [B]."""

    pixels: Tensor
    labels: Tensor
    positions: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it."""
        return self.pixels, self.labels, self.positions


def positions_of(
    step: int, micro_step: int, rank: int, world: int, micro: int, size: int, order: str = "full"
) -> np.ndarray:
    """Positions of one micro batch in the stream: int64 [micro].

    In the order ``streams`` a rank has one part of the global batch, whatever the accumulation: the streams
    that lie in it.
    """
    place = rank * (size // world) + micro_step * micro
    first = step * size + (place if order == "streams" else (micro_step * world + rank) * micro)
    return np.arange(first, first + micro)


def read_samples(config: Config, reader: ShardReader, positions: np.ndarray) -> Samples:
    """The samples at ``positions`` [B], mirrored where the config says so, on the CPU."""
    batch = reader.read(positions)
    if config.data.flip:
        flip(batch.images, config.seed, batch.positions)
    return Samples(*(torch.from_numpy(x) for x in (batch.images, batch.labels, batch.positions)))


def draws_of(config: Config, positions_B: Tensor, shape: Sequence[int]) -> Draws:
    """What chance decides for the training samples at ``positions_B``, images of ``shape`` [C, H, W].

    On the positions' device; on the CPU where the config's draws are of the first version.
    """
    d = config.diffusion
    if d.draws == FIRST_DRAWS:
        return Draws.at(
            positions_B.tolist(),
            seed=config.seed,
            timesteps=d.timesteps,
            label_dropout=d.label_dropout,
            shape=shape,
        )
    return Draws.on_device(
        positions_B,
        seed=config.seed,
        timesteps=d.timesteps,
        label_dropout=d.label_dropout,
        shape=shape,
        levels=timesteps.levels_of(d, config.seed, config.batch.size),
    )


def made(config: Config, samples: Samples, side: int | None = None) -> MicroBatch:
    """The micro batch of ``samples``, made on their device; ``side``: edge of its images, of a stage's."""
    images = to_signal(samples.pixels, side)
    return MicroBatch(images, samples.labels, draws_of(config, samples.positions, images.shape[1:]))


def micro_batches(
    config: Config, reader: ShardReader, world: World, start: int, end: int
) -> Generator[MicroBatch, None, None]:
    """This rank's micro batches of the steps ``start`` .. ``end`` - 1, ``accumulation`` of them per step."""
    micro, accumulation = config.batch.split(world.size)
    requests = (
        positions_of(step, micro_step, world.rank, world.size, micro, config.batch.size, reader.order.name)
        for step in range(start, end)
        for micro_step in range(accumulation)
    )
    device, ahead = world.device, config.data.prefetch

    def read(positions: np.ndarray) -> tuple[Tensor, ...]:
        return pinned(read_samples(config, reader, positions).tensors, device)

    def whole(positions: np.ndarray) -> MicroBatch:
        side = config.train.side(int(positions[0]) // config.batch.size, reader.size)
        batch = made(config, read_samples(config, reader, positions), side)
        return MicroBatch.of(pinned(batch.tensors, device))

    if device.type == "cuda" and config.diffusion.draws != FIRST_DRAWS:
        batches = staged(prefetch(read, requests, ahead), device)
        for number, (pixels, labels, positions_B) in enumerate(batches, start * accumulation):
            side = config.train.side(number // accumulation, reader.size)
            # Of the buffers nothing is kept beyond this step.
            yield made(config, Samples(pixels, labels.clone(), positions_B), side)
    else:
        for batch in prefetch(whole, requests, ahead):
            yield batch.to(device, non_blocking=True)
