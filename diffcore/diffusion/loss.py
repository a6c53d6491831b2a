"""The training objective."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule

MIN_SNR_GAMMA = 5.0
Network = Callable[..., Tensor]
"""(x_t [B, C, H, W], timesteps [B], labels [B, A], keep [B]) -> prediction [B, C, H, W]."""


def uniform(schedule: NoiseSchedule) -> Tensor:
    """Every level counts the same, whatever the target: L_simple (Ho et al. 2020, eq. 14). [T]"""
    return torch.ones_like(schedule.alpha_bar_T)


def min_snr(schedule: NoiseSchedule) -> Tensor:
    """Weight of x_0's error min(SNR, 5), in terms of the target's error (Hang et al. 2023, section 3.4). [T]

    The error in x_0 is that in eps over SNR, and that in v over SNR + 1.
    """
    snr = schedule.snr
    clipped = snr.clamp(max=MIN_SNR_GAMMA)
    if schedule.target == "eps":
        # At zero SNR eps says nothing of x_0: the limit of min(SNR, 5) / SNR is 1.
        return torch.where(snr > 0, clipped / snr, 1.0)
    if schedule.target == "v":
        return clipped / (snr + 1)
    return clipped * schedule.x0_error


def sigmoid(schedule: NoiseSchedule) -> Tensor:
    """sigmoid(bias - logSNR) on eps's error (Kingma & Gao 2023; Hoogeboom et al. 2024). [T], mean 1.

    Levels are drawn by their number: each counts for the logSNR between its neighbours, so that the loss is
    an integral over logSNR, the same for every schedule; in terms of the target's error, as above. Pure
    noise weighs nothing. (Levels that are drawn by another density than uniform weigh by it too.)
    """
    log_snr = schedule.snr.log()
    steps = log_snr[:-1] - log_snr[1:]
    if not steps[-1].isfinite():
        steps[-1] = steps[-2] if len(steps) > 1 else 1.0
    width = (torch.cat([steps[:1], steps]) + torch.cat([steps, steps[-1:]])) / 2
    weight = torch.sigmoid(schedule.sigmoid_bias - log_snr) * width * schedule.eps_error
    return weight / weight.mean()


WEIGHTS: dict[str, Callable[[NoiseSchedule], Tensor]] = {
    "uniform": uniform,
    "min_snr": min_snr,
    "sigmoid": sigmoid,
}


def denoising_loss(
    network: Network,
    schedule: NoiseSchedule,
    weights_T: Tensor,
    images_BCHW: Tensor,
    labels_BA: Tensor,
    draws: Draws,
) -> Tensor:
    """Weighted mean squared error of the prediction, one value per sample: [B], fp32."""
    x0_BCHW = schedule.scale(images_BCHW)
    x_t = schedule.network_input(schedule.diffuse(x0_BCHW, draws.eps_BCHW, draws.t_B), draws.t_B)
    target = schedule.target_of(x0_BCHW, draws.eps_BCHW, draws.t_B)
    prediction = network(x_t, draws.t_B, labels_BA, draws.keep_B)
    error_B = F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
    return error_B * weights_T.to(draws.t_B.device)[draws.t_B].float()
