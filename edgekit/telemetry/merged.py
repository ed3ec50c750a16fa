"""Merged sketches: quantiles of buckets that many devices have counted, with their error bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgekit.telemetry.reading import ZERO

__all__ = ["Quantiles", "quantiles"]

_LARGEST_LOG2: Final = 1024 - 2.0**-40


@dataclass(frozen=True)
class Quantiles:
    """Of values that were counted in exponential buckets.

    Attributes:
        count: how many.
        values: by the quantiles that were asked for.
        relative_error: of each, against a value of that very rank, at most.
    """

    count: int
    values: tuple[float, ...]
    relative_error: float


def quantiles(cells: Iterable[tuple[int, int, int]], ranks: Sequence[float]) -> Quantiles | None:
    """Quantiles of cells: scale, bucket and count; None where nothing was counted.

    Sketches of several scales are merged at the coarsest, exactly. The bound is that of DDSketch
    (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
    guarantees", 2019, arXiv 1908.10693), (gamma - 1) / (gamma + 1), with gamma = 2 ** 2 ** -scale.
    """
    rows = [row for row in cells if row[2] > 0]
    if not rows:
        return None
    scales, buckets, counts = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    positive = buckets != ZERO
    scale = int(scales[positive].min()) if positive.any() else 5
    # Zeros come first whatever the scale.
    places = np.where(positive, buckets >> np.where(positive, scales - scale, 0), ZERO)
    places, where = np.unique(places, return_inverse=True)
    merged = np.zeros(len(places), np.int64)
    np.add.at(merged, where, counts)
    reached = np.cumsum(merged)
    total = int(reached[-1])
    at = np.searchsorted(reached, [rank * (total - 1) for rank in ranks], side="right")
    values = tuple(0.0 if places[i] == ZERO else _middle(int(places[i]), scale) for i in at)
    return Quantiles(total, values, math.tanh(2.0**-scale * math.log(2) / 2))


def _middle(bucket: int, scale: int) -> float:
    """2 gamma ** (bucket + 1) / (1 + gamma), by logarithms: gamma of scale -10 is no double."""
    step = 2.0**-scale
    log2 = bucket * step + 1 - math.log2(1 + 2.0**-step)
    return float(2.0 ** min(log2, _LARGEST_LOG2))
