"""The networks of benchmarks/train_step.py as people write them: attention makes its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def double(c_in: int, c_out: int, c_mid: int | None = None) -> nn.Sequential:
    c_mid = c_mid or c_out
    return nn.Sequential(
        nn.Conv2d(c_in, c_mid, 3, padding=1, bias=False),
        nn.GroupNorm(1, c_mid),
        nn.GELU(),
        nn.Conv2d(c_mid, c_out, 3, padding=1, bias=False),
        nn.GroupNorm(1, c_out),
    )


class StockAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.view(batch, channels, height * width).swapaxes(1, 2)
        normed = self.norm(x)
        read, _weights = self.attention(normed, normed, normed)
        read = read + x
        read = self.feed_forward(read) + read
        return read.swapaxes(2, 1).view(batch, channels, height, width)


class StockStage(nn.Module):
    """Half or twice the resolution; a residual double convolution, a second one, the time, attention."""

    def __init__(self, change: nn.Module, c_in: int, c_out: int, c_mid: int | None = None) -> None:
        super().__init__()
        self.change, self.first, self.second = change, double(c_in, c_in), double(c_in, c_out, c_mid)
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(256, c_out))
        self.attention = StockAttention(c_out)

    def forward(self, x: Tensor, time: Tensor, skip: Tensor | None = None) -> Tensor:
        x = self.change(x)
        x = x if skip is None else torch.cat([skip, x], dim=1)
        x = self.second(F.gelu(x + self.first(x)))
        return self.attention(x + self.time(time)[:, :, None, None].repeat(1, 1, *x.shape[-2:]))


class StockDdpm(nn.Module):
    """Without a condition; ``w`` channels at full resolution."""

    def __init__(self, w: int) -> None:
        super().__init__()
        self.stem = double(3, w)
        self.down = nn.ModuleList(
            StockStage(nn.MaxPool2d(2), a, b) for a, b in ((w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w))
        )
        self.bottom = nn.Sequential(double(4 * w, 8 * w), double(8 * w, 8 * w), double(8 * w, 4 * w))
        self.up = nn.ModuleList(
            StockStage(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), a, b, a // 2)
            for a, b in ((8 * w, 2 * w), (4 * w, w), (2 * w, w))
        )
        self.head = nn.Conv2d(w, 3, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rates = 1.0 / (10000 ** (torch.arange(0, 256, 2, device=x.device).float() / 256))
        angles = t[:, None].float() * rates
        time = torch.cat([angles.sin(), angles.cos()], dim=-1)
        x, skips = self.stem(x), []
        for stage in self.down:
            skips.append(x)
            x = stage(x, time)
        x = self.bottom(x)
        for stage in self.up:
            x = stage(x, time, skips.pop())
        return self.head(x)


class StockDiffusers(nn.Module):
    """The UNet behind one linear projection of the one-hot attributes to 256 tokens."""

    def __init__(self, labels: int, unet: dict[str, Any]) -> None:
        from diffusers import UNet2DConditionModel

        super().__init__()
        self.width = unet["cross_attention_dim"]
        self.tau = nn.Linear(labels, 256 * self.width)
        self.unet = UNet2DConditionModel(
            in_channels=3,
            out_channels=3,
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            **unet,
        )

    def forward(self, x: Tensor, t: Tensor, encoded: Tensor) -> Tensor:
        tokens = self.tau(encoded).view(len(x), 256, self.width)
        return self.unet(x, t, encoder_hidden_states=tokens).sample
