"""Noise schedules: how much of the image is left at each of T noise levels, and what a network predicts.

A schedule is its levels' signal-to-noise ratios. Of the ways to write them, x_t = alpha x_0 + sigma eps, all
differ by a factor on x_t; here alpha^2 + sigma^2 = 1 (alpha_bar = alpha^2), in training and in every sampler.
The networks of flow matching and EDM take x_t by another factor, which ``network_input`` gives them.

With an input scale b (Chen 2023) everything here and in the samplers works on b x_0, which moves logSNR by
2 log b; images come back by ``unscale``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffcore.config.diffusion import Diffusion

RHO, SIGMA_RANGE = 7, (0.002, 80.0)
"""Of schedule edm (Karras et al. 2022, table 1)."""
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


def flow_alpha_bar(c: Diffusion) -> Tensor:
    """Of x_s = (1 - s) x_0 + s eps, s = 1 / T to 1 (Lipman et al. 2023, eq. 20). [T], float64."""
    s = torch.arange(1, c.timesteps + 1, dtype=torch.float64) / c.timesteps
    return (1 - s) ** 2 / ((1 - s) ** 2 + s**2)


def edm_alpha_bar(c: Diffusion) -> Tensor:
    """sigma / alpha 0.002 to 80, even in its 7th root (Karras et al. 2022, eq. 5). [T], float64."""
    low, high = (sigma ** (1 / RHO) for sigma in SIGMA_RANGE)
    sigma = torch.linspace(low, high, c.timesteps, dtype=torch.float64) ** RHO
    return 1 / (1 + sigma**2)


def _of_betas(betas: Callable[[Diffusion], Tensor]) -> Callable[[Diffusion], Tensor]:
    return lambda c: torch.cumprod(1 - betas(c), dim=0)


ALPHA_BARS: dict[str, Callable[[Diffusion], Tensor]] = {
    "linear": _of_betas(linear_betas),
    "cosine": _of_betas(cosine_betas),
    "sigmoid": _of_betas(sigmoid_betas),
    "flow": flow_alpha_bar,
    "edm": edm_alpha_bar,
}


def with_zero_terminal_snr(alpha_bar_T: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that the last level is pure noise (Lin et al. 2024, algorithm 1)."""
    root = alpha_bar_T.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def shifted(alpha_bar_T: Tensor, factor: float) -> Tensor:
    """The levels with ``factor`` times the noise over the signal (Hoogeboom et al. 2023, section 3.1)."""
    return alpha_bar_T / (alpha_bar_T + factor**2 * (1 - alpha_bar_T))


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha_bar [T] in float64 on the CPU, and the changes of variable that it defines."""

    alpha_bar_T: Tensor
    target: str
    input_scale: float = 1.0
    lowest: float = -1.0
    """x_0 of a black pixel before the input scale; that of a white one is 1."""
    sigma_data: float = 0.5
    """Standard deviation of x_0 that target edm assumes."""
    sigmoid_bias: float = 2.0
    """logSNR at which loss weight sigmoid is a half."""
    _on: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Copies of the table on devices where it was needed."""

    @classmethod
    def of(cls, c: Diffusion) -> NoiseSchedule:
        """The schedule of a config: its levels, made to end in pure noise and shifted where that is asked."""
        alpha_bar_T = ALPHA_BARS[c.schedule](c)
        if c.zero_terminal_snr:
            alpha_bar_T = with_zero_terminal_snr(alpha_bar_T)
        if c.shift != 1:
            alpha_bar_T = shifted(alpha_bar_T, c.shift)
        return cls(
            alpha_bar_T,
            c.target,
            c.input_scale,
            0.0 if c.pixels == "unit" else -1.0,
            c.sigma_data,
            c.sigmoid_bias,
        )

    def shifted(self, factor: float) -> NoiseSchedule:
        """The same with logSNR raised by 2 log ``factor`` at every level (Hoogeboom et al. 2023).

        The mean of factor x factor pixels of an x_t is, but for its scale, an x_t of this schedule.
        """
        return replace(self, alpha_bar_T=shifted(self.alpha_bar_T, 1 / factor), _on={})

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

    def network_input(self, x_t: Tensor, t_B: Tensor) -> Tensor:
        """x_t as the network takes it, times 1 but for targets flow and edm.

        flow: (1 - s) x_0 + s eps = x_t / (alpha + sigma), s = sigma / (alpha + sigma).
        edm: c_in (x_0 + sigma / alpha eps) = x_t / sqrt(sigma^2 + sigma_data^2 alpha^2), of unit scale.
        """
        if self.target not in ("flow", "edm"):
            return x_t
        signal, noise = self.signal_noise(t_B, x_t)
        return x_t / (signal + noise if self.target == "flow" else self._edm_norm(signal, noise))

    def target_of(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """What the network should predict.

        eps: the noise; x0: the image; v: alpha eps - sigma x_0 (Salimans & Ho 2022, appendix D);
        flow: eps - x_0, dx_s / ds (Liu et al. 2023, eq. 1);
        edm: (x_0 - c_skip x) / c_out (Karras et al. 2022, eq. 8), written so that alpha may be 0; its squared
        error is that of x_0 times their weight lambda = 1 / c_out^2, and its variance is 1.
        """
        if self.target == "eps":
            return eps
        if self.target == "x0":
            return x0
        if self.target == "flow":
            return eps - x0
        signal, noise = self.signal_noise(t_B, x0)
        if self.target == "v":
            return signal * eps - noise * x0
        data = self.sigma_data
        return (noise / data * x0 - data * signal * eps) / self._edm_norm(signal, noise)

    def x0_of(self, prediction: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        """The x_0 that a network's output at ``network_input`` of x_t stands for."""
        if self.target == "x0":
            return prediction
        signal, noise = self.signal_noise(t_B, x_t)
        if self.target == "eps":
            return (x_t - noise * prediction) / signal
        if self.target == "v":
            return signal * x_t - noise * prediction
        if self.target == "flow":
            return (x_t - noise * prediction) / (signal + noise)
        # c_skip x + c_out F
        data, norm = self.sigma_data, self._edm_norm(signal, noise)
        return data / norm * (data * signal / norm * x_t + noise * prediction)

    @property
    def x0_error(self) -> Tensor:
        """Squared error in x_0 over that in the target: [T]; infinite for target eps at pure noise."""
        signal, noise = self.alpha_bar_T.sqrt(), (1 - self.alpha_bar_T).sqrt()
        factors = {
            "eps": noise / signal,
            "v": noise,
            "x0": torch.ones_like(noise),
            "flow": noise / (signal + noise),
            "edm": self.sigma_data * noise / self._edm_norm(signal, noise),
        }
        return factors[self.target].square()

    @property
    def eps_error(self) -> Tensor:
        """Squared error in eps over that in the target: [T]."""
        if self.target == "eps":
            return torch.ones_like(self.alpha_bar_T)
        return self.alpha_bar_T / (1 - self.alpha_bar_T) * self.x0_error

    def _edm_norm(self, signal: Tensor, noise: Tensor) -> Tensor:
        """Standard deviation of x_t."""
        return (noise**2 + (self.sigma_data * signal) ** 2).sqrt()

    def eps_of(self, x0: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        """The eps that belongs to x_t and x_0."""
        signal, noise = self.signal_noise(t_B, x_t)
        return (x_t - signal * x0) / noise
