"""Canary: looking every day raises no more false alarms than said, and what is worse is found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edgekit.errors import BadData, UsageError
from edgekit.telemetry.canary import Day, watch


def days(rng: np.random.Generator, n: int, control: float, canary: float) -> list[Day]:
    """The rate of both changes from day to day, as it does."""
    found = []
    for _ in range(n):
        weather = rng.uniform(0.5, 2.0)
        failed = rng.binomial(400, control * weather)
        found.append(Day(400, int(failed), 40, int(rng.binomial(40, canary * weather))))
    return found


def test_no_more_false_alarms_than_said_however_often_it_is_looked_at() -> None:
    rng = np.random.default_rng(0)
    trials, alpha = 600, 0.05
    alarms = sum(watch(days(rng, 30, 0.05, 0.05), alpha).worse for _ in range(trials))
    assert alarms <= stats.binom.ppf(0.999, trials, alpha)


def test_a_test_for_one_look_would_raise_more() -> None:
    """What the other test would be for, if this didn't hold: Fisher's exact test, every day."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(100):
        seen = np.zeros(4, int)
        for day in days(rng, 30, 0.05, 0.05):
            seen += (day.canary_failed, day.canary, day.control_failed, day.control)
            a, b, c, d = seen.tolist()
            p = stats.hypergeom.sf(a - 1, b + d, a + c, b)
            if p < 0.05:
                alarms += 1
                break
    assert alarms > 12


def test_what_is_worse_is_found() -> None:
    rng = np.random.default_rng(1)
    verdicts = [watch(days(rng, 14, 0.05, 0.15), 0.01) for _ in range(100)]
    assert sum(verdict.worse for verdict in verdicts) >= 95
    assert all(verdict.p < 0.01 for verdict in verdicts if verdict.worse)


def test_what_is_better_is_not_worse() -> None:
    assert not watch([Day(400, 40, 400, 4)] * 30).worse


def test_a_day_of_nothing_says_nothing() -> None:
    verdict = watch([Day(0, 0, 0, 0), Day(10, 0, 10, 0), Day(5, 5, 0, 0)])
    assert (verdict.worse, verdict.p, verdict.day) == (False, 1.0, None)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadData, match="more failures"):
        watch([Day(1, 2, 1, 0)])
    with pytest.raises(UsageError, match="alpha"):
        watch([], alpha=0)
