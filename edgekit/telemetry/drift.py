"""Drift: whether what a fleet counts now differs from what it counted before, beyond chance.

Three distances of two histograms, each with the limit that chance alone passes with a stated
probability. With n and m counts in B bins, and the same distribution behind both,

* the population stability index, sum (p - q) ln(p / q), is about (1/n + 1/m) times chi-square with
  B - 1 degrees of freedom (Yurdakul and Naranjo, "Statistical properties of the population
  stability index", 2020);
* the Jensen-Shannon divergence, in nats, is about an eighth of that (Lin, "Divergence measures
  based on the Shannon entropy", 1991);
* the largest distance of the cumulated shares passes sqrt(ln(2 / a) / 2 * (1/n + 1/m)) with a
  probability of at most about a (Smirnov, 1948); on bins it is smaller. It is told only where bins
  are in order.

The rules of thumb (0.1, 0.25) know nothing of n and m. A window is flagged where one of the three
passes its limit, each at a third of the false-alarm rate, so together they keep to it.

Requests of one device or one hour are alike, so counts vary more than if each were drawn alone.
How much more is estimated from the parts (hours or days) of the reference or the window, as
Pearson's chi-square of the parts over its degrees of freedom, the design effect (Rao and Scott,
"The analysis of categorical data from complex sample surveys", 1981); the limits grow by it.

With millions of counts a difference that matters to nobody passes every limit of chance, so one of
less than `TOLERATED` is not flagged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData, UsageError

__all__ = ["TOLERATED", "Distance", "Drift", "compare"]

TOLERATED: Final[dict[str, float]] = {"psi": 0.01, "js": 0.00125, "ks": 0.02}

_LEAST_EXPECTED: Final = 5.0
_LEAST_COUNTS: Final = 50

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """One distance, and what chance alone keeps below."""

    value: float
    limit: float

    @property
    def beyond(self) -> bool:
        """Whether it is more than the limit."""
        return self.value > self.limit


@dataclass(frozen=True)
class Drift:
    """What a comparison gave.

    Attributes:
        distances: by ``psi``, ``js``, ``ks``; empty where there is too little to compare.
        false_alarms: the share of windows without drift that are flagged, at most.
        design_effect: how much more counts of the window vary than if each were drawn alone; at
            least 1.
        counts: of the reference, and of the window.
        bins: how many were compared, rare ones taken together.
    """

    distances: dict[str, Distance]
    false_alarms: float
    design_effect: float
    counts: tuple[int, int]
    bins: int

    @property
    def flagged(self) -> bool | None:
        """Whether it drifted; None where there is too little to tell."""
        if not self.distances:
            return None
        return any(distance.beyond for distance in self.distances.values())


def compare(
    reference: npt.ArrayLike,
    window: npt.ArrayLike,
    *,
    ordered: bool,
    false_alarms: float = 0.01,
    features: int = 1,
) -> Drift:
    """Compares a window with a reference.

    Args:
        reference: counts, parts by bins: hours or days of the reference, at least one.
        window: counts by bin, or parts by bins, where those of the reference do not tell how much
            counts vary: a bundle's samples were drawn one by one.
        ordered: whether bins are in order, as those of a histogram are and classes are not.
        false_alarms: the rate for all features together.
        features: how many are compared in the same way; each gets its share of the rate.

    Raises:
        BadData: counts are negative or not finite, or the bins are not as many.
        UsageError: the rate is not between 0 and 1, or there are no features.
    """
    if not 0 < false_alarms < 1 or features < 1:
        raise UsageError("a rate of false alarms is between 0 and 1, for one feature or more")
    parts = _checked(reference, 2)
    latter = _checked(window, 1 if np.ndim(window) == 1 else 2).reshape(-1, np.shape(window)[-1])
    now = latter.sum(axis=0)
    if parts.shape[1] != len(now):
        raise BadData(f"{parts.shape[1]} bins cannot be compared with {len(now)}")
    n, m = float(parts.sum()), float(now.sum())
    counts = int(n), int(m)
    if min(n, m) < _LEAST_COUNTS:
        return Drift({}, false_alarms, 1.0, counts, 0)
    groups = _together(parts.sum(axis=0), now, ordered)
    parts, now = _grouped(parts, groups), _grouped(now, groups)
    bins = len(now)
    if bins < 2:
        return Drift({}, false_alarms, 1.0, counts, bins)
    before = _design_effect(parts)
    effect = max(before, _design_effect(_grouped(latter, groups)))
    share = false_alarms / features / (3 if ordered else 2)
    scale = before / n + effect / m
    chance = scale * chi_square_limit(share, bins - 1)
    p, q = parts.sum(axis=0) / n, now / m
    found = {"psi": (_psi(p, q, n, m), chance), "js": (_js(p, q), chance / 8)}
    if ordered:
        largest = float(np.abs(np.cumsum(p) - np.cumsum(q)).max())
        found["ks"] = largest, math.sqrt(math.log(2 / share) / 2 * scale)
    distances = {
        name: Distance(value, max(limit, TOLERATED[name])) for name, (value, limit) in found.items()
    }
    return Drift(distances, false_alarms, effect, counts, bins)


def _checked(counts: npt.ArrayLike, dimensions: int) -> Counts:
    found = np.asarray(counts, np.float64)
    if found.ndim != dimensions or not found.size or not np.isfinite(found).all():
        raise BadData(f"counts are finite numbers in {dimensions} dimensions")
    if (found < 0).any():
        raise BadData("counts are not negative")
    return found


def _together(before: Counts, now: Counts, ordered: bool) -> list[list[int]]:
    """Bins, rare ones with their neighbours (or with each other), so that each is expected to have
    five counts in the smaller of the two: below that chi-square is not what they follow."""
    pooled = (before + now) / (before.sum() + now.sum())
    expected = pooled * min(before.sum(), now.sum())
    order = np.arange(len(now)) if ordered else np.argsort(-expected, kind="stable")
    groups: list[list[int]] = []
    held: list[int] = []
    mass = 0.0
    for index in order.tolist():
        held.append(index)
        mass += expected[index]
        if mass >= _LEAST_EXPECTED:
            groups.append(held)
            held, mass = [], 0.0
    if held and groups:
        groups[-1] += held
    return groups or [held]


def _grouped(counts: Counts, groups: list[list[int]]) -> Counts:
    return np.stack([counts[..., group].sum(axis=-1) for group in groups], axis=-1)


def _design_effect(parts: Counts) -> float:
    sizes = parts.sum(axis=1)
    parts, sizes = parts[sizes > 0], sizes[sizes > 0]
    if len(parts) < 2:
        return 1.0
    expected = np.outer(sizes, parts.sum(axis=0) / sizes.sum())
    kept = expected.min(axis=1) >= 1.0
    if kept.sum() < 2:
        return 1.0
    parts, sizes = parts[kept], sizes[kept]
    shares = parts.sum(axis=0) / sizes.sum()
    expected = np.outer(sizes, np.maximum(shares, 1e-12))
    freedom = (len(parts) - 1) * (parts.shape[1] - 1)
    return max(1.0, float(((parts - expected) ** 2 / expected).sum() / freedom))


def _psi(p: Counts, q: Counts, n: float, m: float) -> float:
    # Half a count where there is none: its logarithm would be infinite.
    p, q = np.maximum(p, 0.5 / n), np.maximum(q, 0.5 / m)
    return float(((p - q) * np.log(p / q)).sum())


def _js(p: Counts, q: Counts) -> float:
    middle = (p + q) / 2

    def entropy(of: Counts) -> Any:
        there = of[of > 0]
        return -(there * np.log(there)).sum()

    return max(0.0, float(entropy(middle) - (entropy(p) + entropy(q)) / 2))


@lru_cache(maxsize=4_096)
def chi_square_limit(probability: float, freedom: int) -> float:
    """What a chi-square of so many degrees of freedom passes with a probability."""
    low, high = 0.0, float(freedom) + 10.0
    while _chi_square_tail(high, freedom) > probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _chi_square_tail(middle, freedom) > probability:
            low = middle
        else:
            high = middle
    return high


def _chi_square_tail(x: float, freedom: int) -> float:
    """The regularized upper incomplete gamma function of half the degrees of freedom, a sum."""
    y = x / 2
    if y == 0:
        return 1.0
    odd = freedom % 2
    total = math.erfc(math.sqrt(y)) if odd else 0.0
    for i in range(freedom // 2):
        power = i + odd / 2
        total += math.exp(power * math.log(y) - y - math.lgamma(power + 1))
    return total
