"""What the networks share: the timestep as a vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(t_B: Tensor, width: int) -> Tensor:
    """Sinusoids of the timestep, [B] -> [B, width] in fp32 (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=t_B.device, dtype=torch.float32) / half)
    angles = t_B.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)
