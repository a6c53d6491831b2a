"""Loss on held-out images, with noise and timesteps that are the same at every step and in every run."""

from __future__ import annotations

import numpy as np
import torch

from diffcore.config.tree import Config
from diffcore.diffusion.loss import denoising_loss, uniform
from diffcore.diffusion.pixels import to_signal
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World, sum_over_ranks
from diffcore.runs.data import samples_at
from diffcore.training.batches import MicroBatch
from shards.table import Index

SEED = 0
"""Not the run's: validation losses of runs with other seeds compare."""


class Validation:
    """The first ``validation.samples`` images of the split val. Unweighted, labels never dropped.

    A rank reads and holds those that it measures alone. Every rank makes as many forward passes (under ZeRO-3
    each is a collective): some see images twice, which count once.
    """

    def __init__(self, config: Config, index: Index, world: World, micro: int) -> None:
        """``micro``: images of a forward pass. Raises the errors of ShardReader."""
        self.schedule = NoiseSchedule.of(config.diffusion)
        self.count = min(config.validation.samples, len(index.split("val")))
        if not self.count:
            return
        passes = -(-self.count // (micro * world.size))
        self._numbers = [
            np.arange(first, first + micro)
            for first in ((k * world.size + world.rank) * micro for k in range(passes))
        ]
        """Of the images of each pass; from ``count`` on they do not count."""
        self._held = np.unique(np.concatenate(self._numbers) % self.count)
        read = samples_at(config, "val", self._held)
        images = to_signal(read.images)
        draws = Draws.at(
            self._held.tolist(),
            seed=SEED,
            timesteps=config.diffusion.timesteps,
            label_dropout=0.0,
            shape=images.shape[1:],
            stream="validation",
        )
        self._images = MicroBatch(images, torch.from_numpy(read.labels), draws)

    @torch.no_grad()
    def loss(self, engine: Engine) -> float:
        """Mean loss of the network as it is. The same for any world size, to rounding. A collective."""
        weights_T = uniform(self.schedule)
        total = torch.zeros(1, dtype=torch.float64)
        for numbers in self._numbers:
            rows = torch.from_numpy(np.searchsorted(self._held, numbers % self.count))
            batch = self._images.rows(rows).to(engine.world.device)
            error_B = denoising_loss(
                engine, self.schedule, weights_T, batch.images, batch.labels, batch.draws
            )
            total += (error_B.double().cpu() * torch.from_numpy(numbers < self.count)).sum()
        return sum_over_ranks(total.to(engine.world.device)).item() / self.count
