"""A small fixed evaluation while a run trains: the same labels and noise at every call, EMA weights.

    probe = Probe(config, index, world)         # once; None from ``probe_of`` where there is no judge
    figures = probe(engine, ema)                # every k steps, on every rank: {"quality/fidelity": ...}

``quality/fidelity`` is the headline, which ``best`` is chosen by: larger is better. How many attributes it is
over stands beside it, and there is none where the judge reads one of them badly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from diffbase.system_error import is_there
from diffcore.config.tree import Config
from diffcore.diffusion import randomness
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World, from_rank, gather_arrays
from diffcore.evaluation.judging import judge
from diffcore.evaluation.judging.headline import title
from diffcore.evaluation.quality import distances
from diffcore.runs.data import held_out_of, samples_at
from diffcore.runs.draw import draw_shared
from shards.table import Index

SEED = 1
REAL = 1000
"""Most real images that the distance is measured to."""


def probe_of(config: Config, index: Index, world: World, *, samples: int | None = None) -> Probe | None:
    """The probe of a run, or None where there is nothing to judge: no labels, judge or samples.

    ``samples``: drawn, by default ``validation.drawn``. InputError for a judge of other shards, for one that
    is not where ``data.judge`` says, and where ``train.best`` asks for a fidelity that nobody can measure.
    """
    samples = config.validation.drawn if samples is None else samples
    beside = None if isinstance(config.data.path, str) else judge.folder_of(config.data.path)
    folder = config.data.judge or (beside if beside and is_there(beside / "judge.json") else None)
    probe = missing = None
    if not index.schema:
        missing = "the shards have no labels"
    elif not samples:
        missing = "validation.drawn is 0"
    elif folder is None:
        missing = (
            "there is no judge (train one with diffcore.evaluation.train_judge; data.judge is its folder)"
        )
    else:
        probe = Probe(config, index, world, folder, samples)
        missing = probe.judge.refused and f"of {folder}, {probe.judge.refused}"
        if not config.model.conditional:
            missing = "the model takes no labels"
    if missing and config.train.best == "quality/fidelity":
        raise InputError(f"train.best quality/fidelity: {missing}; allowed then: a validation loss")
    return probe


class Probe:
    """Draws ``samples`` images, every rank its share, and has the judge read them on rank 0."""

    def __init__(self, config: Config, index: Index, world: World, folder: Path, samples: int) -> None:
        distances.require()
        self.config, self.size, self.samples = config, index.size, samples
        self.judge = judge.load(folder, index).to(world.device)
        self.schedule = NoiseSchedule.of(config.diffusion)
        self.labels_NA = randomness.labels(SEED, range(samples), [a.variants for a in index.schema])
        self.real_NF = self._real(config, world)
        """Features of real images, on rank 0; elsewhere of none."""
        self.notes: Sequence[str] = []
        if config.model.conditional:
            over = f"quality/fidelity is over {title(self.judge.headline, index.schema)}"
            self.notes = [f"warning: of {folder}, {refused}" if (refused := self.judge.refused) else over]

    def _real(self, config: Config, world: World) -> NDArray[np.floating]:
        """A rank reads whole batches of the judge's, so that it sees the same ones at every world size. A
        collective."""
        split, count = held_out_of(config, REAL)
        numbers_N = np.arange(count)
        shares = [numbers_N[numbers_N // judge.BATCH % world.size == rank] for rank in range(world.size)]
        mine_NF = np.empty((0, self.judge.record["features"]), np.float32)
        if len(own_N := shares[world.rank]):
            mine_NF = self.judge.read(samples_at(config, split, own_N).images).features_NF
        parts = gather_arrays(mine_NF, world)
        return np.concatenate(parts)[np.argsort(np.concatenate(shares))] if world.main else mine_NF[:0]

    def __call__(self, engine: Engine, ema: Ema) -> dict[str, float]:
        """Figures by TensorBoard tag, the same on every rank. A collective: all ranks call it."""
        with engine.swapped(ema.full()):
            images = draw_shared(
                engine,
                self.schedule,
                self.labels_NA,
                self.config.sampling,
                shape=(3, self.size, self.size),
                seed=SEED,
                world=engine.world,
            )
        figures: dict[str, float] = from_rank(
            self._figures(images) if engine.world.main else None, engine.world
        )
        return figures

    def _figures(self, images: NDArray[np.uint8]) -> dict[str, float]:
        reading = self.judge.read(images)
        figures = {"quality/frechet": distances.frechet(self.real_NF, reading.features_NF)}
        if self.config.model.conditional:
            scores = self.judge.score(images, self.labels_NA.numpy(), reading)
            if not self.judge.refused:
                figures["quality/fidelity"] = scores.mean.mean
                figures["quality/fidelity_attributes"] = float(len(self.judge.headline))
            for name, row in scores.shares.items():
                if name in self.judge.readable and row.count:
                    figures[f"quality/{name}"] = row.share
        return figures
