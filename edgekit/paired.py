"""Paired comparisons: two things measured on the same samples, an interval and a verdict.

The one way in which edgekit compares: accuracies over the same samples, or costs over the same
rounds of the same run. numpy and the standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData

__all__ = [
    "PairedDifference",
    "PairedRatio",
    "Verdict",
    "mcnemar_exact",
    "paired_difference",
    "paired_ratio",
]

Floats = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "no difference shown"]

MIN_RATIO_PAIRS: Final = 6
"""Fewest pairs for which a distribution-free 95 % interval of a median exists: 2 * 0.5**6 < 5 %."""

FEW_DISCORDANT: Final = 50
"""Below this many discordant pairs a score interval replaces the bootstrap's."""

_NORMAL: Final = NormalDist()
_Z95: Final = _NORMAL.inv_cdf(0.975)
_CHUNK: Final = 2_000_000


@dataclass(frozen=True)
class PairedDifference:
    """Candidate minus reference, on the same samples; a positive difference is better.

    Attributes:
        difference: mean of the per-sample differences, in the scores' units.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        n: samples.
        discordant: samples on which the two differ.
        p_value: exact McNemar, two-sided; None where the scores are not all 0 or 1.
        method: ``score`` or ``bca`` or ``percentile``, see `paired_difference`.
        verdict: of the candidate.
    """

    difference: float
    low: float
    high: float
    n: int
    discordant: int
    p_value: float | None
    method: str
    verdict: Verdict


