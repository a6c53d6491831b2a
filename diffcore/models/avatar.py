"""The avatar UNet: a convolutional ladder whose attention blocks look at the attributes.

``LabelEncoder`` writes the attributes for the network. Every attention block's own Tau turns that into keys
and values, and ``CrossAttention`` lets each pixel read them; ``LabelMaps``, an option, adds what each looks
like.

Residual blocks and the ladder follow Ho et al. 2020 (DDPM, appendix B), conditioning by cross-attention
Rombach et al. 2022 (LDM, section 3.3); the time embedding scales and shifts as in Dhariwal & Nichol 2021.
The ways out of patches: ``models.heads``.

Shapes: B batch, C channels, H x W pixels, A attributes, V encoded labels, E time embedding, L = H x W.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.config.models import AvatarModel
from diffcore.models.embedding import timestep_embedding
from diffcore.models.heads import FineHead, group_norm, zeroed
from diffcore.models.label_maps import LabelMaps
from diffcore.models.tau import AttributeTau, Encoded, LabelEncoder, Tau
from shards.schema import Attribute


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
        self.tau: Tau | AttributeTau
        if config.tau == "attribute":
            self.tau = AttributeTau(encoder, channels, config.heads, config.tau_tokens, config.label_gain)
        else:
            sizes = (config.tau_tokens, config.tau_projections)
            self.tau = Tau(encoder, channels, config.heads, *sizes, config.label_gain)
        self.norm = group_norm(channels)
        self.query = nn.Linear(channels, channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x_BCHW: Tensor, encoded: Encoded) -> Tensor:
        """[B, C, H, W], encoded labels -> [B, C, H, W]."""
        height = x_BCHW.shape[2]
        x_BLC = self.norm(x_BCHW).flatten(2).transpose(1, 2)
        query_BHLD = self.query(x_BLC).unflatten(2, (self.heads, -1)).transpose(1, 2)
        keys_BHND, values_BHND = self.tau(encoded)
        read_BHLD = F.scaled_dot_product_attention(query_BHLD, keys_BHND, values_BHND)
        read_BLC = self.out(read_BHLD.transpose(1, 2).flatten(2))
        output: Tensor = x_BCHW + read_BLC.transpose(1, 2).unflatten(2, (height, -1))
        return output


class SelfAttention(nn.Module):
    """Every pixel looks at every other; what it reads is added to it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        height = x_BCHW.shape[2]
        x_BLC = self.norm(x_BCHW).flatten(2).transpose(1, 2)
        split_BL3HD = self.query_key_value(x_BLC).unflatten(2, (3, self.heads, -1))
        query_BHLD, keys_BHLD, values_BHLD = split_BL3HD.permute(2, 0, 3, 1, 4)
        read_BHLD = F.scaled_dot_product_attention(query_BHLD, keys_BHLD, values_BHLD)
        read_BLC = self.out(read_BHLD.transpose(1, 2).flatten(2))
        output: Tensor = x_BCHW + read_BLC.transpose(1, 2).unflatten(2, (height, -1))
        return output


class Stage(nn.Module):
    """A residual block, followed by self-attention and cross-attention where the level has them."""

    def __init__(
        self, c_in: int, level: int, c_time: int, encoder: LabelEncoder | None, config: AvatarModel
    ) -> None:
        super().__init__()
        c_out = config.channels[level]
        self.residual = ResidualBlock(c_in, c_out, c_time)
        within = level in config.self_attention_levels
        self.self_attention = SelfAttention(c_out, config.heads) if within else None
        across = encoder if level in config.attention_levels else None
        self.attention = CrossAttention(c_out, across, config) if across else None

    def forward(self, x_BCHW: Tensor, time_BE: Tensor, encoded: Encoded | None) -> Tensor:
        """[B, C_in, H, W], time [B, E], encoded labels -> [B, C_out, H, W]."""
        x_BCHW = self.residual(x_BCHW, time_BE)
        if self.self_attention is not None:
            x_BCHW = self.self_attention(x_BCHW)
        if self.attention is not None:
            x_BCHW = self.attention(x_BCHW, encoded)
        return x_BCHW


