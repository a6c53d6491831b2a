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
    return Share(hits, count, share, *_score_interval(share, count, z))


def _score_interval(share: float, count: float, z: float) -> tuple[float, float]:
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # At the ends the formula is exact but for rounding.
    return 0.0 if share == 0 else middle - half, 1.0 if share == 1 else middle + half


@dataclass(frozen=True)
class Mean:
    """A mean with its interval; all nan where nothing was counted."""

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

    The interval is Wilson's for the effective number of samples, that of which a plain share would have this
    variance (as in surveys of clusters; Dean & Pagano 2015). A normal interval would leave 0 to 1 near its
    ends, and have no width at them. Of one attribute it is ``wilson``'s.
    """
    mean, influence_N = _influence(hit_NA, counted_NA)
    if math.isnan(mean):
        return Mean(mean, mean, mean)
    count_A = counted_NA.sum(0)
    count_A = count_A[count_A > 0]
    # As if a sample's attributes all went together, and as if each went alone: the variance tells nothing at
    # 0 and 1, and of few samples it may be nothing by chance.
    least = len(count_A) / float((1 / count_A).sum())
    most = least * len(count_A)
    variance = float(influence_N.var()) / len(influence_N)
    if mean in (0, 1):
        effective = least
    else:
        effective = mean * (1 - mean) / variance if variance * most > mean * (1 - mean) else most
    return Mean(mean, *_score_interval(mean, effective, z))


def corrected_mean(
    hit_NA: NDArray[np.bool_],
    counted_NA: NDArray[np.bool_],
    real_hit_MA: NDArray[np.bool_],
    real_counted_MA: NDArray[np.bool_],
    chance_A: NDArray[np.float64],
    z: float = Z95,
) -> Mean:
    """Mean over the attributes of (share - chance) / (judge - chance): 0 is chance, 1 as the judge reads real
    images.

    ``share`` is of hits among what counts of N drawn images, ``judge`` the same of M real ones. Nothing is
    clipped: a mean below 0 or above 1 is chance's doing, or the judge's. ValueError for an attribute that no
    image of one side counts for, or that the judge does not read better than by chance.

    The interval is normal, by the delta method with images as the unit on both sides, as in
    ``mean_of_shares``, and no narrower than Wilson's where all or no images hit.
    """
    count_A, real_count_A = counted_NA.sum(0), real_counted_MA.sum(0)
    if not min(count_A.size, *count_A, *real_count_A):
        raise ValueError("an attribute that no image counts for")
    share_A, judge_A = (
        (hit_NA & counted_NA).sum(0) / count_A,
        (real_hit_MA & real_counted_MA).sum(0) / real_count_A,
    )
    if not (judge_A > chance_A).all():
        raise ValueError("an attribute that the judge reads no better than by chance")
    scale_A = 1 / (judge_A - chance_A)
    corrected_A = (share_A - chance_A) * scale_A
    # Of one image on the mean, by way of each attribute's share, and of the judge's for the real ones.
    drawn_N = (counted_NA * (hit_NA - share_A) / count_A * scale_A).mean(1)
    real_M = (real_counted_MA * (real_hit_MA - judge_A) / real_count_A * scale_A * corrected_A).mean(1)
    half = z * math.sqrt(float((drawn_N**2).sum() + (real_M**2).sum()))
    half = max(half, float(scale_A.mean()) * z**2 / (float(count_A.min()) + z**2))
    mean = float(corrected_A.mean())
    return Mean(mean, mean - half, mean + half)


def paired_difference(
    hit_NA: NDArray[np.bool_], other_NA: NDArray[np.bool_], counted_NA: NDArray[np.bool_], z: float = Z95
) -> Mean:
    """``mean_of_shares`` of one set minus that of another, drawn for the same labels, sample by sample."""
    first, influence_N = _influence(hit_NA, counted_NA)
    second, other_N = _influence(other_NA, counted_NA)
    half = z * float((influence_N - other_N).std()) / math.sqrt(max(len(influence_N), 1))
    difference = first - second
    return Mean(difference, max(difference - half, -1.0), min(difference + half, 1.0))


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
