"""A small fixed evaluation while a run trains: the same wishes and noise at every call, EMA weights.

    probe = Probe(config, index, world)         # once; None from ``probe_of`` where there is no judge
    figures = probe(engine, ema)                # every k steps, on every rank: {"quality/fidelity": ...}

``quality/fidelity`` is the mean that ``best`` is chosen by: larger is better.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffcore.config import Config
from diffcore.diffusion import randomness
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.ema import Ema
from diffcore.engine import Engine
from diffcore.evaluation import distances, judge
from diffcore.sample import draw
from diffcore.world import World, gather_objects
from shards.read import ShardReader
from shards.table import Index

SEED = 1
BATCH = 64


def probe_of(
    config: Config, index: Index, world: World, *, folder: Path | None = None, samples: int = 256
) -> Probe | None:
    """The probe of a run, or None where there is nothing to judge: no labels, judge or samples.

    ``folder``: the judge's; then a missing one is an InputError. One of other shards always is.
    """
    if not index.schema or not samples:
        return None
    if folder is None:
        if isinstance(config.data.path, str) or not (config.data.path / "judge" / "judge.json").exists():
            return None
        folder = judge.folder_of(config.data.path)
    return Probe(config, index, world, folder, samples)


class Probe:
    """Draws ``samples`` images, every rank its share, and has the judge read them."""

    def __init__(self, config: Config, index: Index, world: World, folder: Path, samples: int) -> None:
        self.config, self.size, self.samples = config, index.size, samples
        self.judge = judge.load(folder, index).to(world.device)
        self.schedule = NoiseSchedule.of(config.diffusion)
        self.labels_NA = randomness.labels(SEED, range(samples), [a.variants for a in index.schema])
        split = "val" if len(index.split("val")) > 1 else "train"
        with ShardReader(config.data.path, split, order="sequential") as reader:
            real = reader.read(np.arange(min(len(reader), 1000)))
        self.real_NF = self.judge.read(real.images).features_NF

    def __call__(self, engine: Engine, ema: Ema) -> dict[str, float]:
        """Figures by TensorBoard tag, the same on every rank. A collective: all ranks call it."""
        world = engine.world
        # Equal shares: under ZeRO-3 every forward is a collective, so no rank may have one more.
        share = -(-self.samples // world.size)
        mine = np.arange(world.rank * share, (world.rank + 1) * share) % self.samples
        parts = []
        with engine.swapped(ema.full()):
            for first in range(0, share, BATCH):
                part = mine[first : first + BATCH]
                parts.append(
                    draw(
                        engine,
                        self.schedule,
                        self.labels_NA[part],
                        part,
                        self.config.sampling,
                        shape=(3, self.size, self.size),
                        seed=SEED,
                        device=world.device,
                    )
                )
        images = np.concatenate(gather_objects(np.concatenate(parts), world))[: self.samples]
        reading = self.judge.read(images)
        figures = {"quality/frechet": distances.frechet(self.real_NF, reading.features_NF)}
        if self.config.model.conditional:
            scores = self.judge.score(images, self.labels_NA.numpy(), reading)
            figures["quality/fidelity"] = scores.mean.mean
            for name, row in scores.shares.items():
                if name in self.judge.readable and row.count:
                    figures[f"quality/{name}"] = row.share
        return figures
