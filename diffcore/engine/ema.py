"""Exponential moving average of the weights (Ho et al. 2020, appendix B)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffcore.config.tree import Ema as EmaConfig
from diffcore.engine.engine import Engine
from diffcore.engine.gradients.outcome import Outcome


class Ema:
    """average <- decay x average + (1 - decay) x weights after every step, in fp32.

    Each rank averages what it owns of the fp32 masters, so a step costs no traffic and under ZeRO-1 to 3 a
    rank holds 1 / world of the average. It becomes whole where it is read: checkpoints and samples.
    """

    def __init__(self, engine: Engine, config: EmaConfig) -> None:
        self.engine, self.config = engine, config
        self.held = [shard.clone() for shard in engine.masters()]
        """As they are now: a step whose outcome the host does not know yet may be missing."""
        self._pending: tuple[int, Outcome] | None = None

    @property
    def shards(self) -> list[Tensor]:
        """This rank's part of the average after all steps so far, laid out like ``Engine.masters``."""
        self.settle()
        return self.held

    def decay_at(self, step: int) -> float:
        """Decay of step ``step`` (0 is the first); warmed up so that early weights are soon forgotten."""
        since = step - self.config.start_step
        if since < 0:
            return 0.0
        return min(self.config.decay, (1 + since) / (10 + since)) if self.config.warmup else self.config.decay

    def update(self, step: int, outcome: Outcome | None = None) -> None:
        """Update the average after the optimizer's step ``step``, unless by ``outcome`` it was left out.

        An outcome that is not known yet is waited for by ``settle``, before the weights change again.
        """
        self.settle()
        self._pending = step, outcome or Outcome(True)
        if self._pending[1].known:
            self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Take in the step that waits for its outcome, if any; the weights are those after it."""
        if self._pending is None:
            return
        (step, outcome), self._pending = self._pending, None
        if outcome.applied():
            torch._foreach_lerp_(self.held, self.engine.masters(), 1 - self.decay_at(step))

    def full(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter's average, whole on every rank. A collective; exhaust it.

        A tensor is valid until the next one.
        """
        return self.engine.whole(self.shards)
