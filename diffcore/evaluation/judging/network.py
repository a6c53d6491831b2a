"""The judge's network: from images to the logits of every attribute's variants.

Shapes: B batch, S the images' edge, V variants of all attributes together, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shards.schema import Attribute, one_hot_offsets, one_hot_width

VERSIONS = (1, 2)
"""Of judge.json, the newest last; 1 has another network, which is still built for its weights."""
WIDTH, FEATURES = 24, 256
"""Channels of the first maps, and how many features of an image the heads see."""


class JudgeNet(nn.Module):
    """[B, 3, S, S] in [-1, 1] -> logits [B, V]. Strided 3 x 3 convolutions down to 8 x 8, then linear.

    The last maps are flattened, not averaged: the place of a detail says what it is.
    ``version``: of the record, judge.json.
    """

    def __init__(
        self,
        schema: Sequence[Attribute],
        size: int,
        width: int = WIDTH,
        features: int = FEATURES,
        version: int = VERSIONS[-1],
    ) -> None:
        super().__init__()
        # Large images begin as squares of pixels in the channels: their first maps would cost the most.
        patch = 1
        while size // patch > 32 and size % (2 * patch) == 0:
            patch *= 2
        build = _maps_of_version_1 if version == 1 else _maps
        blocks, channels, edge = build(3 * patch**2, width, size // patch)
        self.maps = nn.Sequential(nn.PixelUnshuffle(patch), *blocks)
        flat = channels * edge**2
        if version == 1:
            self.shrink = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(flat, features), nn.ReLU())
        else:
            self.shrink = nn.Sequential(
                nn.Flatten(), nn.Linear(flat, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()
            )
        self.heads = nn.Linear(features, one_hot_width(schema))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """What the judge makes of an image before it decides: [B, F]."""
        features_BF: Tensor = self.shrink(self.maps(x_BCHW.contiguous(memory_format=torch.channels_last)))
        return features_BF

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits of all attributes side by side: [B, V]."""
        logits_BV: Tensor = self.heads(self.features(x_BCHW))
        return logits_BV


def _maps(c_in: int, width: int, edge: int) -> tuple[list[nn.Module], int, int]:
    """Convolutions, their last channels, and the edge of their maps. Few: a judge learns by many steps.

    The first has a stride of 1: with a larger one, each place within it would have to be learned on its own.
    """
    channels = max(width, c_in // 2)
    blocks: list[nn.Module] = [_block(c_in, channels)]
    while edge > 8 or len(blocks) < 3:
        stride, wider = 2 if edge > 8 else 1, max(channels, min(2 * channels, 4 * width))
        blocks.append(_block(channels, wider, stride))
        edge, channels = -(-edge // stride), wider
    return blocks, channels, edge


def _maps_of_version_1(c_in: int, width: int, edge: int) -> tuple[list[nn.Module], int, int]:
    blocks: list[nn.Module] = [_block(c_in, width), _block(width, width)]
    channels = width
    while edge > 8:
        wider = min(2 * channels, 4 * width)
        blocks += [_block(channels, wider, stride=2), _block(wider, wider)]
        edge, channels = -(-edge // 2), wider
    return blocks, channels, edge


def _block(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
    )


def split(schema: Sequence[Attribute], logits_BV: Tensor) -> list[Tensor]:
    """The logits of each attribute, [B, variants]."""
    starts = one_hot_offsets(schema)
    return [logits_BV[:, s : s + a.variants] for s, a in zip(starts, schema, strict=True)]
