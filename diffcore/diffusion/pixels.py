"""Images as the network has them, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_signal(images_BHWC: np.ndarray | Tensor) -> Tensor:
    """uint8 [B, H, W, C] in 0 .. 255 -> fp32 [B, C, H, W] in [-1, 1], on the images' device."""
    return torch.as_tensor(images_BHWC).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_pixels(x_BCHW: Tensor) -> np.ndarray:
    """fp32 [B, C, H, W] in [-1, 1] -> uint8 [B, H, W, C]; values outside are clipped."""
    scaled = x_BCHW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()
