"""The training objective."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule


def denoising_loss(
    network: nn.Module, schedule: NoiseSchedule, x0_BCHW: Tensor, labels_BA: Tensor, draws: Draws
) -> Tensor:
    """Mean squared error of the prediction, one value a sample: [B], fp32 (Ho et al. 2020, eq. 14)."""
    x_t = schedule.diffuse(x0_BCHW, draws.eps_BCHW, draws.t_B)
    target = schedule.target_of(x0_BCHW, draws.eps_BCHW, draws.t_B)
    prediction = network(x_t, draws.t_B, labels_BA, draws.keep_B)
    return F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
