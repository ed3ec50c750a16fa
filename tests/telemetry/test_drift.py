"""Drift: what chance alone does is flagged as seldom as is said, and what is not chance is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgekit.errors import BadData, UsageError
from edgekit.telemetry.drift import chi_square_limit, compare

TRIALS = 1_500


def shares(bins: int, skew: float = 0.0) -> np.ndarray:
    weights = np.exp(np.linspace(0, skew, bins))
    return weights / weights.sum()


def most(rate: float) -> float:
    """As many flags as a rate gives with a probability of 0.999."""
    return float(stats.binom.ppf(0.999, TRIALS, rate)) / TRIALS


@pytest.mark.parametrize("freedom", [1, 2, 7, 24, 999])
@pytest.mark.parametrize("probability", [0.5, 0.01, 1e-6])
def test_limits_are_those_of_chi_square(freedom: int, probability: float) -> None:
    assert chi_square_limit(probability, freedom) == pytest.approx(
        stats.chi2.isf(probability, freedom), rel=1e-8
    )


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(("n", "m", "bins", "skew"), [(8_000, 2_000, 20, 4.0), (300, 200, 10, 6.0)])
def test_no_more_false_alarms_than_said(
    ordered: bool, n: int, m: int, bins: int, skew: float
) -> None:
    rng = np.random.default_rng(0)
    p = shares(bins, skew)
    before, now = rng.multinomial(n, p, TRIALS), rng.multinomial(m, p, TRIALS)
    pairs = zip(before, now, strict=True)
    flags = [compare(a[None], b, ordered=ordered, false_alarms=0.05).flagged for a, b in pairs]
    assert None not in flags
    assert 0.005 < np.mean(flags) <= most(0.05)


def test_counts_that_vary_together_raise_no_alarm() -> None:
    """Twenty days of 2,000, each with shares of its own, four times as spread as by chance."""
    rng = np.random.default_rng(1)
    p, n, effect = shares(10, 2.0), 2_000, 4.0
    concentration = (n - effect) / (effect - 1)
    flags, naive = [], []
    for _ in range(TRIALS // 3):
        days = np.stack([rng.multinomial(n, q) for q in rng.dirichlet(concentration * p, 21)])
        found = compare(days[:-1], days[-1], ordered=True, false_alarms=0.05)
        flags.append(found.flagged)
        naive.append(compare(days[:-1].sum(0)[None], days[-1], ordered=True).flagged)
        assert 2.0 < found.design_effect < 7.0
    assert np.mean(flags) <= float(stats.binom.ppf(0.999, TRIALS // 3, 0.05)) / (TRIALS // 3)
    assert np.mean(naive) > 0.5


def test_what_is_another_distribution_is_flagged() -> None:
    """A shift of 0.042 by the population stability index, which rules of thumb call none."""
    rng = np.random.default_rng(2)
    p, q = shares(20, 3.0), shares(20, 2.2)
    assert ((p - q) * np.log(p / q)).sum() == pytest.approx(0.042, abs=0.001)
    flags = [
        compare(rng.multinomial(8_000, p)[None], rng.multinomial(2_000, q), ordered=True).flagged
        for _ in range(200)
    ]
    assert np.mean(flags) > 0.95


def test_what_matters_to_nobody_is_not() -> None:
    p = shares(20, 3.0)
    q = p * (1 + 0.02 * np.resize([1, -1], 20))
    found = compare((p * 10**9)[None], q / q.sum() * 10**9, ordered=True)
    assert found.flagged is False


def test_too_little_says_nothing() -> None:
    assert compare([[10, 10]], [5, 5], ordered=True).flagged is None
    assert compare([[1000, 0]], [1000, 0], ordered=True).flagged is None


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BadData, match="3 bins"):
        compare([[1, 2, 3]], [1, 2], ordered=True)
    with pytest.raises(BadData, match="negative"):
        compare([[1, -2]], [1, 2], ordered=True)
    with pytest.raises(BadData, match="finite"):
        compare([[1, float("nan")]], [1, 2], ordered=True)
    with pytest.raises(UsageError, match="between 0 and 1"):
        compare([[1, 2]], [1, 2], ordered=True, false_alarms=1.0)
