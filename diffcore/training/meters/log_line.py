"""What a line of the log says: the figures of the steps since the last one, by TensorBoard tag."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from diffcore.memory.measure.usage import usage


def figures_of(
    seconds: Mapping[str, float], steps: int, batch: int, flops: int, ranks: int, device: torch.device
) -> dict[str, float]:
    """Speed, shares of the time and memory of ``steps`` steps of ``batch`` images.

    ``seconds``: by part of a step (``StepClock.read``); ``flops``: of one image.
    """
    whole, system = max(sum(seconds.values()), 1e-9), usage(device)
    rate = steps * batch / whole
    return {
        "train/images_per_second": rate,
        "train/tflops_a_rank": rate * flops / ranks / 1e12,
        **{f"time/{part}_ms": value / steps * 1e3 for part, value in seconds.items()},
        "time/data_stall": seconds["data"] / whole,
        "memory/process_mib": (system.own or system.used) / 2**20,
    }
