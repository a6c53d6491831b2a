"""What a run has cost so far, over all its lives: images, floating-point work, CPU seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from diffbase.system_error import NO_FILE
from diffcore.engine.ranks import World, sum_over_ranks
from diffcore.runs import metrics

CPU = "spent/cpu_seconds"


class Costs:
    """Counts from the first step of a run; every rank has one, and rank 0's figures are the run's.

    Images are those that were trained on: also of steps that a guard left out or took back, but not those
    that a killed life trained on after its last checkpoint, which are trained on again. FLOPs are theirs
    (``models.flops``): forward and backward of the network, two per multiply-add, without what activation
    checkpointing computes again, validation and drawing; of the optimizer Muon's products alone. So images
    and FLOPs are the recipe's, on every machine and over every resume; CPU seconds are what the machine spent
    on it: all threads of all ranks from when the run was opened, in every life, with reading, validation,
    drawing, judging and saving. Of a killed life they are known up to its last log line.
    """

    def __init__(self, world: World) -> None:
        """From here on this process's CPU seconds count."""
        self._world, self._began = world, time.process_time()
        self._images, self._flops, self._cpu = 0, 0.0, 0.0

    def take_up(self, spent: Mapping[str, float], samples: int, flops: int) -> None:
        """Go on from a checkpoint's ``spent``, made after ``samples`` samples.

        An older checkpoint has none: then the images are its samples, ``flops`` those of all their steps, and
        the CPU seconds begin here.
        """
        self._images = int(spent.get("images", samples))
        self._flops = float(spent.get("flops", flops))
        self._cpu = float(spent.get("cpu_seconds", 0.0))

    def lived(self, seconds: float) -> None:
        """The lives before this one came to so many CPU seconds, or to more (``logged``)."""
        self._cpu = max(self._cpu, seconds)

    def step(self, images: int, flops: int, more: int = 0) -> None:
        """A step on so many images, of ``flops`` each and ``more`` of the optimizer's (Muon's products)."""
        self._images += images
        self._flops += float(images) * flops + more

    def now(self) -> dict[str, float]:
        """``images``, ``flops`` and ``cpu_seconds`` so far, as a checkpoint keeps them. A collective."""
        mine = torch.tensor(time.process_time() - self._began, dtype=torch.float64, device=self._world.device)
        took = sum_over_ranks(mine) if self._world.size > 1 else mine
        return {
            "images": self._images,
            "flops": self._flops,
            "cpu_seconds": round(self._cpu + float(took), 3),
        }


def logged(run: Path) -> float:
    """CPU seconds that the last life of a run told of; 0 where none did."""
    try:
        found = [float(line[CPU]) for line in metrics.read(run) if CPU in line]
    except NO_FILE:
        return 0.0
    return max((value for value in found if math.isfinite(value)), default=0.0)
