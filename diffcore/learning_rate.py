"""Learning rate as a function of the samples seen, so that it does not depend on the world size."""

from __future__ import annotations

import math

from diffcore.config import Config


def learning_rate(config: Config, samples: int) -> float:
    """Rate of the step that begins after ``samples`` samples: linear warm-up, then constant or a cosine
    (Loshchilov & Hutter 2017, eq. 5, one period) to zero at the run's end."""
    warmup, total = config.lr_schedule.warmup_samples, config.train.steps * config.batch.size
    if samples < warmup:
        # + one batch: the first step already learns something.
        return config.optimizer.lr * min(1.0, (samples + config.batch.size) / warmup)
    if config.lr_schedule.kind == "constant":
        return config.optimizer.lr
    done = (samples - warmup) / max(total - warmup, 1)
    return config.optimizer.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
