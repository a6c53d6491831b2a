"""Classifier-free guidance (Ho & Salimans 2022, eq. 6), with diffusers' convention of the scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffcore.diffusion.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, int], Tensor]
"""(x_t [B, C, H, W], its level t) -> x_0 [B, C, H, W]."""


@dataclass(frozen=True)
class _Guided:
    """A Denoiser with a limit."""

    denoise: Denoiser
    limit: Callable[[Tensor], Tensor] | None
    """For samplers that extrapolate: what they make of several x_0 must stay in the range as well."""

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        """The x_0 of ``denoise``."""
        return self.denoise(x_t, t)


def guided(
    network: nn.Module,
    schedule: NoiseSchedule,
    labels_BA: Tensor,
    scale: float,
    *,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
    clamp: bool = True,
) -> Denoiser:
    """unconditional + scale x (conditional - unconditional): 0 is unconditional, 1 plain conditional.

    One doubled batch per step; a single one where the scale leaves only one of the two. ``rescale`` pulls the
    guided prediction's standard deviation back to the conditional one's by this share (Lin et al. 2024,
    eqs. 15 and 16). Outside of ``interval``, a range of t / (T - 1), the scale is 1 (Kynkaanniemi et al.
    2024). ``clamp`` keeps x_0 within what an image can be: guided noise leaves that range, and at high t it
    would be divided by a tiny sqrt(alpha_bar) and never come back.
    """
    keep_B = torch.ones(len(labels_BA), dtype=torch.bool, device=labels_BA.device)
    low, high = (edge * (schedule.timesteps - 1) for edge in interval)

    def predict(x_t: Tensor, t: int, t_B: Tensor) -> Tensor:
        now = scale if low <= t <= high else 1.0
        if now in (0, 1):
            one: Tensor = network(x_t, t_B, labels_BA, keep_B if now else ~keep_B)
            return one.to(x_t.dtype)
        both: Tensor = network(
            torch.cat([x_t, x_t]),
            torch.cat([t_B, t_B]),
            torch.cat([labels_BA, labels_BA]),
            torch.cat([~keep_B, keep_B]),
        )
        unconditional, conditional = both.to(x_t.dtype).chunk(2)
        mixed = torch.lerp(unconditional, conditional, now)
        if rescale:
            dims = list(range(1, x_t.ndim))
            ratio = conditional.std(dims, keepdim=True) / mixed.std(dims, keepdim=True)
            mixed = mixed * (rescale * ratio + 1 - rescale)
        return mixed

    def denoise(x_t: Tensor, t: int) -> Tensor:
        t_B = torch.full((len(x_t),), t, device=x_t.device)
        x0 = schedule.x0_of(predict(schedule.network_input(x_t, t_B), t, t_B), x_t, t_B)
        return schedule.clamp(x0) if clamp else x0

    return _Guided(denoise, schedule.clamp if clamp else None)
