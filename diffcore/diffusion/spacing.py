"""Which of a schedule's T levels a sampler steps through, noisiest first. The first is always T - 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from diffcore.diffusion.schedule import RHO, NoiseSchedule

LAMBDA_MIN = -5.1
"""Lowest log(alpha / sigma) that ``logsnr_timesteps`` spaces from: a cosine schedule ends far below it, where
nothing is decided (Lu et al. 2022 cut it there too)."""
SIGMA_MAX = 80.0
"""Highest sigma / alpha that ``rho_timesteps`` spaces from (Karras et al. 2022, table 1)."""


def spaced_timesteps(timesteps: int, steps: int) -> list[int]:
    """``steps`` of the T levels, noisiest first, equally spaced from T - 1 down.

    "trailing" in diffusers and in Lin et al. 2024, table 2: sampling starts where training's noise ends.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps is {steps}; allowed: 1 to {timesteps}")
    return [round(timesteps - i * timesteps / steps) - 1 for i in range(steps)]


def logsnr_timesteps(schedule: NoiseSchedule, steps: int) -> list[int]:
    """At most ``steps`` levels, noisiest first, equally spaced in log(alpha / sigma) (Lu et al. 2022).

    The first is T - 1. Equal steps in t are long ones in logSNR at both ends of a cosine schedule, and there
    a second-order solver bursts under strong guidance. Fewer where several fall on the same level.
    """
    spaced_timesteps(schedule.timesteps, steps)  # the same bounds
    lambda_T = 0.5 * torch.log(schedule.alpha_bar_T / (1 - schedule.alpha_bar_T))
    low, high = max(float(lambda_T[-1]), LAMBDA_MIN), float(lambda_T[0])
    wanted = [low + (high - low) * i / steps for i in range(1, steps)]
    return _nearest(lambda_T, wanted)


def rho_timesteps(schedule: NoiseSchedule, steps: int) -> list[int]:
    """At most ``steps`` levels, noisiest first, equally spaced in the 7th root of sigma / alpha.

    Karras et al. 2022, eq. 5, but that the last is a step above the schedule's least noise, as of the others:
    from there the image is a step away. The first is T - 1. Fewer where several fall on the same level.
    """
    spaced_timesteps(schedule.timesteps, steps)
    root_T = ((1 - schedule.alpha_bar_T) / schedule.alpha_bar_T) ** (0.5 / RHO)
    high, low = min(float(root_T[-1]), SIGMA_MAX ** (1 / RHO)), float(root_T[0])
    return _nearest(root_T, [high + (low - high) * i / steps for i in range(1, steps)])


def _nearest(scale_T: torch.Tensor, wanted: Sequence[float]) -> list[int]:
    last = len(scale_T) - 1
    levels = {int((scale_T - value).abs().argmin()) for value in wanted}
    return [last, *sorted(levels - {last}, reverse=True)]


SPACINGS: dict[str, Callable[[NoiseSchedule, int], list[int]]] = {
    "time": lambda schedule, steps: spaced_timesteps(schedule.timesteps, steps),
    "logsnr": logsnr_timesteps,
    "rho": rho_timesteps,
}
