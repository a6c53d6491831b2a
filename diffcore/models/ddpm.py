"""The class-conditional DDPM UNet: max-pooling down, bilinear up, self-attention after every block.

The labels' embeddings are added to the time embedding, which every down and up block adds to its channels.
Any labels: one class, several attributes (their embeddings are summed) or none. Residual double convolutions
and the ladder follow Ho et al. 2020 (appendix B), attention Vaswani et al. 2017.

Shapes: B batch, C channels, H x W pixels, A attributes, E time embedding, L = H x W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.config.models import DdpmModel
from diffcore.models.embedding import timestep_embedding
from shards.schema import UNKNOWN, Attribute


class DoubleConvolution(nn.Module):
    """Two 3 x 3 convolutions with GroupNorm over all channels and GELU; ``residual`` adds the input."""

    def __init__(self, c_in: int, c_out: int, c_mid: int | None = None, residual: bool = False) -> None:
        super().__init__()
        c_mid = c_mid or c_out
        self.residual = residual
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_mid, 3, padding=1, bias=False),
            nn.GroupNorm(1, c_mid),
            nn.GELU(),
            nn.Conv2d(c_mid, c_out, 3, padding=1, bias=False),
            nn.GroupNorm(1, c_out),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, H, W]."""
        body_BCHW: Tensor = self.body(x_BCHW)
        return F.gelu(x_BCHW + body_BCHW) if self.residual else body_BCHW


class SelfAttention(nn.Module):
    """Every pixel looks at every other, then a two-layer network; both added to their input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.in_proj = nn.Linear(channels, 3 * channels)
        self.out_proj = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        height = x_BCHW.shape[2]
        x_BLC = x_BCHW.flatten(2).transpose(1, 2)
        split = self.in_proj(self.norm(x_BLC)).unflatten(2, (3, self.heads, -1))
        query, keys, values = split.permute(2, 0, 3, 1, 4)
        # Fused attention: the L x L weights of a 64 x 64 image are never held.
        read_BLC = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
        x_BLC = x_BLC + self.out_proj(read_BLC)
        x_BLC = x_BLC + self.feed_forward(x_BLC)
        output: Tensor = x_BLC.transpose(1, 2).unflatten(2, (height, -1))
        return output


class Down(nn.Module):
    """Half the resolution, new width, time and labels added, self-attention."""

    def __init__(self, c_in: int, c_out: int, config: DdpmModel) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.MaxPool2d(2), DoubleConvolution(c_in, c_in, residual=True), DoubleConvolution(c_in, c_out)
        )
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(config.embedding, c_out))
        self.attention = SelfAttention(c_out, config.heads)

    def forward(self, x_BCHW: Tensor, time_BE: Tensor) -> Tensor:
        """[B, C_in, H, W], time and labels [B, E] -> [B, C_out, H / 2, W / 2]."""
        output: Tensor = self.attention(self.body(x_BCHW) + self.embed(time_BE)[:, :, None, None])
        return output


class Up(nn.Module):
    """Twice the resolution, joined with the way down, new width, time and labels added, self-attention."""

    def __init__(self, c_in: int, c_out: int, config: DdpmModel) -> None:
        super().__init__()
        self.body = nn.Sequential(
            DoubleConvolution(c_in, c_in, residual=True), DoubleConvolution(c_in, c_out, c_in // 2)
        )
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(config.embedding, c_out))
        self.attention = SelfAttention(c_out, config.heads)

    def forward(self, x_BCHW: Tensor, skip_BCHW: Tensor, time_BE: Tensor) -> Tensor:
        """[B, C, H, W], skip [B, C_skip, 2 H, 2 W], time and labels [B, E] -> [B, C_out, 2 H, 2 W]."""
        grown = F.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=True)
        joined = self.body(torch.cat([skip_BCHW, grown], dim=1))
        output: Tensor = self.attention(joined + self.embed(time_BE)[:, :, None, None])
        return output


class DdpmUNet(nn.Module):
    """[B, 3, H, W], timesteps [B], labels [B, A], keep [B] -> [B, 3, H, W]. H, W: multiples of 8."""

    blocks = (DoubleConvolution, SelfAttention)  # of activation checkpointing
    edges = ("stem", "head")

    def __init__(self, config: DdpmModel, schema: Sequence[Attribute]) -> None:
        super().__init__()
        w = config.width
        self.embedding = config.embedding
        self.labels = nn.ModuleList(
            nn.Embedding(attribute.variants, config.embedding) for attribute in schema if config.conditional
        )
        self.stem = DoubleConvolution(3, w)
        widths = [(w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w)]
        self.down = nn.ModuleList(Down(c_in, c_out, config) for c_in, c_out in widths)
        self.bottom = nn.Sequential(
            DoubleConvolution(4 * w, 8 * w), DoubleConvolution(8 * w, 8 * w), DoubleConvolution(8 * w, 4 * w)
        )
        widths = [(8 * w, 2 * w), (4 * w, w), (2 * w, w)]
        self.up = nn.ModuleList(Up(c_in, c_out, config) for c_in, c_out in widths)
        self.head = nn.Conv2d(w, 3, 1)

    def forward(self, x_BCHW: Tensor, t_B: Tensor, labels_BA: Tensor, keep_B: Tensor) -> Tensor:
        """The prediction at x_t: [B, 3, H, W]. Where ``keep`` is False the labels are not seen."""
        time_BE = timestep_embedding(t_B, self.embedding).to(x_BCHW.dtype)
        for column, embed in enumerate(self.labels):
            label_B = labels_BA[:, column]
            seen_B1 = (keep_B & (label_B != UNKNOWN))[:, None].to(x_BCHW.dtype)
            time_BE = time_BE + embed(label_B.clamp(min=0)) * seen_B1
        h_BCHW = self.stem(x_BCHW.contiguous(memory_format=torch.channels_last))
        skips = []
        for block in self.down:
            skips.append(h_BCHW)
            h_BCHW = block(h_BCHW, time_BE)
        h_BCHW = self.bottom(h_BCHW)
        for block in self.up:
            h_BCHW = block(h_BCHW, skips.pop(), time_BE)
        output: Tensor = self.head(h_BCHW)
        return output
