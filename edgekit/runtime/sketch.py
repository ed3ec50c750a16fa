"""Sketch: a histogram whose quantiles have a bounded relative error, and which merges exactly.

The buckets are those of Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch
with relative-error guarantees" (2019, arXiv 1908.10693), with gamma = 2 ** (1 / 32), and so those
of an OpenTelemetry exponential histogram of scale 5: bucket i holds values in
(gamma ** i, gamma ** (i + 1)].
"""

from __future__ import annotations

import math
from typing import Any, Final

__all__ = ["RELATIVE_ERROR", "SCALE", "Sketch"]

SCALE: Final = 5
_PER_OCTAVE: Final = 1 << SCALE
_GAMMA: Final = 2 ** (1 / _PER_OCTAVE)
RELATIVE_ERROR: Final = (_GAMMA - 1) / (_GAMMA + 1)
"""Of any quantile against a value of that rank: 1.083 %."""

_LOWEST: Final = -30 * _PER_OCTAVE
_HIGHEST: Final = 50 * _PER_OCTAVE - 1
_TINY: Final = 2.0**-30
_log2 = math.log2
_ceil = math.ceil


class Sketch:
    """Counts of values from 2 ** -30 to 2 ** 50; what is smaller counts as zero, what is larger in
    the last bucket. At most 2,560 buckets, whatever comes.

    Attributes:
        count, total, low, high: how many values, their sum, the least and the largest.
        zeros: how many were too small for a bucket.
        buckets: counts by bucket.
    """

    __slots__ = ("buckets", "count", "high", "low", "total", "zeros")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.low = math.inf
        self.high = -math.inf
        self.zeros = 0
        self.buckets: dict[int, int] = {}

    def add(self, value: float) -> None:
        """Counts a value; one that is negative or not finite is not counted."""
        if not 0.0 <= value < math.inf:
            return
        self.count += 1
        self.total += value
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value
        if value < _TINY:
            self.zeros += 1
            return
        index = _ceil(_log2(value) * _PER_OCTAVE) - 1
        index = _LOWEST if index < _LOWEST else _HIGHEST if index > _HIGHEST else index
        buckets = self.buckets
        buckets[index] = buckets.get(index, 0) + 1

    def merge(self, other: Sketch) -> None:
        """Counts all that another has counted."""
        self.count += other.count
        self.total += other.total
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.zeros += other.zeros
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count

    def quantile(self, q: float) -> float:
        """The value at a rank, within `RELATIVE_ERROR`; NaN where nothing was counted."""
        if not self.count:
            return math.nan
        rank = q * (self.count - 1)
        seen = self.zeros
        if rank < seen:
            return 0.0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if rank < seen:
                # The middle by relative error of a bucket's two ends.
                return 2 * _GAMMA ** (index + 1) / (1 + _GAMMA)
        return self.high

    def to_otlp(self) -> dict[str, Any]:
        """The fields of an ``ExponentialHistogramDataPoint``."""
        point: dict[str, Any] = {
            "count": self.count,
            "sum": self.total,
            "scale": SCALE,
            "zero_count": self.zeros,
            "zero_threshold": _TINY if self.zeros else 0.0,
        }
        if self.count:
            point |= {"min": self.low, "max": self.high}
        if self.buckets:
            low, high = min(self.buckets), max(self.buckets)
            counts = [self.buckets.get(index, 0) for index in range(low, high + 1)]
            point["positive"] = {"offset": low, "bucket_counts": counts}
        return point
