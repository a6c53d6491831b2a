"""Learning rate as a function of the samples seen, so that it does not depend on the world size."""

from __future__ import annotations

import math

from diffcore.config.tree import Config

# PyTorch's defaults of OneCycleLR (Smith & Topin 2019), which the common recipes use unchanged.
ONECYCLE_RISE, ONECYCLE_START, ONECYCLE_END = 0.3, 1 / 25, 1 / 25 / 1e4


def learning_rate(config: Config, samples: int) -> float:
    """Rate of the step that begins after ``samples`` samples, before any cut (``Progress.lr_factor``).

    Linear warm-up, then constant, steps down, or a cosine (Loshchilov & Hutter 2017, eq. 5, one period) to
    zero at the run's end; or OneCycle over the whole run.
    """
    c, total = config.lr_schedule, config.train.steps * config.batch.size
    if samples < c.warmup_samples:
        # + one batch: the first step already learns something.
        return config.optimizer.lr * min(1.0, (samples + config.batch.size) / c.warmup_samples)
    if c.kind == "step":
        assert c.step_samples is not None
        return config.optimizer.lr * c.step_factor ** (samples // c.step_samples)
    if c.kind == "cosine":
        done = (samples - c.warmup_samples) / max(total - c.warmup_samples, 1)
        return config.optimizer.lr * _between(1, 0, done)
    if c.kind == "onecycle":
        # Positions of steps: the last step of the rise and the last of the run have the phase's end value.
        step, last = samples / config.batch.size, config.train.steps - 1
        top = max(ONECYCLE_RISE * config.train.steps - 1, 1e-9)
        if step <= top:
            return config.optimizer.lr * _between(ONECYCLE_START, 1, step / top)
        return config.optimizer.lr * _between(1, ONECYCLE_END, (step - top) / max(last - top, 1e-9))
    return config.optimizer.lr


def _between(start: float, end: float, done: float) -> float:
    """Half a cosine from ``start`` to ``end`` as ``done`` goes from 0 to 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
