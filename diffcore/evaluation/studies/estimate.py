"""The mean over a few seeds with its interval (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with an interval; of one seed it is without bounds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], level: float = 0.95) -> Estimate:
        """From one value per seed; the interval holds the true mean in ``level`` of such experiments."""
        mean, n = float(np.mean(values)), len(values)
        if n < 2:  # one seed says nothing of the others
            return cls(mean, -math.inf, math.inf)
        half = student_t(0.5 + level / 2, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
        return cls(mean, mean - half, mean + half)

    def range(self) -> str:
        """Mean and interval as they are."""
        if math.isinf(self.low):
            return f"{self.mean:.2f} (one seed)"
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"

    def points(self) -> str:
        """Mean and interval in percentage points."""
        if math.isinf(self.low):
            return f"{100 * self.mean:+.1f} points (one seed)"
        return f"{100 * self.mean:+.1f} points ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def student_t(share: float, freedom: int) -> float:
    """The value below which Student's t of ``freedom`` >= 1 degrees lies in ``share`` (0.5 to 1) of cases."""
    low, high = 0.0, 1.0
    while _below(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle, freedom) < share else (low, middle)
    return high


def _below(t: float, freedom: int) -> float:
    """The distribution function, for whole degrees a finite sum (Abramowitz & Stegun 1964, 26.7.3 and 4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + within / 2
