"""Samplers: from noise to images, by name from a plain dict.

Each is ``sampler(denoise, schedule, x_T, steps, noise) -> x_0`` where ``denoise(x_t, t_B)`` is the guided
network and ``noise(i)`` gives step i's fresh noise (used by stochastic samplers only). x_0 is clamped to
[-1, 1] at every step: guided noise leaves the images' range, and at high t it would be divided by a tiny
sqrt(alpha_bar) and never come back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffcore.diffusion.guidance import Denoiser
from diffcore.diffusion.schedule import NoiseSchedule

Noise = Callable[[int], Tensor]


def spaced_timesteps(timesteps: int, steps: int) -> list[int]:
    """``steps`` of the T levels, noisiest first, equally spaced and ending in T - 1.

    "trailing" in diffusers and in Lin et al. 2024, table 2: sampling starts where training's noise ends.
    """
    return [round(timesteps - i * timesteps / steps) - 1 for i in range(steps)]


def ddim(denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, steps: int, noise: Noise) -> Tensor:
    """Deterministic DDIM (Song et al. 2021, eq. 12 with sigma = 0)."""
    return _walk(denoise, schedule, x, spaced_timesteps(schedule.timesteps, steps), noise, eta=0.0)


def ddpm(denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, steps: int, noise: Noise) -> Tensor:
    """Ancestral sampling over all T levels (Ho et al. 2020, eqs. 6 and 7); ``steps`` is not used.

    DDIM's eq. 12 with eta = 1 at every level is the same walk.
    """
    return _walk(denoise, schedule, x, list(range(schedule.timesteps))[::-1], noise, eta=1.0)


def _walk(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, ts: list[int], noise: Noise, eta: float
) -> Tensor:
    for i, t in enumerate(ts):
        t_B = torch.full((len(x),), t, device=x.device)
        x0 = schedule.x0_of(denoise(x, t_B), x, t_B).clamp(-1, 1)
        if i + 1 == len(ts):
            return x0
        alpha_bar, alpha_bar_next = schedule.alpha_bar_T[t].item(), schedule.alpha_bar_T[ts[i + 1]].item()
        # Song et al. 2021, eq. 16
        variance = (1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)
        sigma = eta * variance**0.5
        eps = schedule.eps_of(x0, x, t_B)
        x = alpha_bar_next**0.5 * x0 + (1 - alpha_bar_next - sigma**2) ** 0.5 * eps
        if sigma:
            x = x + sigma * noise(i)
    raise ValueError("a sampler needs at least one step")


SAMPLERS: dict[str, Callable[[Denoiser, NoiseSchedule, Tensor, int, Noise], Tensor]] = {
    "ddim": ddim,
    "ddpm": ddpm,
}
