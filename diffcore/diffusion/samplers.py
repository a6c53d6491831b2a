"""Samplers: from noise to images, by name from a plain dict.

Each is ``sampler(denoise, schedule, x_T, steps, noise, eta) -> x_0`` where ``denoise(x_t, t)`` gives x_0
of the guided network and ``noise(i)`` step i's fresh noise, which stochastic samplers use. All walk down the
same levels: alpha = sqrt(alpha_bar) and sigma = sqrt(1 - alpha_bar), from T - 1 to the clean image, which is
level None with alpha 1 and sigma 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from diffcore.diffusion.guidance import Denoiser
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.diffusion.spacing import SPACINGS

HEUN_MAX = 100.0
"""Largest s = sigma / alpha from which Heun corrects; Karras et al. 2022 begin at 80."""

Noise = Callable[[int], Tensor]
Steps = int | Sequence[int]
"""How many steps, spaced as the sampler does by itself, or the levels to take, noisiest first."""
Sampler = Callable[[Denoiser, NoiseSchedule, Tensor, Steps, Noise, float], Tensor]


def _levels(schedule: NoiseSchedule, steps: Steps, usual: str = "time") -> list[int]:
    return SPACINGS[usual](schedule, steps) if isinstance(steps, int) else list(steps)


def _walk(ts: list[int]) -> Iterator[tuple[int, int, int | None]]:
    """(step, level, next level) from the noisiest level to the clean image."""
    for i, (t, t_next) in enumerate(pairwise([*ts, None])):
        assert t is not None
        yield i, t, t_next


def _alpha_sigma(schedule: NoiseSchedule, t: int | None) -> tuple[float, float]:
    if t is None:
        return 1.0, 0.0
    alpha_bar = schedule.alpha_bar_T[t].item()
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def ddim(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, steps: Steps, noise: Noise, eta: float = 0.0
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12); eta 0 is deterministic, 1 takes DDPM's noise (eq. 16)."""
    return _ddim(denoise, schedule, x, _levels(schedule, steps), noise, eta)


def ddpm(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, steps: Steps, noise: Noise, eta: float = 1.0
) -> Tensor:
    """Ancestral sampling over all T levels (Ho et al. 2020, eqs. 6, 7), whatever ``steps`` and ``eta`` say.

    DDIM with eta = 1 at every level is the same walk.
    """
    return _ddim(denoise, schedule, x, list(range(schedule.timesteps))[::-1], noise, 1.0)


def _ddim(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, ts: list[int], noise: Noise, eta: float
) -> Tensor:
    for i, t, t_next in _walk(ts):
        (alpha, sigma), (alpha_next, sigma_next) = (_alpha_sigma(schedule, level) for level in (t, t_next))
        x0 = denoise(x, t)
        eps = (x - alpha * x0) / sigma
        # eta sigma_next / sigma sqrt(1 - alpha_bar / alpha_bar_next)
        fresh = eta * sigma_next / sigma * math.sqrt(1 - (alpha / alpha_next) ** 2)
        x = alpha_next * x0 + math.sqrt(sigma_next**2 - fresh**2) * eps
        if fresh:
            x = x + fresh * noise(i)
    return x


def _extrapolated(x0: Tensor, lambda_t: float, before: tuple[Tensor, float], lambda_next: float) -> Tensor:
    """x_0 at the middle of the step from lambda_t, by the x_0 and lambda before it: second order."""
    ratio = (lambda_t - before[1]) / (lambda_next - lambda_t)
    return x0 + (x0 - before[0]) / (2 * ratio)


