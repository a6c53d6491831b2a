"""From shards to tensors: the micro batches of one rank, with everything random about them.

The stream of samples is endless and the same for every run with this seed. Step k of a run with global batch
G uses positions k G .. (k + 1) G - 1, whatever the world: ranks and micro batches only share them out.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffcore.config.tree import Config
from diffcore.diffusion.pixels import to_signal
from diffcore.diffusion.randomness import Draws
from diffcore.engine.ranks import World
from shards.flip import flip
from shards.prefetch import prefetch
from shards.read import ShardReader


@dataclass(frozen=True)
class MicroBatch:
    """Images fp32 [B, 3, H, W] in [-1, 1], labels int64 [B, A], and their noise, timesteps and drops."""

    images: Tensor
    labels: Tensor
    draws: Draws

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro batch on ``device``."""
        return MicroBatch(self.images.to(device), self.labels.to(device), self.draws.to(device))


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

    def ready(positions: np.ndarray) -> MicroBatch:
        batch = reader.read(positions)
        if config.data.flip:
            flip(batch.images, config.seed, batch.positions)
        images = to_signal(batch.images)
        draws = Draws.at(
            batch.positions,
            seed=config.seed,
            timesteps=config.diffusion.timesteps,
            label_dropout=config.diffusion.label_dropout,
            shape=images.shape[1:],
        )
        return MicroBatch(images, torch.from_numpy(batch.labels), draws)

    # Noise takes longer to draw than images to read, so it too is made ahead, while the GPU works.
    for batch in prefetch(ready, requests, config.data.prefetch):
        yield batch.to(world.device)
