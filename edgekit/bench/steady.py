"""When a series of calls became steady, and whether it did.

Method. The series is cut where its mean or variance changes, by PELT (Killick, Fearnhead, Eckley:
"Optimal detection of changepoints with a linear computational cost", 2012, arXiv 1101.1438) with
the likelihood of a normal distribution and a penalty of 15 log n for each cut; single spikes are
levelled before. The pieces are then judged as Barrett, Bolz-Tereick, Killick, Mount and Tratt do
("Virtual machine warmup blows hot and cold", 2017, arXiv 1602.00602): it is steady from where all
that follows is as fast as the end. What they call as fast (within 1 ms) is here within 2 % or the
last piece's own deviation, since a call may take far less than their iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["METHOD", "Steadiness", "changepoints", "steadiness"]

Floats = npt.NDArray[np.float64]
State = Literal["flat", "warmup", "slowdown", "unsteady", "unknown"]

METHOD: Final = "PELT on mean and variance (arXiv 1101.1438), judged as in arXiv 1602.00602"

_PENALTY: Final = 15.0
_LEAST: Final = 5  # calls in a piece
_FEWEST: Final = 4 * _LEAST  # calls under which nothing is said
_MOST: Final = 600  # points; of longer series medians of neighbours are cut
_WINDOW: Final = 25
_ALIKE: Final = 0.02
_LAST_SHARE: Final = 0.25


@dataclass(frozen=True)
class Steadiness:
    """Of one series.

    Attributes:
        state: ``flat`` (steady all along), ``warmup`` (fastest in the end), ``slowdown`` (it was
            faster before), ``unsteady`` (the last steady piece is under a quarter of it) or
            ``unknown`` (too few calls).
        start: the call from which on it is steady; None where it isn't, or nobody knows.
    """

    state: State
    start: int | None


def steadiness(values: Sequence[float]) -> Steadiness:
    """Judges a series of latencies, in the order measured."""
    data = np.asarray(values, np.float64)
    if data.size < _FEWEST or not np.isfinite(data).all():
        return Steadiness("unknown", None)
    width = -(-data.size // _MOST)
    points = _medians(data, width)
    level = _levelled(points)
    cuts = [0, *changepoints(level), level.size]
    means = [float(level[a:b].mean()) for a, b in pairwise(cuts)]
    last = level[cuts[-2] :]
    reach = max(float(last.std()), _ALIKE * means[-1])
    first = len(means) - 1
    while first and abs(means[first - 1] - means[-1]) <= reach:
        first -= 1
    start = cuts[first]
    if level.size - start < max(_LEAST, _LAST_SHARE * level.size):
        return Steadiness("unsteady", None)
    if first == 0:
        return Steadiness("flat", 0)
    fastest = means[-1] <= min(means[:first]) + reach
    state: State = "warmup" if fastest else "slowdown"
    return Steadiness(state, start * width)


def changepoints(values: Floats) -> list[int]:
    """Where mean or variance of ``values`` [N] change: first indexes of the new pieces.

    Exact under its cost (pruned dynamic programming); at least `_LEAST` values lie between two.
    """
    n = values.size
    # Centred and scaled, so that the sums of squares keep their digits.
    scale = float(values.std()) or 1.0
    centred = (values - values.mean()) / scale
    sums = np.concatenate([[0.0], np.cumsum(centred)])
    squares = np.concatenate([[0.0], np.cumsum(centred**2)])
    penalty = _PENALTY * float(np.log(n))
    best = np.full(n + 1, np.inf)
    best[0] = -penalty
    before = np.zeros(n + 1, np.int64)
    starts = np.array([0])
    for end in range(_LEAST, n + 1):
        length = end - starts
        mean = (sums[end] - sums[starts]) / length
        spread = (squares[end] - squares[starts]) / length - mean**2
        # A clock has a step: a piece of equal values is no more than very even.
        cost = length * np.log(np.maximum(spread, 1e-6))
        total = best[starts] + cost + penalty
        chosen = int(total.argmin())
        best[end], before[end] = total[chosen], starts[chosen]
        # What costs more now, even without another penalty, can't win later (PELT's pruning).
        starts = starts[total - penalty <= best[end]]
        if end - _LEAST + 1 >= _LEAST:
            starts = np.append(starts, end - _LEAST + 1)
    cuts, at = [], n
    while before[at] > 0:
        at = int(before[at])
        cuts.append(at)
    return cuts[::-1]


def _medians(data: Floats, width: int) -> Floats:
    if width == 1:
        return data
    whole = data[: data.size - data.size % width].reshape(-1, width)
    return np.asarray(np.median(whole, axis=1), np.float64)


def _levelled(data: Floats) -> Floats:
    """Single spikes brought to the median of their neighbourhood.

    A spike lies over it by more than three times the range from the 10th to the 90th percentile
    there, and its two neighbours don't.
    """
    level = data.copy()
    for start in range(0, data.size, _WINDOW):
        part = slice(max(0, min(start, data.size - _WINDOW)), start + _WINDOW)
        middle = float(np.median(data[part]))
        low, high = np.percentile(data[part], [10, 90])
        limit = middle + 3 * max(float(high - low), 0.01 * middle)
        over = np.flatnonzero(data[part] > limit) + part.start
        for index in over:
            beside = [i for i in (index - 1, index + 1) if 0 <= i < data.size]
            if all(data[i] <= limit for i in beside):
                level[index] = middle
    return level
