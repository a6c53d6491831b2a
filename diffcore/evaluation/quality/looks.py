"""What a set of images looks like beside real ones: how different they are among themselves, how near to
training images, and how clean where every real image is the same.

All of it in pixels, by thumbnails, so that it needs no judge and knows no labels. Distances are root mean
squares over pixels and channels, of 255. Shapes: N images, P pixels and channels of a thumbnail.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

THUMBNAIL = 16
CHUNK = 512
STILL = 2.0
"""A pixel whose values differ by less than this standard deviation over the real images is background."""
CLEAN = 12
"""A background pixel is clean if no channel is further than this, of 255, from the real images' mean."""
WHOLE = 0.99
"""An image is clean if this share of its background pixels is."""
SEEN = 8.0
"""A person sees a blemish where a patch of the background is further than this, of 255, from the real images'
mean.
"""
PATCH = 3 / 64
"""Edge of such a patch, of an image's: 3 pixels of 64."""


def thumbnails(images_NHWC: NDArray[np.uint8], edge: int = THUMBNAIL) -> NDArray[np.float32]:
    """Means of blocks, at least ``edge`` x ``edge`` of them, about the middle grey: fp32 [N, P]."""
    count, size = images_NHWC.shape[:2]
    block = max(1, size // edge)
    kept = size // block * block
    blocks = images_NHWC[:, :kept, :kept].reshape(count, kept // block, block, kept // block, block, 3)
    # About 0, so that ``distances`` loses few digits to the difference of large squares.
    means: NDArray[np.float32] = blocks.mean((2, 4), dtype=np.float32).reshape(count, -1)
    return means - np.float32(127.5)


def distances(a_NP: NDArray[np.float32], b_MP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Between all pairs: [N, M]."""
    square = (a_NP**2).sum(1)[:, None] + (b_MP**2).sum(1) - 2 * a_NP @ b_MP.T
    root: NDArray[np.float32] = np.sqrt(np.maximum(square, 0) / a_NP.shape[1])
    return root


def spread(a_NP: NDArray[np.floating]) -> float:
    """Mean distance between two of a set; nan for fewer than two."""
    if len(a_NP) < 2:
        return math.nan
    a_NP = a_NP.astype(np.float32)
    return float(distances(a_NP, a_NP).sum() / (len(a_NP) * (len(a_NP) - 1)))


@dataclass
class Nearest:
    """The nearest of the images seen so far to each of N images: distance and where it stood."""

    images_NP: NDArray[np.float32]
    distance_N: NDArray[np.float32]
    place_N: NDArray[np.int64]

    @classmethod
    def to(cls, images_NP: NDArray[np.float32]) -> Nearest:
        """Before any image was seen: distances are inf, places -1."""
        count = len(images_NP)
        return cls(images_NP, np.full(count, np.inf, np.float32), np.full(count, -1, np.int64))

    def look(self, others_MP: NDArray[np.float32], places_M: NDArray[np.int64]) -> None:
        """Compare with more images, which stand at ``places``; an equal distance keeps the earlier one."""
        between = distances(self.images_NP, others_MP)
        best = between.argmin(1)
        self.take(between[np.arange(len(best)), best], places_M[best])

    def take(self, distance_N: NDArray[np.float32], place_N: NDArray[np.int64]) -> None:
        """Keep what is nearer: also how the ranks' shares of the training images come together."""
        nearer = distance_N < self.distance_N
        self.distance_N = np.where(nearer, distance_N, self.distance_N)
        self.place_N = np.where(nearer, place_N, self.place_N)


def share_below(drawn_N: NDArray[np.floating], held_out_M: NDArray[np.floating], quantile: float) -> float:
    """Share of ``drawn`` nearer to a training image than this quantile of held-out images is."""
    return float((drawn_N < np.quantile(held_out_M, quantile)).mean())


@dataclass(frozen=True)
class Background:
    """Where all real images agree, and on what: mask bool [H, W], mean fp32 [H, W, 3]."""

    mask_HW: NDArray[np.bool_]
    mean_HWC: NDArray[np.float32]

    @classmethod
    def of(cls, batches: Iterable[NDArray[np.uint8]]) -> Background:
        """From batches of real images, uint8 [N, H, W, 3]."""
        total: NDArray[np.float64] = np.zeros(())
        squares: NDArray[np.float64] = np.zeros(())
        count = 0
        for images in batches:
            total = total + images.sum(0, dtype=np.float64)
            squares = squares + np.square(images, dtype=np.float64).sum(0)
            count += len(images)
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return cls(deviation.max(-1) < STILL, mean.astype(np.float32))

    @property
    def share(self) -> float:
        """Share of the image that is background; 0: the real images have none in common."""
        return float(self.mask_HW.mean())

    def clean(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Share of each image's background pixels that are clean: [N]."""
        off_NM = np.abs(images_NHWC[:, self.mask_HW] - self.mean_HWC[self.mask_HW]).max(-1)
        share_N: NDArray[np.float64] = (off_NM <= CLEAN).mean(1)
        return share_N

    def blemish(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        """What a person sees in each image's background, of 255: the largest difference of a patch, [N].

        A small spot is seen by its contrast times its area (Ricco's law), so that a difference is the mean
        over a patch, of its pixels' absolute differences from the real images' mean, in the worst channel:
        one pixel of 3 x 3 may be nine times as far off as all. What of a patch is not background counts as no
        difference.
        """
        edge = max(3, round(PATCH * len(self.mask_HW)) | 1)
        worst = []
        for first in range(0, len(images_NHWC), CHUNK):
            off_NHWC = np.abs(images_NHWC[first : first + CHUNK] - self.mean_HWC) * self.mask_HW[..., None]
            off_NCHW = torch.from_numpy(off_NHWC).permute(0, 3, 1, 2)
            worst.append(F.avg_pool2d(off_NCHW, edge, stride=1, padding=edge // 2).amax((1, 2, 3)).numpy())
        return np.concatenate(worst).astype(np.float64)


def effective_number(values_N: NDArray[np.int64]) -> float:
    """exp of the entropy: how many variants a set uses, a rare one counting less."""
    shares = np.bincount(values_N) / len(values_N)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
