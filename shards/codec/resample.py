"""Source pixels to packed ones: over white, and the antialiased bicubic resize.

The filter is Pillow's (``Image.Resampling.BICUBIC``: Keys' cubic, a = -0.5, as many times wider as the image
gets smaller), done as products of matrices: first along y, then along x. Its weights are whole multiples of
2**-15. So every sum is a whole number that float32 (first product, below 2**24) and float64 (second, below
2**40) hold exactly: the order of adding does not matter, and every machine and BLAS gives the same pixels.
They are rounded and cut off at 0 and 255 once, at the end. Pillow does both after each direction, and so is
a level off here and there, more where the filter overshoots.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ONE = 1 << 15  # the weights' unit
LINES = 4  # of the result, done by one product: few, for they share most of the lines they are made from
PIECE = 1 << 22  # pixels computed with at a time: 64 MiB of floats, more than an image of usual size has
OPAQUE = 0xFF << 24  # least value of a pixel whose alpha is 255, as one little-endian number

# The result's first line that a product makes, the first line it is made from, and the weights [lines, from].
Band = tuple[int, int, NDArray[np.float32]]


def over_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGBA [H, W, 4] over white, by Pillow's rounding. What the fourth channel then holds does not matter.

    Most pixels of a drawing are opaque or not there at all; only the others are computed.
    """
    found = np.array(pixels, order="C")
    numbers = found.view("<u4").reshape(-1)
    for start in range(0, len(numbers), PIECE):
        _over_white(numbers[start : start + PIECE])
    return found


def _over_white(numbers: NDArray[np.uint32]) -> None:
    """``over_white`` in place, each pixel one number."""
    np.copyto(numbers, 0xFFFFFFFF, where=numbers < 1 << 24)
    partial = np.flatnonzero(numbers < OPAQUE)
    rgba = numbers[partial].view(np.uint8).reshape(-1, 4).astype(np.uint16)
    alpha = rgba[:, 3:]
    scaled = rgba * alpha + 255 * (255 - alpha) + 128
    numbers[partial] = ((scaled + (scaled >> 8)) >> 8).astype(np.uint8).view("<u4")[:, 0]  # / 255, rounded


def resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The first three channels of a square [E, E, C], as [size, size, 3]."""
    edge, _, channels = pixels.shape
    if edge == size:
        return np.ascontiguousarray(pixels[..., :3])
    bands = _bands(edge, size)
    made = np.empty((size, edge * channels), np.float32)
    for first, low, weights in bands:
        source, result = pixels[low : low + weights.shape[1]], made[first : first + len(weights)]
        step = max(PIECE // len(source), 1)
        for left in range(0, edge, step):
            lines = source[:, left : left + step].astype(np.float32, "C").reshape(len(source), -1)
            np.matmul(weights, lines, out=result[:, channels * left : channels * (left + step)])
    turned = np.ascontiguousarray(made.T).reshape(edge, channels * size)  # [x of the source, channel and y]
    whole = np.empty((size, 3 * size))  # [x, channel and y]
    for first, low, weights in bands:
        columns = turned[low : low + weights.shape[1], : 3 * size].astype(np.float64)
        np.matmul(weights, columns, out=whole[first : first + len(weights)])
    rounded = (whole / ONE**2 + 0.5).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(rounded.reshape(size, 3, size).transpose(2, 0, 1))


@lru_cache(maxsize=16)
def _bands(edge: int, size: int) -> list[Band]:
    """The weights by which ``edge`` lines become ``size`` ones."""
    found = []
    for first in range(0, size, LINES):
        rows = [_weights(line, edge, size) for line in range(first, min(first + LINES, size))]
        low, high = rows[0][0], max(start + len(weights) for start, weights in rows)
        matrix = np.zeros((len(rows), high - low), np.float32)
        for row, (start, weights) in zip(matrix, rows, strict=True):
            row[start - low : start - low + len(weights)] = weights
        found.append((first, low, matrix))
    return found


def _weights(line: int, edge: int, size: int) -> tuple[int, NDArray[np.float64]]:
    """The first of ``edge`` lines that line ``line`` of ``size`` is made from, and the weights from it on."""
    scale = edge / size
    stretch = max(scale, 1)
    centre, reach = (line + 0.5) * scale, 2 * stretch
    low, high = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), edge)
    x = np.abs((np.arange(low, high) + 0.5 - centre) / stretch)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    cubic = np.where(x < 1, near, np.where(x < 2, far, 0))
    # Rounding the running sum keeps the whole exact: a plain area keeps its colour.
    return low, np.diff(np.rint(np.cumsum(cubic) / cubic.sum() * ONE), prepend=0)
