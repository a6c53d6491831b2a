"""Sample grids during training: the same attributes and the same noise at every step, beside real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diffbase.files import write_json
from diffbase.page import pictures
from diffcore.config.tree import Config
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World, from_rank
from diffcore.runs.data import first_samples, held_out
from diffcore.runs.draw import draw_shared
from diffcore.runs.sampling import spoken, told
from diffcore.training.loggers.monitor import Monitor
from shards.table import Index


class SampleGrids:
    """Draws for the labels of the first held-out images; every rank draws its share.

    Rank 0 reads those images, which it alone shows, and tells the others their labels: making it is a
    collective.
    """

    def __init__(self, config: Config, index: Index, world: World) -> None:
        self.config, self.schema, self.size = config, index.schema, index.size
        self.schedule = NoiseSchedule.of(config.diffusion)
        self.real = first_samples(config, held_out(index), config.sampling.count) if world.main else None
        self.labels: list[list[int]] = from_rank(self.real and self.real.labels.tolist(), world)
        self._kept = set[str]()  # what this process wrote once: a resume may have another count

    def log(self, step: int, engine: Engine, ema: Ema, monitor: Monitor) -> None:
        """Real, raw and EMA images side by side: a PNG in the run folder, and TensorBoard. A collective."""
        raw = self._draw(engine)
        with engine.swapped(ema.full()):
            averaged = self._draw(engine)
        if self.real is None:
            return
        folder = self.config.run / "samples"
        for name, images in {"real": self.real.images, "raw": raw, "ema": averaged}.items():
            tiled = pictures.grid(images, columns=8)
            monitor.image(f"samples/{name}", step, tiled)
            if name not in self._kept:
                file = "real.png" if name == "real" else f"{name}-{step:08d}.png"
                with monitor.writing("samples"):
                    folder.mkdir(exist_ok=True)
                    pictures.save_png(tiled, folder / file)
                    if name == "real":
                        self._kept.add(name)
        self._say_labels(folder / "labels.json", monitor)

    def _say_labels(self, path: Path, monitor: Monitor) -> None:
        """What the cells of every grid were asked for, once."""
        if self.schema and path.name not in self._kept:
            lines = [f"{number}: {spoken(self.schema, row)}" for number, row in enumerate(self.labels)]
            monitor.text("samples/labels", "\n".join(lines))
            with monitor.writing("samples"):
                write_json(path, [told(self.schema, row) for row in self.labels])
                self._kept.add(path.name)

    def _draw(self, engine: Engine) -> NDArray[np.uint8]:
        return draw_shared(
            engine,
            self.schedule,
            torch.tensor(self.labels, dtype=torch.int64),
            self.config.sampling,
            shape=(3, self.size, self.size),
            seed=self.config.seed,
            world=engine.world,
        )
