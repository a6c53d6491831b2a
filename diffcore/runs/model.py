"""A trained network, ready to draw: opened from a run folder, one of its checkpoints, or an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffcore import models
from diffcore.config.tree import Config, Sampling
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine.ranks import one_device
from diffcore.runs import source
from diffcore.runs.draw import BATCH, draw
from shards.schema import Attribute


@dataclass(frozen=True)
class TrainedModel:
    """A network with a checkpoint's weights, and what is needed to draw with it."""

    config: Config
    schema: tuple[Attribute, ...]
    size: int
    step: int
    network: nn.Module
    schedule: NoiseSchedule
    device: torch.device
    fingerprint: str
    """Fingerprint of the shards that the network learned from."""

    def draw(
        self,
        labels_BA: Tensor,
        sampling: Sampling,
        seed: int,
        batch: int = BATCH,
        positions: Sequence[int] | None = None,
    ) -> NDArray[np.uint8]:
        """Images for ``labels``, ``batch`` at a time: uint8 [B, H, W, 3].

        At ``positions`` of the noise (default 0 .. B - 1).
        """
        places = range(len(labels_BA)) if positions is None else positions
        return draw(
            self.network, self.schedule, labels_BA, places, sampling,
            shape=(3, self.size, self.size), seed=seed, device=self.device, batch=batch,
        )  # fmt: skip


def load_model(path: Path, weights: str = "ema", which: str = "newest") -> TrainedModel:
    """The network of a run, a checkpoint or an export. InputError where there is none.

    ``weights``: ema, or raw for what the optimizer has. ``which``, of a run: newest, best or a step.
    """
    found = source.find(path, which)
    config, device = found.config, one_device()
    network = models.build(config.model, found.schema, found.size)
    network.load_state_dict(found.weights(weights))
    network.to(device).eval().requires_grad_(False)
    schedule = NoiseSchedule.of(config.diffusion)
    return TrainedModel(
        config, found.schema, found.size, found.step, network, schedule, device, found.fingerprint
    )


def load_network(folder: Path | str, which: str = "ema") -> nn.Module:
    """The network alone, in evaluation mode on the CPU; see ``models`` for what it takes and gives."""
    found = source.find(Path(folder))
    network = models.build(found.config.model, found.schema, found.size)
    network.load_state_dict(found.weights(which))
    return network.eval().requires_grad_(False)
