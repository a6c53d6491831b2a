"""Images as the network has them, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def to_signal(images_BHWC: np.ndarray | Tensor, side: int | None = None) -> Tensor:
    """uint8 [B, H, W, C] in 0 .. 255 -> fp32 [B, C, H, W] in [-1, 1], on the images' device.

    With ``side``, which divides H = W: [B, C, side, side], each pixel the mean of a square of theirs.
    """
    images_BCHW, count = torch.as_tensor(images_BHWC).permute(0, 3, 1, 2).float(), 1
    if side is not None and side != images_BCHW.shape[-1]:
        edge = images_BCHW.shape[-1] // side
        # Sums of whole numbers: exact, so the same bits on every device.
        images_BCHW, count = F.avg_pool2d(images_BCHW, edge, divisor_override=1), edge**2
    return images_BCHW.div_(127.5 * count).sub_(1)


def to_pixels(x_BCHW: Tensor) -> np.ndarray:
    """fp32 [B, C, H, W] in [-1, 1] -> uint8 [B, H, W, C]; values outside are clipped."""
    scaled = x_BCHW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()
