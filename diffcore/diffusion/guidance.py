"""Classifier-free guidance (Ho & Salimans 2022, eq. 6), with diffusers' convention of the scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, H, W], t [B]) -> the network's prediction [B, C, H, W]."""


def guided(network: nn.Module, labels_BA: Tensor, scale: float) -> Denoiser:
    """unconditional + scale x (conditional - unconditional): 0 is unconditional, 1 plain conditional.

    One doubled batch a step; a single one where the scale leaves only one of the two.
    """
    keep_B = torch.ones(len(labels_BA), dtype=torch.bool, device=labels_BA.device)

    def denoise(x_t: Tensor, t_B: Tensor) -> Tensor:
        if scale in (0, 1):
            return network(x_t, t_B, labels_BA, keep_B if scale else ~keep_B).to(x_t.dtype)
        both = network(
            torch.cat([x_t, x_t]),
            torch.cat([t_B, t_B]),
            torch.cat([labels_BA, labels_BA]),
            torch.cat([~keep_B, keep_B]),
        )
        unconditional, conditional = both.to(x_t.dtype).chunk(2)
        return torch.lerp(unconditional, conditional, scale)

    return denoise
