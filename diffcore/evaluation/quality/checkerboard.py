"""How much of a checkerboard a set of images has: a network that ends in PixelShuffle, or in strided
transposed convolutions, may leave a pattern of 2 x 2 pixels over what it draws (Odena et al. 2016).

Such a pattern alternates from pixel to pixel, in one direction or both, over wide areas: its power lies near
three frequencies, (1/2, 0), (0, 1/2) and (1/2, 1/2) cycles a pixel. Edges, texture and noise have power there
too, but as much in the bands beside them. So the measure is the share of the one in the sum of both, by
density: 1/2 for white noise, less for what is smooth, up to 1 for a pattern. It does not change with
contrast, nor with a shift, which only turns the pattern's sign.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HALF_BAND = 1 / 16
"""Cycles a pixel about each of the three frequencies: the pattern may change over some 8 pixels."""
LEAST = 16
"""Pixels of an edge, below which the bands hold too few frequencies."""
ROUNDING = 3 / 12
"""Power of rounding to whole numbers, of three channels."""
CHUNK = 512


def checkerboard(images_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of each square image, the share of its finest power that is a pattern of 2 x 2 pixels: [N], 0 to 1.

    ValueError for images smaller than ``LEAST`` pixels.
    """
    size = images_NHWC.shape[1]
    if size < LEAST:
        raise ValueError(f"images of {size} pixels are too small for a checkerboard's bands")
    pattern_HW, beside_HW = _bands(size)
    # A window, so that the edges' difference, left to right and top to bottom, is no edge of the spectrum's.
    window_S = np.hanning(size + 2)[1:-1]
    window_HW = window_S[:, None] * window_S
    window_HW /= np.sqrt(np.square(window_HW).mean())
    shares = []
    for first in range(0, len(images_NHWC), CHUNK):
        x_NHWC = images_NHWC[first : first + CHUNK].astype(np.float64)
        x_NHWC -= x_NHWC.mean((1, 2), keepdims=True)
        spectrum_NHWC = np.fft.fft2(x_NHWC * window_HW[..., None], axes=(1, 2))
        power_NHW = np.square(np.abs(spectrum_NHWC)).sum(-1) / size**2
        pattern_N, beside_N = (power_NHW[:, band].mean(1) for band in (pattern_HW, beside_HW))
        shares.append(pattern_N / (pattern_N + beside_N + ROUNDING))  # of an even area there is none
    return np.concatenate(shares) if shares else np.empty(0)


def _bands(size: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Frequencies of the pattern, and those beside them: bool [H, W] each."""
    frequency_S = np.abs(np.fft.fftfreq(size))
    slow, fast = frequency_S <= HALF_BAND, frequency_S >= 0.5 - HALF_BAND
    beside = (frequency_S >= 0.5 - 3 * HALF_BAND) & ~fast

    def either(a_S: NDArray[np.bool_], b_S: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return (a_S[:, None] & b_S) | (b_S[:, None] & a_S)

    pattern_HW = either(slow, fast) | either(fast, fast)
    return pattern_HW, either(slow, beside) | either(fast, beside) | either(beside, beside)
