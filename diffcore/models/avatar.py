"""The avatar UNet: a convolutional ladder whose attention blocks look at the attributes.

Attributes enter in one place: ``LabelEncoder`` turns them into a vector, every attention block's own
``Tau`` turns that into keys and values, and ``CrossAttention`` lets each pixel read them.

Residual blocks and the ladder follow Ho et al. 2020 (DDPM, appendix B), conditioning by cross-attention
Rombach et al. 2022 (LDM, section 3.3); the time embedding scales and shifts as in Dhariwal & Nichol 2021.

Shapes: B batch, C channels, H x W pixels, A attributes, V encoded labels, E time embedding, L = H x W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.config.models import AvatarModel
from diffcore.models.embedding import timestep_embedding
from diffcore.models.tau import LabelEncoder, Tau
from shards.schema import Attribute

M = TypeVar("M", bound=nn.Module)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm; its groups are the largest power of two, 32 at most, that divides channels / 4."""
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


def zeroed(module: M) -> M:
    """A branch that ends in this starts as the identity, which keeps a deep residual net trainable."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, scaled and shifted by the time embedding, added to their input."""

    def __init__(self, c_in: int, c_out: int, c_time: int) -> None:
        super().__init__()
        self.norm_in = group_norm(c_in)
        self.conv_in = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(c_time, 2 * c_out)
        self.norm_out = group_norm(c_out)
        self.conv_out = zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x_BCHW: Tensor, time_BE: Tensor) -> Tensor:
        """[B, C_in, H, W], time [B, E] -> [B, C_out, H, W]."""
        h_BCHW = self.conv_in(F.silu(self.norm_in(x_BCHW)))
        scale_BC11, shift_BC11 = self.time(time_BE)[:, :, None, None].chunk(2, dim=1)
        h_BCHW = self.norm_out(h_BCHW) * (1 + scale_BC11) + shift_BC11
        output: Tensor = self.skip(x_BCHW) + self.conv_out(F.silu(h_BCHW))
        return output


class CrossAttention(nn.Module):
    """Cross-attention of pixels to attributes: queries from the image, keys and values from Tau."""

    def __init__(self, channels: int, encoder: LabelEncoder, config: AvatarModel) -> None:
        super().__init__()
        self.heads = config.heads
        self.tau = Tau(encoder, channels, config.heads, config.tau_tokens, config.tau_projections)
        self.norm = group_norm(channels)
        self.query = nn.Linear(channels, channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x_BCHW: Tensor, encoded_BV: Tensor) -> Tensor:
        """[B, C, H, W], encoded labels [B, V] -> [B, C, H, W]."""
        height = x_BCHW.shape[2]
        x_BLC = self.norm(x_BCHW).flatten(2).transpose(1, 2)
        query_BHLD = self.query(x_BLC).unflatten(2, (self.heads, -1)).transpose(1, 2)
        keys_BHND, values_BHND = self.tau(encoded_BV)
        read_BHLD = F.scaled_dot_product_attention(query_BHLD, keys_BHND, values_BHND)
        read_BLC = self.out(read_BHLD.transpose(1, 2).flatten(2))
        output: Tensor = x_BCHW + read_BLC.transpose(1, 2).unflatten(2, (height, -1))
        return output


class Stage(nn.Module):
    """A residual block, followed by cross-attention where the level has it."""

    def __init__(
        self, c_in: int, c_out: int, c_time: int, encoder: LabelEncoder | None, config: AvatarModel
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(c_in, c_out, c_time)
        self.attention = CrossAttention(c_out, encoder, config) if encoder else None

    def forward(self, x_BCHW: Tensor, time_BE: Tensor, encoded_BV: Tensor | None) -> Tensor:
        """[B, C_in, H, W], time [B, E], encoded labels [B, V] -> [B, C_out, H, W]."""
        x_BCHW = self.residual(x_BCHW, time_BE)
        if self.attention is not None:
            x_BCHW = self.attention(x_BCHW, encoded_BV)
        return x_BCHW


class AvatarUNet(nn.Module):
    """[B, 3, H, W], timesteps [B], labels [B, A], keep [B] -> [B, 3, H, W].

    H and W must be multiples of patch x 2 ** (levels - 1).
    """

    blocks = (Stage,)  # of activation checkpointing
    edges = ("stem", "head", "tau")

    def __init__(self, config: AvatarModel, schema: Sequence[Attribute]) -> None:
        super().__init__()
        self.encoder = LabelEncoder(schema, config.attributes) if config.conditional else None
        channels = config.channels
        self.width = channels[0]
        c_time = 4 * channels[0]
        self.time = nn.Sequential(
            nn.Linear(channels[0], c_time), nn.SiLU(), nn.Linear(c_time, c_time), nn.SiLU()
        )

        def stage(c_in: int, level: int) -> Stage:
            encoder = self.encoder if level in config.attention_levels else None
            return Stage(c_in, channels[level], c_time, encoder, config)

        *ladder, bottom = range(len(channels))
        # Squares of ``patch`` pixels become channels and back: the same image on a ladder of fewer pixels.
        pixels = 3 * config.patch**2
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(config.patch), nn.Conv2d(pixels, channels[0], 3, padding=1)
        )
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, width = [], channels[0]
        for level in ladder:
            blocks = nn.ModuleList()
            for _ in range(config.blocks):
                blocks.append(stage(width, level))
                skips.append(width := channels[level])
            self.down.append(blocks)
            self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))

        self.bottom = nn.ModuleList([stage(width, bottom), stage(channels[bottom], bottom)])
        width = channels[bottom]

        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level in reversed(ladder):
            self.grow.append(nn.Conv2d(width, channels[level], 3, padding=1))
            width = channels[level]
            blocks = nn.ModuleList()
            for _ in range(config.blocks):
                blocks.append(stage(width + skips.pop(), level))
                width = channels[level]
            self.up.append(blocks)

        last = zeroed(nn.Conv2d(width, pixels, 3, padding=1))
        self.head = nn.Sequential(group_norm(width), nn.SiLU(), last, nn.PixelShuffle(config.patch))

    def forward(self, x_BCHW: Tensor, t_B: Tensor, labels_BA: Tensor, keep_B: Tensor) -> Tensor:
        """The prediction at x_t: [B, 3, H, W]. Where ``keep`` is False the labels are not seen."""
        time_BE = self.time(timestep_embedding(t_B, self.width).to(x_BCHW.dtype))
        encoded_BV = self.encoder(labels_BA, keep_B, x_BCHW.dtype) if self.encoder else None

        # Activations are channels-last: faster convolutions on the CPU and on tensor cores, and attention
        # needs no transpose. Parameters stay contiguous, as DeepSpeed demands.
        h_BCHW, skips = self.stem(x_BCHW.contiguous(memory_format=torch.channels_last)), []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                h_BCHW = block(h_BCHW, time_BE, encoded_BV)
                skips.append(h_BCHW)
            h_BCHW = shrink(h_BCHW)
        for block in self.bottom:
            h_BCHW = block(h_BCHW, time_BE, encoded_BV)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            h_BCHW = grow(F.interpolate(h_BCHW, scale_factor=2.0, mode="nearest"))
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                h_BCHW = block(torch.cat([h_BCHW, skips.pop()], dim=1), time_BE, encoded_BV)
        output: Tensor = self.head(h_BCHW)
        return output
