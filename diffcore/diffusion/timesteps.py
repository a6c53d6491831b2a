"""Which noise level a training sample gets, where that is not uniform and independent.

A level's number comes from 43 random bits of its sample as a fraction u in [0, 1): the level at which the
levels' distribution function passes u. All in whole numbers, so that every device draws the same levels.

Validation is always uniform: its losses compare, whatever was drawn in training.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from diffcore.config.diffusion import Diffusion
from diffcore.diffusion import philox
from diffcore.diffusion.randomness import STREAMS, Levels
from diffcore.diffusion.schedule import NoiseSchedule

ONE = 1 << philox.FRACTION_BITS
"""The fraction 1."""


def probabilities(c: Diffusion) -> Tensor:
    """Share of each level in what is drawn: [T], float64, sum 1.

    log_normal: log(sigma / alpha), which is -logSNR / 2, is normal with mean ``timestep_mean`` and standard
    deviation ``timestep_std`` (Karras et al. 2022, section 5). It is the logit of flow matching's time
    s = sigma / (alpha + sigma), which Esser et al. 2024, section 3.1, draw so. A level stands for what lies
    between the one below it and itself, the last for all above too.
    """
    if c.timestep_density == "uniform":
        return torch.full((c.timesteps,), 1 / c.timesteps, dtype=torch.float64)
    alpha_bar_T = NoiseSchedule.of(c).alpha_bar_T
    log_ratio_T = 0.5 * torch.log((1 - alpha_bar_T) / alpha_bar_T)
    below_T: Tensor = torch.special.ndtr((log_ratio_T - c.timestep_mean) / c.timestep_std)
    below_T[-1] = 1
    return below_T.diff(prepend=below_T.new_zeros(1))


@functools.lru_cache(maxsize=8)
def ends(c: Diffusion, device: torch.device) -> Tensor:
    """The levels' distribution function in units of 1 / ONE, the last of them ONE: int64 [T].

    Kept: making it is a copy to the device that waits for it.
    """
    ends_T = (probabilities(c).cumsum(0) * ONE).round().long().clamp(max=ONE)
    ends_T[-1] = ONE
    return ends_T.to(device)


def levels_of(c: Diffusion, seed: int, batch: int) -> Levels | None:
    """How a run draws levels, for ``Draws.on_device``; None where they are uniform and independent.

    Stratified, a step's samples share one random offset and are 1 / ``batch`` apart, modulo 1 (Kingma et al.
    2021, appendix I.1): each alone is drawn as without, together they cover all levels evenly. The sample at
    position p is number p mod ``batch`` of step p // ``batch``, on whichever rank.
    """
    if c.timestep_density == "uniform" and not c.timestep_stratified:
        return None

    def levels(words_B: Tensor, positions_B: Tensor) -> Tensor:
        fraction_B = philox.fraction(words_B)
        if c.timestep_stratified:
            offset_B1 = philox.words(seed, positions_B // batch, STREAMS["offsets"], 1)
            fraction_B = (philox.fraction(offset_B1[:, 0]) + share(positions_B % batch, batch)) & (ONE - 1)
        if c.timestep_density == "uniform":
            return fraction_B * c.timesteps >> philox.FRACTION_BITS
        return torch.searchsorted(ends(c, fraction_B.device), fraction_B, right=True)

    return levels


def share(number_B: Tensor, batch: int) -> Tensor:
    """``number`` / ``batch`` in units of 1 / ONE, rounded down, for a batch up to 2^24; int64 [B]."""
    # In two parts of the bits, as the product would have 67.
    upper = number_B << 32
    rest = philox.FRACTION_BITS - 32
    return (upper // batch << rest) + (upper % batch << rest) // batch
