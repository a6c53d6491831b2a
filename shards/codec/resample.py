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
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

ONE = 1 << 15  # the weights' unit
LINES = 4  # of the result, done by one product: few, for they share most of the lines they are made from
SMALL = 1 << 19  # numbers that all bands are made from: those of an image of some 300 pixels, to 64
PIECE = 1 << 22  # pixels computed with at a time: 64 MiB of floats, more than an image of usual size has
OPAQUE = 0xFF << 24  # least value of a pixel whose alpha is 255, as one little-endian number

Float = TypeVar("Float", np.float32, np.float64)


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
    edge = len(pixels)
    if edge == size:
        return np.ascontiguousarray(pixels[..., :3])
    index, weights = _bands(edge, size)
    made = _products(index, weights, pixels.reshape(edge, -1))[:size]
    turned = np.ascontiguousarray(made.T).reshape(edge, -1)  # [x of the source, channel and y]
    whole = _products(index, weights.astype(np.float64), turned[:, : 3 * size])[:size]
    rounded = (whole / ONE**2 + 0.5).clip(0, 255).astype(np.uint8)  # [x, channel and y]
    return np.ascontiguousarray(rounded.reshape(size, 3, size).transpose(2, 0, 1))


def _products(index: NDArray[np.intp], weights: NDArray[Float], source: NDArray[Any]) -> NDArray[Float]:
    """The weighted sums of ``source``'s lines [from, W], in the type of the weights: [lines, W].

    Of a small image all bands in one call: between two of them threads wait for each other. Of a large one
    band by band, which a core's cache holds.
    """
    bands, lines, several = weights.shape
    width = source.shape[1]
    made = np.empty((bands, lines, width), weights.dtype)
    if bands * several * width <= SMALL:
        np.matmul(weights, source[index].astype(weights.dtype), out=made)
        return made.reshape(-1, width)
    step = max(PIECE // several, 1)
    for result, low, band in zip(made, index[:, 0], weights, strict=True):
        for left in range(0, width, step):
            some = source[low : low + several, left : left + step].astype(weights.dtype, "C")
            np.matmul(band, some, out=result[:, left : left + step])
    return made.reshape(-1, width)


@lru_cache(maxsize=16)
def _bands(edge: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """How ``edge`` lines become ``size`` ones: the lines that each band of ``LINES`` is made from [bands,
    from], and the weights [bands, LINES, from]; the last band may have more lines than there are to make."""
    rows = [_weights(line, edge, size) for line in range(size)]
    parts = [rows[first : first + LINES] for first in range(0, size, LINES)]
    reach = [(part[0][0], max(low + len(weights) for low, weights in part)) for part in parts]
    several = max(high - low for low, high in reach)
    found = np.zeros((len(parts), LINES, several), np.float32)
    starts = np.array([min(low, edge - several) for low, _ in reach], np.intp)
    for band, start, part in zip(found, starts, parts, strict=True):
        for row, (low, weights) in zip(band, part, strict=False):
            row[low - start : low - start + len(weights)] = weights
    return starts[:, None] + np.arange(several), found


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
