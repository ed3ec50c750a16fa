"""Canary: whether a new version fails more often than the old one, looked at as often as one likes.

A test that is made for one look raises false alarms with every further one. This one holds however
often it is looked at: devices report one after the other, and after each the evidence is a
likelihood ratio, mixed over how much worse the canary could be (Johari, Pekelis and Walsh, "Always
valid inference: bringing sequential analysis to A/B testing", 2015, arXiv 1512.04922). Without a
difference it ever reaches 1 / alpha with a probability of at most alpha (Ville's inequality).

What varies is the device-day, not the request: a device that fails fails often. Each counts as one
trial that failed (had at least one crash, or errors in more than a share of its requests) or did
not. Given how many of the next trials of both sides failed, and how many of them are the canary's,
the canary's share of the failures says whether it is worse, without the rate of either: with odds
ratio 1 it is hypergeometric, whatever the rate. The ratio multiplies Fisher's noncentral
hypergeometric likelihoods of a day, for a few odds ratios above 1, and averages over these.

The rate holds where a device that failed on one day fails on the next no more often than others.
Names of devices are made anew every day, so where the same few devices fail day after day the days
repeat each other, unseen: then a small canary group is to be judged by its crashes' causes, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from edgekit.errors import BadData, UsageError

__all__ = ["ODDS", "Day", "Verdict", "watch"]

ODDS: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""How much worse the canary may be: what evidence is averaged over."""


@dataclass(frozen=True)
class Day:
    """Trials of one day: devices of both sides, and how many of them failed."""

    control: int
    control_failed: int
    canary: int
    canary_failed: int


@dataclass(frozen=True)
class Verdict:
    """What the days so far say.

    Attributes:
        worse: whether the canary is worse; once it is said it stays.
        evidence: the mixed likelihood ratio, its largest so far.
        p: always valid: below alpha with a probability of at most alpha, whenever one looks.
        day: the place of the day on which it was said.
    """

    worse: bool
    evidence: float
    p: float
    day: int | None


def watch(days: Iterable[Day], alpha: float = 0.01) -> Verdict:
    """Adds up days in their order.

    Raises:
        BadData: more failed than there were, or counts are negative.
        UsageError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise UsageError(f"alpha is between 0 and 1, not {alpha}")
    logs = [0.0] * len(ODDS)
    most, said = 0.0, None
    for place, day in enumerate(days):
        _check(day)
        logs = [log + gain for log, gain in zip(logs, _gains(day), strict=True)]
        most = max(most, _log_mean(logs))
        if said is None and most >= -math.log(alpha):
            said = place
    evidence = math.exp(min(most, 700.0))
    return Verdict(said is not None, evidence, min(1.0, 1 / evidence), said)


def _check(day: Day) -> None:
    sides = (day.control_failed, day.control), (day.canary_failed, day.canary)
    if any(not 0 <= failed <= there for failed, there in sides):
        raise BadData(f"{day} has more failures than devices, or fewer than none")


def _gains(day: Day) -> list[float]:
    """The logarithm of the likelihood of a day at each odds ratio, over that at 1."""
    failed = day.control_failed + day.canary_failed
    low, high = max(0, failed - day.control), min(failed, day.canary)
    weights = [
        _log_choose(day.canary, i) + _log_choose(day.control, failed - i)
        for i in range(low, high + 1)
    ]
    base = _log_sum(weights)
    return [
        day.canary_failed * math.log(odds)
        - (_log_sum([w + i * math.log(odds) for i, w in enumerate(weights, low)]) - base)
        for odds in ODDS
    ]


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(log - top) for log in logs))


def _log_mean(logs: Sequence[float]) -> float:
    return _log_sum(logs) - math.log(len(logs))
