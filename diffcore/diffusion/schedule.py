"""Noise schedules: how much of the image is left at each of T noise levels.

With an input scale b (Chen 2023) everything here and in the samplers works on b x_0, which moves logSNR by
2 log b; images come back by ``unscale``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffcore.config.tree import Diffusion

INVISIBLE_SNR = 1e-4
"""Below this the signal is a hundredth of the noise: no network sees an image there."""


def linear_betas(c: Diffusion) -> Tensor:
    """Betas equally spaced from beta_start to beta_end (Ho et al. 2020, section 4). [T], float64."""
    return torch.linspace(c.beta_start, c.beta_end, c.timesteps, dtype=torch.float64)


def cosine_betas(c: Diffusion) -> Tensor:
    """alpha_bar is a squared cosine; betas at most 0.999 (Nichol & Dhariwal 2021, eq. 17). [T], float64."""
    t = torch.arange(c.timesteps + 1, dtype=torch.float64) / c.timesteps
    alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def sigmoid_betas(c: Diffusion) -> Tensor:
    """Betas on a sigmoid over [-6, 6] from beta_start to beta_end (Xu et al. 2022, GeoDiff). [T], float64."""
    ramp = torch.linspace(-6, 6, c.timesteps, dtype=torch.float64).sigmoid()
    return c.beta_start + (c.beta_end - c.beta_start) * ramp


BETAS: dict[str, Callable[[Diffusion], Tensor]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
}


def with_zero_terminal_snr(alpha_bar_T: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that the last level is pure noise (Lin et al. 2024, algorithm 1)."""
    root = alpha_bar_T.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha_bar [T] in float64 on the CPU, and the changes of variable that it defines."""

    alpha_bar_T: Tensor
    target: str
    input_scale: float = 1.0
    lowest: float = -1.0
    """x_0 of a black pixel before the input scale; that of a white one is 1."""
    _on: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Copies of the table on devices where it was needed."""

    @classmethod
    def of(cls, c: Diffusion) -> NoiseSchedule:
        """The schedule of a config: its betas, made to end in pure noise where that is asked."""
        alpha_bar_T = torch.cumprod(1 - BETAS[c.schedule](c), dim=0)
        if c.zero_terminal_snr:
            alpha_bar_T = with_zero_terminal_snr(alpha_bar_T)
        return cls(alpha_bar_T, c.target, c.input_scale, 0.0 if c.pixels == "unit" else -1.0)

    def shifted(self, factor: float) -> NoiseSchedule:
        """The same with logSNR raised by 2 log ``factor`` at every level (Hoogeboom et al. 2023).

        The mean of factor x factor pixels of an x_t is, but for its scale, an x_t of this schedule.
        """
        signal = factor**2 * self.alpha_bar_T
        return replace(self, alpha_bar_T=signal / (1 - self.alpha_bar_T + signal), _on={})

    @property
    def timesteps(self) -> int:
        """T, the number of noise levels."""
        return len(self.alpha_bar_T)

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio b^2 alpha_bar / (1 - alpha_bar) of each level, for data of unit scale. [T]"""
        return self.input_scale**2 * self.alpha_bar_T / (1 - self.alpha_bar_T)

    @property
    def wasted(self) -> float:
        """Share of the levels that show nothing of the image: training there teaches next to nothing."""
        return float((self.snr < INVISIBLE_SNR).double().mean())

    @property
    def warnings(self) -> list[str]:
        """One line for each way in which the schedule is likely to hurt."""
        lines = []
        if self.wasted > 0.1:
            lines.append(
                f"warning: {self.wasted:.0%} of the {self.timesteps} noise levels show nothing of the image "
                f"(SNR below {INVISIBLE_SNR:g}): smaller betas or fewer timesteps would waste fewer steps"
            )
        if self.snr[-1] > 0.01:
            lines.append(
                f"warning: the last noise level still has SNR {self.snr[-1]:.2g}, but sampling starts from "
                f"pure noise: more timesteps, larger betas or zero_terminal_snr"
            )
        return lines

    def signal_noise(self, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), each [B, 1, 1, 1] in ``like``'s dtype and device."""
        # The table goes to the timesteps, not they to it: reading a GPU's tensor would wait for all its work.
        # It goes once: a copy from memory that is not pinned waits too.
        if t_B.device not in self._on:
            self._on[t_B.device] = self.alpha_bar_T.to(t_B.device)
        alpha_bar_B = self._on[t_B.device][t_B]
        shape = (-1, *[1] * (like.ndim - 1))
        pair = (alpha_bar_B.sqrt(), (1 - alpha_bar_B).sqrt())
        signal, noise = (a.view(shape).to(like.device, like.dtype) for a in pair)
        return signal, noise

    def scale(self, images: Tensor) -> Tensor:
        """x_0 of images in [-1, 1]: b times them (Chen 2023, section 2.2), or of their form in [0, 1]."""
        if self.lowest != -1:
            images = self.lowest + (images + 1) * (1 - self.lowest) / 2
        return images * self.input_scale if self.input_scale != 1 else images

    def unscale(self, x0: Tensor) -> Tensor:
        """Images of an x_0."""
        images = x0 / self.input_scale if self.input_scale != 1 else x0
        return (images - self.lowest) * 2 / (1 - self.lowest) - 1 if self.lowest != -1 else images

    def clamp(self, x0: Tensor) -> Tensor:
        """x_0 within what an image can be."""
        return x0.clamp(self.lowest * self.input_scale, self.input_scale)

    def diffuse(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (Ho et al. 2020, eq. 4)."""
        signal, noise = self.signal_noise(t_B, x0)
        return signal * x0 + noise * eps

    def target_of(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """What the network should predict: eps, x_0, or v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0
        (Salimans & Ho 2022, appendix D)."""
        if self.target == "eps":
            return eps
        if self.target == "x0":
            return x0
        signal, noise = self.signal_noise(t_B, x0)
        return signal * eps - noise * x0

    def x0_of(self, prediction: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        """The x_0 that a network's output at x_t stands for."""
        if self.target == "x0":
            return prediction
        signal, noise = self.signal_noise(t_B, x_t)
        if self.target == "eps":
            return (x_t - noise * prediction) / signal
        return signal * x_t - noise * prediction

    def eps_of(self, x0: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        """The eps that belongs to x_t and x_0."""
        signal, noise = self.signal_noise(t_B, x_t)
        return (x_t - signal * x0) / noise
