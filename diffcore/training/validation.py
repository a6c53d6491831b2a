"""Loss on held-out images, with noise and timesteps that are the same at every step and in every run."""

from __future__ import annotations

import torch
from torch import Tensor

from diffcore.config.tree import Config
from diffcore.diffusion.loss import denoising_loss, uniform
from diffcore.diffusion.pixels import to_signal
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import sum_over_ranks
from diffcore.runs.data import first_samples
from diffcore.training.batches import MicroBatch
from shards.table import Index

SEED = 0
"""Not the run's: validation losses of runs with other seeds compare."""


class Validation:
    """The first ``validation.samples`` images of the split val. Unweighted, labels never dropped."""

    def __init__(self, config: Config, index: Index) -> None:
        self.schedule = NoiseSchedule.of(config.diffusion)
        self.count = min(config.validation.samples, len(index.split("val")))
        if not self.count:
            return
        read = first_samples(config, "val", self.count)
        images = to_signal(read.images)
        draws = Draws.at(
            range(self.count),
            seed=SEED,
            timesteps=config.diffusion.timesteps,
            label_dropout=0.0,
            shape=images.shape[1:],
            stream="validation",
        )
        self._all = MicroBatch(images, torch.from_numpy(read.labels), draws)

    @torch.no_grad()
    def loss(self, engine: Engine) -> float:
        """Mean loss of the network as it is. The same for any world size, to rounding. A collective."""
        world, size = engine.world, engine.micro
        weights_T = uniform(self.schedule)
        total = torch.zeros(1, dtype=torch.float64)
        # Every rank makes as many forward passes (under ZeRO-3 each is a collective): some see images twice.
        passes = -(-self.count // (size * world.size))
        for k in range(passes):
            first = (k * world.size + world.rank) * size
            mine = torch.arange(first, first + size)
            batch = _take(self._all, mine % self.count).to(world.device)
            error_B = denoising_loss(
                engine, self.schedule, weights_T, batch.images, batch.labels, batch.draws
            )
            total += (error_B.double().cpu() * (mine < self.count)).sum()
        return sum_over_ranks(total.to(world.device)).item() / self.count


def _take(batch: MicroBatch, rows: Tensor) -> MicroBatch:
    draws = Draws(batch.draws.t_B[rows], batch.draws.eps_BCHW[rows], batch.draws.keep_B[rows])
    return MicroBatch(batch.images[rows], batch.labels[rows], draws)
