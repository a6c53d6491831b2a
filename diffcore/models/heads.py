"""From the features of a UNet over patches to pixels, by way of the full resolution; and what blocks share.

Pixels that leave a patch side by side (a 3 x 3 convolution and PixelShuffle) each have weights of their own,
and where these learn at different speeds the patch shows as a checkerboard (Odena et al. 2016; Aitken et al.
2017, whose remedy, equal weights at the start, a last convolution of zeros has already). Here the last two
convolutions are at full resolution, so all pixels share their weights, and they see the noisy image: fine
noise need not pass through the ladder.

Shapes: B batch, C channels, H x W pixels (h x w patches), E time embedding.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm; its groups are the largest power of two, 32 at most, that divides channels / 4."""
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


def zeroed(module: M) -> M:
    """A branch that ends in this starts as the identity, which keeps a deep residual net trainable."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _resize_conv(c_in: int, c_out: int, patch: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1), nn.Upsample(scale_factor=patch, mode="nearest"))


def _refine(c_in: int, c_out: int, patch: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out * patch**2, 1), nn.PixelShuffle(patch))


SPREADS = {"resize_conv": _resize_conv, "refine": _refine}
"""How features come to every pixel: one for all of a patch (Odena et al. 2016), or one for each pixel."""


class FineHead(nn.Module):
    """A residual block of two 3 x 3 convolutions at full resolution, over the features and the noisy image.

    It is scaled and shifted by the time embedding. The image is also added to the output, by a factor that
    the time embedding gives: v and eps hold it in a share that depends on t alone.
    """

    def __init__(self, kind: str, c_in: int, c_fine: int, c_time: int, patch: int) -> None:
        super().__init__()
        self.norm = group_norm(c_in)
        self.spread = SPREADS[kind](c_in, c_fine, patch)
        self.join = nn.Conv2d(c_fine + 3, c_fine, 3, padding=1)
        self.time = nn.Linear(c_time, 2 * c_fine)
        self.last = zeroed(nn.Conv2d(c_fine, 3, 3, padding=1))
        self.share = zeroed(nn.Linear(c_time, 3))

    def forward(self, features_BChw: Tensor, x_B3HW: Tensor, time_BE: Tensor) -> Tensor:
        """[B, C, h, w], noisy image [B, 3, H, W], time [B, E] -> [B, 3, H, W]."""
        fine_BCHW = self.spread(F.silu(self.norm(features_BChw)))
        scale_BC11, shift_BC11 = self.time(time_BE)[:, :, None, None].chunk(2, dim=1)
        h_BCHW = self.join(torch.cat([fine_BCHW, x_B3HW], dim=1)) * (1 + scale_BC11) + shift_BC11
        share_B311 = self.share(time_BE)[:, :, None, None]
        output: Tensor = self.last(fine_BCHW + F.silu(h_BCHW)) + share_B311 * x_B3HW
        return output
