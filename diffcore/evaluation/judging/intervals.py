"""Confidence intervals of shares and of their means, at 95 % by default."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """``hits`` of ``count``, with Wilson's interval; all nan where nothing was counted."""

    hits: int
    count: int
    share: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


def wilson(hits: int, count: int, z: float = Z95) -> Share:
    """A share with its score interval (Wilson 1927), which stays within 0 and 1 and holds for few samples."""
    if not 0 <= hits <= count:
        raise ValueError(f"{hits} of {count} is no share")
    if not count:
        return Share(0, 0, math.nan, math.nan, math.nan)
    share = hits / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # At the ends the formula is exact but for rounding.
    low = 0.0 if not hits else middle - half
    high = 1.0 if hits == count else middle + half
    return Share(hits, count, share, low, high)


@dataclass(frozen=True)
class Mean:
    """A mean with its normal interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


def mean_of_shares(hit_NA: NDArray[np.bool_], counted_NA: NDArray[np.bool_], z: float = Z95) -> Mean:
    """Mean over the attributes of each one's share of hits among the counted samples.

    A sample's attributes are not independent (a bad image misses many at once), so the samples are the unit:
    the variance is that of each sample's influence on the mean (the delta method). Attributes that no sample
    counts for are left out; nan where none is left.
    """
    mean, influence_N = _influence(hit_NA, counted_NA)
    half = z * influence_N.std() / math.sqrt(max(len(influence_N), 1)) if len(influence_N) else math.nan
    return Mean(mean, mean - half, mean + half)


def paired_difference(
    hit_NA: NDArray[np.bool_], other_NA: NDArray[np.bool_], counted_NA: NDArray[np.bool_], z: float = Z95
) -> Mean:
    """``mean_of_shares`` of one set minus that of another, drawn for the same labels, sample by sample."""
    first, influence_N = _influence(hit_NA, counted_NA)
    second, other_N = _influence(other_NA, counted_NA)
    half = z * float((influence_N - other_N).std()) / math.sqrt(max(len(influence_N), 1))
    return Mean(first - second, first - second - half, first - second + half)


def _influence(hit_NA: NDArray[np.bool_], counted_NA: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    """The mean of the shares, and each sample's influence on it: [N], of mean 0."""
    count_A = counted_NA.sum(0)
    kept = count_A > 0
    if not kept.any():
        return math.nan, np.zeros(len(hit_NA))
    hit, counted, count = hit_NA[:, kept], counted_NA[:, kept], count_A[kept]
    share_A = (hit & counted).sum(0) / count
    influence_NA = counted * (hit - share_A) * len(hit) / count
    return float(share_A.mean()), influence_NA.mean(1)