def dpmpp_2m(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, steps: Steps, noise: Noise, eta: float = 0.0
) -> Tensor:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): second order, one evaluation per step.

    The first and the last step are of first order, as in diffusers: the one has no step before it, the other
    ends at infinite logSNR.
    """
    before: tuple[Tensor, float] | None = None  # x_0 and lambda of the step before
    for _, t, t_next in _walk(_levels(schedule, steps)):
        (alpha, sigma), (alpha_next, sigma_next) = (_alpha_sigma(schedule, level) for level in (t, t_next))
        x0 = denoise(x, t)
        lambda_t = math.log(alpha / sigma) if alpha else -math.inf
        direction = x0
        if before is not None and t_next is not None and math.isfinite(before[1]):
            direction = _extrapolated(x0, lambda_t, before, math.log(alpha_next / sigma_next))
        # exp(-h) = (alpha / sigma) (sigma_next / alpha_next), which is 0 where h is infinite
        decay = alpha / sigma * sigma_next / alpha_next
        x = sigma_next / sigma * x + alpha_next * (1 - decay) * direction
        before = x0, lambda_t
    return x


def dpmpp_2m_sde(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, steps: Steps, noise: Noise, eta: float = 1.0
) -> Tensor:
    """SDE-DPM-Solver++ 2M (Lu et al. 2022, section 5) on levels equally spaced in logSNR.

    Second order with fresh noise, one evaluation per step. It follows the same stochastic process as DDPM,
    whose noise mends a network's errors, and stays with it under strong guidance (docs/guidance.md). Where
    ``denoise`` keeps x_0 within a range (its attribute ``limit``), the extrapolated x_0 is kept there too.
    """
    limit: Callable[[Tensor], Tensor] = getattr(denoise, "limit", None) or (lambda x0: x0)
    before: tuple[Tensor, float] | None = None  # x_0 and lambda of the step before
    for i, t, t_next in _walk(_levels(schedule, steps, "logsnr")):
        (alpha, sigma), (alpha_next, sigma_next) = (_alpha_sigma(schedule, level) for level in (t, t_next))
        x0 = denoise(x, t)
        lambda_t = math.log(alpha / sigma) if alpha else -math.inf
        direction = x0
        if before is not None and t_next is not None and math.isfinite(before[1]):
            direction = limit(_extrapolated(x0, lambda_t, before, math.log(alpha_next / sigma_next)))
        decay = alpha / sigma * sigma_next / alpha_next  # exp(-h)
        x = sigma_next / sigma * decay * x + alpha_next * (1 - decay**2) * direction
        if sigma_next:
            x = x + sigma_next * math.sqrt(1 - decay**2) * noise(i)
        before = x0, lambda_t
    return x


def heun(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, steps: Steps, noise: Noise, eta: float = 0.0
) -> Tensor:
    """Heun's method on dx/ds = (x - x_0) / s, s = sigma / alpha (Karras et al. 2022, algorithm 1).

    Second order, two evaluations per step, but one for the last step, which ends at s = 0, and for steps from
    above HEUN_MAX: there the trapezoid is so long that its correction, (s - s') / s' times the change of x_0,
    swamps the image (a cosine schedule begins at s = 20,000).
    """
    for _, t, t_next in _walk(_levels(schedule, steps)):
        (alpha, sigma), (alpha_next, sigma_next) = (_alpha_sigma(schedule, level) for level in (t, t_next))
        x0 = denoise(x, t)
        # Euler's step, written without 1 / alpha: at zero terminal SNR s is infinite.
        euler = alpha_next * x0 + sigma_next / sigma * (x - alpha * x0)
        if t_next is None or sigma > HEUN_MAX * alpha:
            x = euler
            continue
        s, s_next = sigma / alpha, sigma_next / alpha_next
        slope = (x / alpha - x0) / s
        slope_next = (euler / alpha_next - denoise(euler, t_next)) / s_next
        x = alpha_next * (x / alpha + (s_next - s) * (slope + slope_next) / 2)
    return x


def unipc(
    denoise: Denoiser, schedule: NoiseSchedule, x: Tensor, steps: Steps, noise: Noise, eta: float = 0.0
) -> Tensor:
    """UniPC of order 2 (Zhao et al. 2023, algorithm 1) on levels equally spaced in logSNR.

    One evaluation per step serves twice: it corrects the step that led to it, which is of third order then,
    and predicts the next. x_0 is a polynomial of lambda = log(alpha / sigma), whose integral is taken exactly
    (eq. 8's B(h) cancels), at order 1 and 2 too, where the authors' code has 1/2: their first steps are long.
    As in ``dpmpp_2m`` the last step is of first order, and so is one from zero SNR; as in ``dpmpp_2m_sde``
    what is extrapolated stays within the limit.
    """
    limit: Callable[[Tensor], Tensor] = getattr(denoise, "limit", None) or (lambda x0: x0)
    known: list[tuple[float, Tensor]] = []  # lambda and x_0, the newest last
    came = x, 1.0, 0.0  # the x that the last step was from, its factor and that of x_0
    for _, t, t_next in _walk(_levels(schedule, steps, "logsnr")):
        (alpha, sigma), (alpha_next, sigma_next) = (_alpha_sigma(schedule, level) for level in (t, t_next))
        known.append((math.log(alpha / sigma) if alpha else -math.inf, denoise(x, t)))
        if len(known) > 1:
            x = came[1] * came[0] + came[2] * limit(_mean_x0(known[-3:], known[-2][0], known[-1][0]))
        decay = alpha / sigma * sigma_next / alpha_next  # exp(-h)
        came = x, sigma_next / sigma, alpha_next * (1 - decay)
        direction = known[-1][1]
        if t_next is not None:
            direction = limit(_mean_x0(known[-2:], known[-1][0], math.log(alpha_next / sigma_next)))
        x = came[1] * x + came[2] * direction
    return x


def _mean_x0(known: list[tuple[float, Tensor]], start: float, end: float) -> Tensor:
    """Mean of the polynomial through the known x_0, weighted by exp(lambda) from ``start`` to ``end``."""
    if not math.isfinite(start):
        return known[-1][1]
    known = [one for one in known if math.isfinite(one[0])]
    h, nodes = end - start, np.array([one[0] - start for one in known])
    # Moments of s^k under exp(s - h) over 0 .. h, by parts: M_k = h^k - k M_(k-1).
    moments = [-math.expm1(-h)]
    for k in range(1, len(nodes)):
        moments.append(h**k - k * moments[-1])
    weights = np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(moments) / moments[0])
    return sum((float(w) * x0 for w, (_, x0) in zip(weights, known, strict=True)), 0 * known[0][1])


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpm++": dpmpp_2m,
    "dpm++sde": dpmpp_2m_sde,
    "heun": heun,
    "unipc": unipc,
}
