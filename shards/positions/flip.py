"""Which samples of the stream are seen in a mirror: a function of (seed, position), like their order.

A resume, another world size or another number of workers changes nothing, and a sample may be mirrored in one
epoch and not in the next.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.positions.permutation import word

FLIP = 5
"""Sets these words apart from the orders', which are of (seed, epoch, 1 to 4, ...): only that of position 2
is also the one of ``block``'s shift in epoch 5."""


def flipped(seed: int, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the samples at ``positions`` [B] of the stream are mirrored, half in the long run: [B]."""
    # word(seed, FLIP, position) for whole arrays: the finaliser of splitmix64, whose highest bit decides.
    mixed = positions.astype(np.uint64) + np.uint64((word(seed, FLIP) + 0x9E3779B97F4A7C15) % (1 << 64))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    highest: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(63)
    return highest.astype(np.bool_)


def flip(images: NDArray[np.uint8], seed: int, positions: NDArray[np.int64]) -> None:
    """Mirror those of ``images`` [B, H, W, 3], which lie at ``positions`` [B], left to right, in place."""
    mirrored = flipped(seed, positions)
    images[mirrored] = images[mirrored, :, ::-1]
