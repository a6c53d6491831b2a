"""Exponential moving average of the weights (Ho et al. 2020, appendix B)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from diffcore.config import Ema as EmaConfig
from diffcore.engine import Engine


class Ema:
    """shadow <- decay x shadow + (1 - decay) x weights after every step, in fp32, whole on every rank."""

    def __init__(self, engine: Engine, config: EmaConfig) -> None:
        self.config = config
        self.shadow: dict[str, Tensor] = {name: w.clone() for name, w in engine.full_weights()}

    def decay_at(self, step: int) -> float:
        """Decay of step ``step`` (0 is the first); warmed up so that early weights are soon forgotten."""
        return min(self.config.decay, (1 + step) / (10 + step)) if self.config.warmup else self.config.decay

    @torch.no_grad()
    def update(self, engine: Engine, step: int) -> None:
        """A collective: all ranks call it."""
        weight = 1 - self.decay_at(step)
        if engine.replicated:
            names, weights = zip(*engine.full_weights(), strict=True)
            torch._foreach_lerp_([self.shadow[n] for n in names], list(weights), weight)
            return
        for name, w in engine.full_weights():  # one at a time: gathered whole only for a moment
            self.shadow[name].lerp_(w, weight)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in self.shadow.items():
            value.copy_(weights[name])
