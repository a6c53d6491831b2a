"""Exponential moving average of the weights (Ho et al. 2020, appendix B)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffcore.config.tree import Ema as EmaConfig
from diffcore.engine.engine import Engine


class Ema:
    """average <- decay x average + (1 - decay) x weights after every step, in fp32.

    Each rank averages what it owns of the fp32 masters, so a step costs no traffic and under ZeRO-1 to 3 a
    rank holds 1 / world of the average. It becomes whole where it is read: checkpoints and samples.
    """

    def __init__(self, engine: Engine, config: EmaConfig) -> None:
        self.engine, self.config = engine, config
        self.shards = [shard.clone() for shard in engine.masters()]

    def decay_at(self, step: int) -> float:
        """Decay of step ``step`` (0 is the first); warmed up so that early weights are soon forgotten."""
        since = step - self.config.start_step
        if since < 0:
            return 0.0
        return min(self.config.decay, (1 + since) / (10 + since)) if self.config.warmup else self.config.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after the optimizer's step ``step``."""
        torch._foreach_lerp_(self.shards, self.engine.masters(), 1 - self.decay_at(step))

    def full(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter's average, whole on every rank. A collective; exhaust it.

        A tensor is valid until the next one.
        """
        return self.engine.whole(self.shards)