def paired_difference(
    reference: npt.ArrayLike, candidate: npt.ArrayLike, *, seed: int = 0, resamples: int = 10_000
) -> PairedDifference:
    """The difference of two accuracies (or mean scores) over the same samples, with its interval.

    Pairing removes what both have in common: which samples are hard. The interval is a seeded
    paired bootstrap with bias correction and acceleration (BCa; Efron, 1987), because a drop in
    accuracy is counted on few discordant samples and so is skewed, which the plain percentile
    interval ignores. It falls back to percentile where every resample gives one value. With 0/1
    scores and fewer than `FEW_DISCORDANT` discordant samples a bootstrap is too narrow (with none
    it has no width at all); there the interval is Tango's score interval for paired proportions
    (Statistics in Medicine, 1998). The verdict then also needs McNemar's exact test under 5 %.

    Args:
        reference: [N] per-sample scores where higher is better: correctness as bool or 0/1, or any
            bounded score.
        candidate: [N], the same samples in the same order.
        seed: of the bootstrap; the same seed gives the same interval.
        resamples: bootstrap resamples.

    Raises:
        BadData: lengths differ, fewer than two samples, or a non-finite score.
    """
    ref, cand = _finite_vector(reference, "reference"), _finite_vector(candidate, "candidate")
    if ref.shape != cand.shape or ref.size < 2:
        raise BadData(f"paired scores need the same 2 samples or more: {ref.size} and {cand.size}")
    delta = cand - ref
    gained, lost = int((delta > 0).sum()), int((delta < 0).sum())
    binary = bool(np.isin(ref, (0, 1)).all() and np.isin(cand, (0, 1)).all())
    p_value = mcnemar_exact(gained, lost) if binary else None
    if binary and gained + lost < FEW_DISCORDANT:
        method, (low, high) = "score", _tango_interval(gained, lost, ref.size)
    else:
        method, (low, high) = _bca_interval(delta, _resampled_means(delta, seed, resamples))
    verdict = _verdict(low, high, neutral=0.0)
    if method == "score" and p_value is not None and p_value >= 0.05:
        verdict = "no difference shown"
    return PairedDifference(
        float(delta.mean()), low, high, int(ref.size), gained + lost, p_value, method, verdict
    )


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p-value: the binomial test that discordant pairs fall evenly.

    Args:
        gained: pairs that only the candidate has right.
        lost: pairs that only the reference has right.
    """
    n, low = gained + lost, min(gained, lost)
    term = total = 1
    for k in range(low):
        term = term * (n - k) // (k + 1)
        total += term
    return float(min(1.0, 2 * total / 2**n))


@dataclass(frozen=True)
class PairedRatio:
    """Candidate over baseline of a cost such as latency; below 1 is better.

    Attributes:
        ratio: median of the pairs' ratios.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        n: pairs.
        verdict: of the candidate.
    """

    ratio: float
    low: float
    high: float
    n: int
    verdict: Verdict


def paired_ratio(baseline: npt.ArrayLike, candidate: npt.ArrayLike) -> PairedRatio:
    """The ratio of two latencies that were measured in turn, with its 95 % interval.

    Entry i of both arguments comes from one round of the same run, so that a clock that drifts
    moves both alike. The median of the ratios is deaf to single spikes. Its interval lies between
    two order statistics, as the sign test has it: exact for independent rounds of any distribution.
    Where neighbouring rounds still resemble each other, the interval is widened by the square root
    of how much that raises the median's variance.

    Args:
        baseline: [N] costs, positive, one per round, in the order measured.
        candidate: [N], the same rounds.

    Raises:
        BadData: lengths differ, fewer than `MIN_RATIO_PAIRS` rounds, or a cost that isn't
            positive and finite.
    """
    base, cand = _finite_vector(baseline, "baseline"), _finite_vector(candidate, "candidate")
    if base.shape != cand.shape or base.size < MIN_RATIO_PAIRS:
        raise BadData(
            f"a paired ratio needs the same {MIN_RATIO_PAIRS} rounds or more on both sides, "
            f"got {base.size} and {cand.size}"
        )
    if base.min() <= 0 or cand.min() <= 0:
        raise BadData("a cost of zero or less was measured; a ratio needs positive ones")
    logs = np.log(cand) - np.log(base)
    ordered, n = np.sort(logs), logs.size
    reach = (n / 2 - _median_rank(n)) * math.sqrt(_dependence(logs))
    rank = max(1, math.floor(n / 2 - reach))
    low, high = math.exp(ordered[rank - 1]), math.exp(ordered[n - rank])
    verdict = _verdict(-high, -low, neutral=-1.0)
    return PairedRatio(math.exp(float(np.median(logs))), low, high, n, verdict)


def _finite_vector(values: npt.ArrayLike, what: str) -> Floats:
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or not np.isfinite(data).all():
        raise BadData(f"{what}: expected one row of finite numbers, got shape {data.shape}")
    return data


def _verdict(low: float, high: float, *, neutral: float) -> Verdict:
    """What an interval of "how much better" says; touching ``neutral`` shows no difference."""
    if low > neutral:
        return "better"
    return "worse" if high < neutral else "no difference shown"


def _resampled_means(delta: Floats, seed: int, resamples: int) -> Floats:
    """Means of ``resamples`` resamples with replacement of ``delta`` [N], sorted."""
    rng = np.random.default_rng(seed)
    values, counts = np.unique(delta, return_counts=True)
    if values.size <= 16:
        # Drawing how often each value comes up is the same distribution, without N draws.
        drawn = rng.multinomial(delta.size, counts / delta.size, size=resamples)
        return np.sort(np.asarray(drawn @ values, np.float64) / delta.size)
    means = np.empty(resamples)
    rows = max(1, _CHUNK // delta.size)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        picks = rng.integers(delta.size, size=(stop - start, delta.size))
        means[start:stop] = delta[picks].mean(axis=1)
    return np.sort(means)


def _bca_interval(delta: Floats, means: Floats) -> tuple[str, tuple[float, float]]:
    """BCa interval of the mean of ``delta`` from its sorted bootstrap ``means``."""
    mean = delta.mean()
    # Half of the ties: the means of 0/1 scores are lattice points and often equal the mean.
    below = float(np.mean(means < mean) + 0.5 * np.mean(means == mean))
    deviations = delta - mean
    spread = float(np.sum(deviations**2))
    if means[0] == means[-1] or not 0 < below < 1 or spread == 0:
        low, high = np.quantile(means, [0.025, 0.975])
        return "percentile", (float(low), float(high))
    bias = _NORMAL.inv_cdf(below)
    acceleration = float(np.sum(deviations**3)) / (6 * spread**1.5)
    levels = []
    for shifted in (bias - _Z95, bias + _Z95):
        # The formula has a pole that only a handful of wildly skewed samples come near.
        levels.append(_NORMAL.cdf(bias + shifted / max(0.1, 1 - acceleration * shifted)))
    low, high = np.quantile(means, levels)
    return "bca", (float(low), float(high))


def _tango_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Tango's 95 % score interval of (gained - lost) / n for paired proportions."""

    def score(delta: float) -> float:
        # q is the likeliest share of lost pairs if the true difference were delta.
        a, b = 2.0 * n, -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2 * q + delta * (1 - delta))
        gap = gained - lost - n * delta
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap)

    def solve(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(score(middle)) < _Z95:
                inside = middle
            else:
                outside = middle
        return outside

    estimate = (gained - lost) / n
    return solve(estimate, -1.0), solve(estimate, 1.0)


def _median_rank(n: int) -> int:
    """The largest k for which [x_(k), x_(n+1-k)] covers the median with 95 % or more."""
    term, total, k = 1, 1, 0
    while 40 * total <= 2**n:  # total / 2**n <= 2.5 %
        k += 1
        term = term * (n - k + 1) // k
        total += term
    return k


def _dependence(values: Floats) -> float:
    """How many times the variance of the median of ``values`` [N] exceeds independent rounds'.

    The median's variance goes with the autocorrelations of the signs about it, summed as long as
    neighbouring pairs of them are positive (Geyer, Statistical Science, 1992); at least 1.
    """
    n = values.size
    signs = np.sign(values - np.median(values))
    power = float(signs @ signs)
    total = 1.0
    for lag in range(1, n - 1, 2):
        both = float(signs[lag:] @ signs[:-lag] + signs[lag + 1 :] @ signs[: -lag - 1])
        if both <= 0:
            break
        total += 2 * both / power
    return total
