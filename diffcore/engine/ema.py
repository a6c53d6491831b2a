"""Exponential moving average of the weights (Ho et al. 2020, appendix B), and power-function averages beside.

The latter: Karras et al. 2024 (arXiv 2312.02696), section 3. The average with exponent g after step t weighs
the weights of step k by the integral over k - 1 .. k of the profile

    p(s) = (g + 1) s^g / t^(g + 1),   0 < s <= t,

so it forgets the start as the run goes on, whatever its length. sigma_rel, its width, is the standard
deviation of the profile over t. ``runs.averages`` makes others of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from diffcore.config.tree import Ema as EmaConfig
from diffcore.engine.engine import Engine
from diffcore.engine.gradients.outcome import Outcome


def exponent_of(sigma_rel: float) -> float:
    """g for a relative width: the largest root of (g + 1) = sigma_rel^2 (g + 2)^2 (g + 3).

    For 0 < ``sigma_rel`` < 12^-1/2, the width of the plain mean (g = 0).
    """
    inverse = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def power_decay(exponent: float, step: int) -> float:
    """Decay of the update after step ``step`` (1 is the first, which makes the average the weights)."""
    return float((1 - 1 / step) ** (exponent + 1))


def kind_of(sigma_rel: float) -> str:
    """What checkpoints call the power-function average of that width."""
    return f"ema_{sigma_rel:g}"


class Ema:
    """average <- decay x average + (1 - decay) x weights after every step, in fp32.

    Each rank averages what it owns of the fp32 masters, so a step costs no traffic and under ZeRO-1 to 3 a
    rank holds 1 / world of the average. It becomes whole where it is read: checkpoints and samples.
    """

    def __init__(self, engine: Engine, config: EmaConfig) -> None:
        self.engine, self.config = engine, config
        self.held = [shard.clone() for shard in engine.masters()]
        """As they are now: a step whose outcome the host does not know yet may be missing."""
        self.powers = [[shard.clone() for shard in engine.masters()] for _ in config.posthoc]
        """Those of ``ema.posthoc`` as they are now; a step that was left out counts, with the
        weights as they stayed."""
        self._exponents = [exponent_of(sigma) for sigma in config.posthoc]
        self._pending: tuple[int, Outcome] | None = None

    @property
    def memory(self) -> list[Tensor]:
        """All tensors that it holds, as they are now."""
        return [*self.held, *(shard for shards in self.powers for shard in shards)]

    def averages(self) -> dict[str, list[Tensor]]:
        """What a checkpoint keeps, by kind: all averages after all steps so far, laid out like
        ``Engine.masters``."""
        kinds = map(kind_of, self.config.posthoc)
        return {"ema": self.shards, **dict(zip(kinds, self.powers, strict=True))}

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
        for exponent, shards in zip(self._exponents, self.powers, strict=True):
            torch._foreach_lerp_(shards, self.engine.masters(), 1 - power_decay(exponent, step + 1))

    def full(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter's average, whole on every rank. A collective; exhaust it.

        A tensor is valid until the next one.
        """
        return self.engine.whole(self.shards)
