"""Intervals of rates: what a rate may be, given how often something happened.

The interval is that of Clopper and Pearson ("The use of confidence or fiducial limits illustrated
in the case of the binomial", 1934): it holds the true rate at least as often as it says, also where
next to nothing happened, which Wilson's does not. Requests of one device are alike, so a fleet's
requests tell less than as many drawn one by one; how much less is the design effect, and trials are
divided by it, as Korn and Graubard do ("Confidence intervals for proportions with small expected
number of positive counts estimated from survey data", 1998). They also widen it where there are few
devices to estimate the effect from, by Student's quantile over the normal one, and so does this.

From 20,000 hits and as many misses on it is Wilson's interval with the correction for continuity
(Newcombe, "Two-sided confidence intervals for the single proportion", 1998), within 0.05 % of
the same there, and costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

from edgekit.errors import BadData

__all__ = ["Clusters", "at_least", "at_most", "interval"]

_MANY: Final = 20_000.0
_STEPS: Final = 60


@dataclass(frozen=True)
class Clusters:
    """Sums over the devices (of a day) that hits and trials come from.

    Attributes:
        count: how many there are.
        trials, hits: their sums.
        trials_2, hits_2, both: sums of the squares, and of hits times trials.
    """

    count: int
    trials: float
    hits: float
    trials_2: float
    hits_2: float
    both: float

    @property
    def design_effect(self) -> float:
        """How much more the rate varies than if every trial were one by itself; at least 1.

        Where nothing, or everything, was hit there is no telling, and a device counts as one trial.
        """
        if self.trials <= 0 or self.trials_2 <= 0:
            return 1.0
        whole = max(1.0, self.trials_2 / self.trials)
        rate = self.hits / self.trials
        if self.count < 2 or not 0 < rate < 1:
            return whole
        spread = self.hits_2 - 2 * rate * self.both + rate * rate * self.trials_2
        variance = self.count / (self.count - 1) * max(0.0, spread) / self.trials**2
        return max(1.0, variance * self.trials / (rate * (1 - rate)))

    def effective(self, tail: float) -> float:
        """The trials that count, in a bound that is passed with probability ``tail``.

        Fewer devices make them fewer, beyond the design effect.
        """
        if self.trials <= 0:
            return 0.0
        freedom = self.count - 1
        if freedom < 1:
            return min(1.0, self.trials)
        shrunk = (NormalDist().inv_cdf(1 - tail) / _student(tail, min(freedom, 500))) ** 2
        return self.trials / self.design_effect * min(1.0, shrunk)


def interval(rate: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Both bounds of a rate that was seen in so many (effective) trials.

    Raises:
        BadData: the rate is none, or there are no trials.
    """
    tail = (1 - confidence) / 2
    return at_least(rate, trials, tail), at_most(rate, trials, tail)


def at_least(rate: float, trials: float, tail: float) -> float:
    """What the true rate is at least, but for a probability of ``tail``.

    Raises:
        BadData: the rate is none, or there are no trials.
    """
    if not 0 <= rate <= 1 or not trials > 0 or not 0 < tail < 1:
        raise BadData(f"no bound of a rate of {rate} in {trials} trials, tail {tail}")
    hits = rate * trials
    if hits <= 0:
        return 0.0
    if min(hits, trials - hits) >= _MANY:
        return _wilson_low(rate, trials, tail)
    return _beta_quantile(tail, hits, trials - hits + 1)


def at_most(rate: float, trials: float, tail: float) -> float:
    """What the true rate is at most, but for a probability of ``tail``.

    Raises:
        BadData: the rate is none, or there are no trials.
    """
    return 1 - at_least(1 - rate, trials, tail)


def _wilson_low(rate: float, trials: float, tail: float) -> float:
    z = NormalDist().inv_cdf(1 - tail)
    root = z * z - 2 - 1 / trials + 4 * rate * (trials * (1 - rate) + 1)
    low = (2 * trials * rate + z * z - 1 - z * math.sqrt(max(0.0, root))) / (2 * (trials + z * z))
    return min(max(low, 0.0), rate)


@lru_cache(maxsize=4_096)
def _student(tail: float, freedom: int) -> float:
    """What Student's t passes with a probability."""
    # t^2 = d (1 - x) / x where x has the beta distribution of d / 2 and 1 / 2, of both tails.
    x = _beta_quantile(2 * tail, freedom / 2, 0.5) if tail < 0.5 else 1.0
    return math.sqrt(freedom * (1 - x) / x)


def _beta_quantile(probability: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    # The lower bound is often tiny: first its order of magnitude.
    while high > 1e-300 and _beta(high / 2, a, b) > probability:
        high /= 2
    low = high / 2 if high > 1e-300 else 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _beta(middle, a, b) > probability:
            high = middle
        else:
            low = middle
    return low


def _beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (Lentz's way)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    found = d
    for m in range(1, 10_000):
        for top in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + top * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + top / c
            c = c if abs(c) > tiny else tiny
            found *= c * d
        if abs(c * d - 1) < 1e-13:
            break
    return found
