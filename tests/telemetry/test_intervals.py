"""Intervals of rates: they hold the truth as often as they say, also of devices that are alike."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekit.errors import BadData
from edgekit.telemetry.intervals import Clusters, at_least, at_most, interval


def tail_of(n: int, hits: int, rate: float) -> float:
    """The probability of so many hits or more."""
    return math.fsum(math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(hits, n + 1))


@pytest.mark.parametrize(("hits", "n"), [(1, 10), (3, 400), (9, 10), (10, 10), (150, 300)])
@pytest.mark.parametrize("tail", [0.025, 0.01, 1e-5])
def test_the_bound_is_where_so_many_hits_are_as_rare_as_said(
    hits: int, n: int, tail: float
) -> None:
    low = at_least(hits / n, n, tail)
    assert tail_of(n, hits, low) == pytest.approx(tail, rel=1e-6)
    assert at_most(1 - hits / n, n, tail) == pytest.approx(1 - low, rel=1e-9)


@pytest.mark.parametrize(("n", "limit"), [(20, 0.05), (500, 0.002), (250, 0.02), (80, 0.5)])
@pytest.mark.parametrize("tail", [0.05, 0.01])
def test_false_alarms_are_as_few_as_said(n: int, limit: float, tail: float) -> None:
    """Exactly, of all that can be seen: how often the bound is above a limit that is the truth."""
    said = math.fsum(
        math.comb(n, hits) * limit**hits * (1 - limit) ** (n - hits)
        for hits in range(n + 1)
        if at_least(hits / n, n, tail) > limit
    )
    assert said <= tail


def test_devices_that_are_alike_tell_less() -> None:
    """Of 300 fleets of 40 devices, each with a rate of its own, few have a bound above the truth;
    were requests taken for trials, a third would."""
    rng = np.random.default_rng(11)
    truth, tail, fleets = 0.04, 0.05, 300
    alarms = naive = 0
    for _ in range(fleets):
        trials = rng.integers(20, 200, 40)
        hits = rng.binomial(trials, rng.beta(0.5, 0.5 * (1 - truth) / truth, 40))
        sums = Clusters(
            40, trials.sum(), hits.sum(), (trials**2).sum(), (hits**2).sum(), (hits * trials).sum()
        )
        rate = hits.sum() / trials.sum()
        alarms += at_least(rate, sums.effective(tail), tail) > truth
        naive += at_least(rate, float(trials.sum()), tail) > truth
    assert alarms / fleets <= tail
    assert naive / fleets > 0.25


def test_devices_that_differ_by_chance_tell_as_much_as_their_requests() -> None:
    rng = np.random.default_rng(12)
    trials = rng.integers(50, 60, 2_000)
    hits = rng.binomial(trials, 0.1)
    sums = Clusters(
        2_000, trials.sum(), hits.sum(), (trials**2).sum(), (hits**2).sum(), (hits * trials).sum()
    )
    assert 1 <= sums.design_effect < 1.15
    assert sums.effective(0.025) == pytest.approx(trials.sum(), rel=0.15)


def test_where_nothing_happened_a_device_is_one_trial() -> None:
    sums = Clusters(30, 3_000, 0, 30 * 100**2, 0, 0)
    assert sums.design_effect == 100
    assert sums.effective(0.025) < 30
    assert Clusters(1, 1_000, 5, 1_000**2, 25, 5_000).effective(0.025) == 1
    assert interval(0.0, 30) == (0.0, pytest.approx(1 - 0.025 ** (1 / 30)))


def test_many_hits_give_what_few_give() -> None:
    """On both sides of where the exact bound gives way to a formula."""
    below, above = (at_least(hits / 1e6, 1e6, 0.01) for hits in (19_999, 20_000))
    assert 0 < above - below < 2e-5
    assert below < 0.019999


def test_what_is_no_rate_is_refused() -> None:
    for rate, trials in ((1.1, 10), (-0.1, 10), (0.5, 0), (math.nan, 10)):
        with pytest.raises(BadData, match="no bound"):
            at_least(rate, trials, 0.05)
