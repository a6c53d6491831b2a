"""What a label looks like and where: a learned map for each, added to the features of an image.

Attention tells a pixel which labels there are; where on the image each of them shows, queries would have
to find out from the noisy image, which at high noise says nothing. A map says it: a table of embeddings that
have two more dimensions. For labels that place nothing it adds what a class embedding does (Dhariwal &
Nichol 2021).

Shapes: B batch, A attributes, C channels of a map, S its side, D channels of the features, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffcore.models.tau import LabelEncoder

SIDE = 16
"""Of a map: coarse, so that what it draws is for the convolutions to make sharp."""


class LabelMaps(nn.Module):
    """The sum of a sample's maps, and a 1 x 1 convolution for each place of the network that sees it.

    A dropped condition and an unknown label add nothing but the convolution's bias. ``gain``: as in
    ``tau.Tau``.
    """

    def __init__(self, encoder: LabelEncoder, channels: int, gain: float, widths: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.gain = channels, gain
        self.table = nn.Embedding(encoder.width, channels * SIDE**2)
        # The sum has unit variance from the start: ``active`` of the entries are non-zero.
        nn.init.normal_(self.table.weight, std=encoder.active**-0.5 / gain)
        self.places = nn.ModuleList(nn.Conv2d(channels, width, 1) for width in widths)

    def forward(self, encoded: tuple[Tensor, Tensor]) -> Tensor:
        """What ``LabelEncoder.rows`` returns -> [B, C, S, S]."""
        rows_BA, entries_BA = encoded
        sum_B1E = torch.bmm(entries_BA[:, None] * self.gain, self.table(rows_BA))
        maps_BCSS: Tensor = sum_B1E.view(-1, self.channels, SIDE, SIDE)
        return maps_BCSS

    def add(self, place: int, h_BDHW: Tensor, maps_BCSS: Tensor) -> Tensor:
        """The features with the maps, in their size, added as the ``place``-th convolution sees them."""
        height, width = h_BDHW.shape[2:]
        resized_BCHW = _resizing(height, h_BDHW) @ maps_BCSS @ _resizing(width, h_BDHW).T
        output: Tensor = h_BDHW + self.places[place](resized_BCHW)
        return output


def _resizing(size: int, like: Tensor) -> Tensor:
    """[size, S]: linear interpolation to more pixels, means to fewer.

    As a matrix: backward through torch's own resizing of an image is not deterministic on a GPU.
    """
    eye_1SS = torch.eye(SIDE, dtype=like.dtype, device=like.device)[None]
    if size < SIDE:
        return F.adaptive_avg_pool1d(eye_1SS, size)[0].T
    return F.interpolate(eye_1SS, size=size, mode="linear", align_corners=False)[0].T
