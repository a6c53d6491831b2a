"""Noise schedules: how much of the image is left at each of T noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcore import config


def linear_betas(c: config.Diffusion) -> Tensor:
    """Betas equally spaced from beta_start to beta_end (Ho et al. 2020, section 4). [T], float64."""
    return torch.linspace(c.beta_start, c.beta_end, c.timesteps, dtype=torch.float64)


def cosine_betas(c: config.Diffusion) -> Tensor:
    """alpha_bar is a squared cosine; betas at most 0.999 (Nichol & Dhariwal 2021, eq. 17). [T], float64."""
    t = torch.arange(c.timesteps + 1, dtype=torch.float64) / c.timesteps
    alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


BETAS: dict[str, Callable[[config.Diffusion], Tensor]] = {"linear": linear_betas, "cosine": cosine_betas}


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha_bar [T] in float64 on the CPU, and the changes of variable that it defines."""

    alpha_bar_T: Tensor
    target: str

    @classmethod
    def of(cls, c: config.Diffusion) -> NoiseSchedule:
        return cls(torch.cumprod(1 - BETAS[c.schedule](c), dim=0), c.target)

    @property
    def timesteps(self) -> int:
        return len(self.alpha_bar_T)

    def signal_noise(self, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), each [B, 1, 1, 1] in ``like``'s dtype and device."""
        # The table goes to the timesteps, not they to it: reading a GPU's tensor would wait for all its work.
        alpha_bar_B = self.alpha_bar_T.to(t_B.device)[t_B]
        shape = (-1, *[1] * (like.ndim - 1))
        pair = (alpha_bar_B.sqrt(), (1 - alpha_bar_B).sqrt())
        signal, noise = (a.view(shape).to(like.device, like.dtype) for a in pair)
        return signal, noise

    def diffuse(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020, eq. 4)."""
        signal, noise = self.signal_noise(t_B, x0)
        return signal * x0 + noise * eps

    def target_of(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """What the network should say: eps, or v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0
        (Salimans & Ho 2022, appendix D)."""
        if self.target == "eps":
            return eps
        signal, noise = self.signal_noise(t_B, x0)
        return signal * eps - noise * x0

    def x0_of(self, prediction: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        """The x_0 that a network's output at x_t stands for."""
        signal, noise = self.signal_noise(t_B, x_t)
        if self.target == "eps":
            return (x_t - noise * prediction) / signal
        return signal * x_t - noise * prediction

    def eps_of(self, x0: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        """The eps that belongs to x_t and x_0."""
        signal, noise = self.signal_noise(t_B, x_t)
        return (x_t - signal * x0) / noise