class AvatarUNet(nn.Module):
    """[B, 3, H, W], timesteps [B], labels [B, A], keep [B] -> [B, 3, H, W].

    H and W must be multiples of patch x 2 ** (levels - 1).
    """

    blocks = (Stage, FineHead)  # of activation checkpointing
    edges = ("stem", "head", "tau")  # the table of label maps is no layer of Muon's

    def __init__(self, config: AvatarModel, schema: Sequence[Attribute]) -> None:
        super().__init__()
        self.encoder = LabelEncoder(schema, config.attributes) if config.conditional else None
        self.by_attribute = config.tau == "attribute"
        channels = config.channels
        self.width = channels[0]
        c_time = 4 * channels[0]
        self.time = nn.Sequential(
            nn.Linear(channels[0], c_time), nn.SiLU(), nn.Linear(c_time, c_time), nn.SiLU()
        )

        def stage(c_in: int, level: int) -> Stage:
            return Stage(c_in, level, c_time, self.encoder, config)

        *ladder, bottom = range(len(channels))
        counts = config.blocks_of_levels
        # Squares of ``patch`` pixels become channels and back: the same image on a ladder of fewer pixels.
        pixels = 3 * config.patch**2
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(config.patch), nn.Conv2d(pixels, channels[0], 3, padding=1)
        )
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, width = [], channels[0]
        for level in ladder:
            blocks = nn.ModuleList()
            for _ in range(counts[level]):
                blocks.append(stage(width, level))
                skips.append(width := channels[level])
            self.down.append(blocks)
            self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))

        self.bottom = nn.ModuleList()
        for _ in range(counts[bottom]):
            self.bottom.append(stage(width, bottom))
            width = channels[bottom]

        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level in reversed(ladder):
            self.grow.append(nn.Conv2d(width, channels[level], 3, padding=1))
            width = channels[level]
            blocks = nn.ModuleList()
            for _ in range(counts[level]):
                blocks.append(stage(width + skips.pop(), level))
                width = channels[level]
            self.up.append(blocks)

        self.maps: LabelMaps | None = None
        if self.encoder is not None and config.label_maps:
            # Added behind the stem, before the bottom and on each level of the way up.
            widths = (channels[0], channels[-2], *reversed(channels[:-1]))
            self.maps = LabelMaps(self.encoder, config.label_maps, config.label_gain, widths)

        self.head: nn.Module
        if config.head == "pixel_shuffle":
            last = zeroed(nn.Conv2d(width, pixels, 3, padding=1))
            self.head = nn.Sequential(group_norm(width), nn.SiLU(), last, nn.PixelShuffle(config.patch))
        else:
            self.head = FineHead(config.head, width, config.head_channels, c_time, config.patch)

    def forward(self, x_BCHW: Tensor, t_B: Tensor, labels_BA: Tensor, keep_B: Tensor) -> Tensor:
        """The prediction at x_t: [B, 3, H, W]. Where ``keep`` is False the labels are not seen."""
        time_BE = self.time(timestep_embedding(t_B, self.width).to(x_BCHW.dtype))
        encoded: Encoded | None = None
        maps_BCSS: Tensor | None = None
        if self.encoder is not None:
            given = (labels_BA, keep_B, x_BCHW.dtype)
            encoded = self.encoder.rows(*given) if self.by_attribute else self.encoder(*given)
            if self.maps is not None:
                maps_BCSS = self.maps(encoded if self.by_attribute else self.encoder.rows(*given))

        # Activations are channels-last: faster convolutions on the CPU and on tensor cores, and attention
        # needs no transpose. Parameters stay contiguous, as DeepSpeed demands.
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        h_BCHW, skips = self._mapped(0, self.stem(x_BCHW), maps_BCSS), []
        head, seen_BCHW = self.head, x_BCHW if isinstance(self.head, FineHead) else None
        del x_BCHW  # a copy that only a fine head looks at again
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                h_BCHW = block(h_BCHW, time_BE, encoded)
                skips.append(h_BCHW)
            h_BCHW = shrink(h_BCHW)
        h_BCHW = self._mapped(1, h_BCHW, maps_BCSS)
        for block in self.bottom:
            h_BCHW = block(h_BCHW, time_BE, encoded)
        for place, (grow, blocks) in enumerate(zip(self.grow, self.up, strict=True), 2):
            h_BCHW = grow(F.interpolate(h_BCHW, scale_factor=2.0, mode="nearest"))
            h_BCHW = self._mapped(place, h_BCHW, maps_BCSS)
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                h_BCHW = block(torch.cat([h_BCHW, skips.pop()], dim=1), time_BE, encoded)
        output: Tensor = head(h_BCHW) if seen_BCHW is None else head(h_BCHW, seen_BCHW, time_BE)
        return output

    def _mapped(self, place: int, h_BCHW: Tensor, maps_BCSS: Tensor | None) -> Tensor:
        """The features with the label maps, where there are any."""
        if self.maps is None or maps_BCSS is None:
            return h_BCHW
        return self.maps.add(place, h_BCHW, maps_BCSS)
