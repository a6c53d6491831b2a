"""Sample grids during training: the same attributes and the same noise at every step, beside real images."""

from __future__ import annotations

import numpy as np
import torch

from diffcore import pictures
from diffcore.config import Config
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.ema import Ema
from diffcore.engine import Engine
from diffcore.monitor import Monitor
from diffcore.sample import draw
from diffcore.world import gather_objects
from shards.read import ShardReader
from shards.remote.cache import Cache
from shards.table import Index


class SampleGrids:
    """Draws for the labels of the first held-out images; every rank draws its share."""

    def __init__(self, config: Config, index: Index) -> None:
        self.config = config
        self.schedule = NoiseSchedule.of(config.diffusion)
        split = "val" if len(index.split("val")) else "train"
        cache = Cache(config.data.cache, config.data.cache_bytes)
        reader = ShardReader(
            config.data.path,
            split,
            seed=config.seed,
            order="sequential",
            on_error=config.data.on_error,
            replace_limit=config.data.replace_limit,
            cache=cache,
        )
        self.real = reader.read(np.arange(min(config.sampling.count, len(reader))))
        reader.close()

    def log(self, step: int, engine: Engine, ema: Ema, monitor: Monitor) -> None:
        """Real, raw and EMA images side by side: a PNG in the run folder, and TensorBoard. A collective."""
        raw = self._draw(engine)
        with engine.swapped(ema.full()):
            averaged = self._draw(engine)
        if not engine.world.main:
            return
        folder = self.config.run / "samples"
        folder.mkdir(exist_ok=True)
        for name, images in {"real": self.real.images, "raw": raw, "ema": averaged}.items():
            tiled = pictures.grid(images, columns=8)
            monitor.image(f"samples/{name}", step, tiled)
            if name != "real" or not (folder / "real.png").exists():
                file = "real.png" if name == "real" else f"{name}-{step:08d}.png"
                pictures.save_png(tiled, folder / file)

    def _draw(self, engine: Engine) -> np.ndarray:
        world, count = engine.world, len(self.real.keys)
        # Equal shares: under ZeRO-3 every forward is a collective, so no rank may have one more.
        share = -(-count // world.size)
        mine = np.arange(world.rank * share, (world.rank + 1) * share) % count
        images = draw(
            engine,
            self.schedule,
            torch.from_numpy(self.real.labels[mine]),
            mine,
            self.config.sampling,
            shape=(3, *self.real.images.shape[1:3]),
            seed=self.config.seed,
            device=world.device,
        )
        return np.concatenate(gather_objects(images, world))[:count]
