"""Local differential privacy: counts that a device noises before it keeps them.

The mechanism is k-ary randomized response (Warner, 1965; Kairouz, Oh and Viswanath, "Extremal
mechanisms for local differential privacy", 2014, arXiv:1407.1338). Of all that a device saw of a
feature since its last report it draws one value, and reports that with probability
e^epsilon / (e^epsilon + k - 1), each of the k - 1 others with 1 / (e^epsilon + k - 1). Whatever the
device saw, any report is at most e^epsilon times as likely as had it seen anything else. So it
protects a device's whole share in a report, not one request; and a report is one count in one bin,
never negative, which adds up, travels and is kept like any other. Noise on whole histograms
(discrete Laplace) would give negative counts, which no metric of OTLP's can carry, and is better
only where there are many more bins than e^epsilon.

Sampling is exact, in whole numbers out of the operating system's generator: a Bernoulli variable of
probability exp(-epsilon) as in Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential
Privacy", 2020, arXiv:2004.00010, algorithm 1. Floating point would leak (Mironov, 2012).

What epsilon costs adds up over reports, so a device has a budget for a period, written down before
anything leaves it, and is silent once it is used up.

What is not noised: how many requests there were, why they went where, how long they took, errors
and crashes.
"""

from __future__ import annotations

import math
import os
import re
import secrets
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

from edgekit.errors import BadData, StorageError, UsageError
from edgekit.runtime._files import replace_file
from edgekit.runtime._spool_files import private_folder

__all__ = [
    "Budget",
    "LocalPrivacy",
    "Noise",
    "bernoulli_exp",
    "clamped_bin",
    "clamped_class",
    "randomized",
]

MOST_EPSILON: Final = 100.0
_FILE: Final = "budget"
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_FORM: Final = re.compile(rb"([0-9]{1,15}) ([0-9]{1,15})\n")
_LONGEST: Final = 64

Below = Callable[[int], int]
"""Gives a whole number from 0 to one less than its argument, each as likely."""


@dataclass(frozen=True)
class LocalPrivacy:
    """How a device noises what tells of its inputs and answers.

    Attributes:
        epsilon: of each reported value, in whole thousandths.
        budget: what all reports of a period may cost together, in whole thousandths. A report of
            an image classifier has five values: its class, how sure it is, and three of its input.
        period_s: of the budget, in seconds of the device's clock.
        classes: how many classes the model has; None: as many as the bundle has labels. Without
            either, classes are not reported.

    Raises:
        UsageError: a figure is out of range, or the budget is less than epsilon.
    """

    epsilon: float = 1.0
    budget: float = 10.0
    period_s: float = 86_400.0
    classes: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("budget", self.budget)):
            fine = math.isfinite(value) and 0.001 <= value <= MOST_EPSILON * 100
            if not fine or abs(value * 1000 - round(value * 1000)) > 1e-6:
                raise UsageError(f"{name} is {value}; thousandths from 0.001 on are wanted")
        if self.epsilon > min(self.budget, MOST_EPSILON):
            raise UsageError(
                f"epsilon is {self.epsilon}, over {MOST_EPSILON:g} or the budget {self.budget}"
            )
        if not (math.isfinite(self.period_s) and self.period_s >= 1):
            raise UsageError(f"period_s is {self.period_s}; a second or more is wanted")
        if self.classes is not None and not 2 <= self.classes <= 4096:
            raise UsageError(f"classes is {self.classes}; 2 to 4096 are wanted")

    @property
    def thousandths(self) -> int:
        """Epsilon, as it travels."""
        return round(self.epsilon * 1000)


# -- the mechanism --------------------------------------------------------------------------------


def clamped_bin(value: float, bounds: Sequence[float]) -> int:
    """The bin of a value; one beyond all bins is in the last, or the first.

    Raises:
        BadData: it is not finite: no noise would cover what that says.
    """
    if not math.isfinite(value):
        raise BadData(f"{value} cannot be noised; a finite number is wanted")
    return bisect_left(bounds, value)


def clamped_class(index: int, choices: int) -> int:
    """A class that there is: the nearest.

    Raises:
        BadData: it is not finite.
    """
    if not math.isfinite(index):
        raise BadData(f"class {index} cannot be noised; a whole number is wanted")
    return min(max(int(index), 0), choices - 1)


def bernoulli_exp(gamma: Fraction, below: Below = secrets.randbelow) -> bool:
    """True with a probability of exactly exp(-gamma).

    Args:
        gamma: 0 or more.
        below: the generator.
    """
    while gamma > 1:
        if not bernoulli_exp(Fraction(1), below):
            return False
        gamma -= 1
    k = 1
    # Bernoulli(gamma / k) until the first that is false: it is the k-th, and k is odd.
    while below(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


def randomized(truth: int, choices: int, thousandths: int, below: Below = secrets.randbelow) -> int:
    """One of ``choices`` values, the true one e^epsilon times as likely as any other.

    Args:
        truth: from 0 to ``choices`` - 1.
        choices: 2 or more.
        thousandths: of epsilon.
        below: the generator.

    Raises:
        UsageError: the truth is none of the choices, or there are fewer than two.
    """
    if choices < 2 or not 0 <= truth < choices or thousandths < 1:
        raise UsageError(f"{truth} of {choices} cannot be noised by {thousandths} thousandths")
    epsilon = Fraction(thousandths, 1000)
    while True:
        drawn = below(choices)
        if drawn == truth or bernoulli_exp(epsilon, below):
            return drawn


@dataclass(frozen=True)
class Noise:
    """What is known of a sum of many reports: how to take the noise out of it.

    Attributes:
        thousandths: of epsilon.
        choices: k.
    """

    thousandths: int
    choices: int

    @property
    def epsilon(self) -> float:
        """Of a report."""
        return self.thousandths / 1000

    @property
    def rates(self) -> tuple[float, float]:
        """Probabilities of the true value, and of each other one."""
        weight = math.exp(-self.epsilon)
        total = 1 + (self.choices - 1) * weight
        return 1 / total, weight / total

    def estimated(self, counts: Sequence[int]) -> list[float]:
        """How often each value was the true one: without bias, so it may be below zero."""
        (true, other), n = self.rates, sum(counts)
        return [(count - n * other) / (true - other) for count in counts]

    def error(self, n: int) -> float:
        """The standard error of each estimate is at most this, in counts of n reports."""
        true, other = self.rates
        worst = min(true, 0.5) * (1 - min(true, 0.5))
        return math.sqrt(n * worst) / (true - other)

    def expected(self, counts: dict[int, int]) -> dict[int, float]:
        """How reports would fall of true counts, as many together."""
        (true, other), n = self.rates, sum(counts.values())
        return {
            place: n * other + counts.get(place, 0) * (true - other)
            for place in range(self.choices)
        }


# -- the budget -----------------------------------------------------------------------------------


class Budget:
    """What a device has spent of its budget, which outlives it. Not safe to use from threads.

    It is written before anything is released, so a crash costs budget, never privacy. What cannot
    be read is taken as used up until the period ends. A clock that is set back stays in the period
    that was the last. It is kept when telemetry is withdrawn: a new yes must not be a new budget.

    Args:
        folder: the recorder's.
        privacy: the figures.

    Attributes:
        limit: of a period, in thousandths.
    """

    def __init__(self, folder: Path, privacy: LocalPrivacy) -> None:
        self._folder = folder
        self.limit = round(privacy.budget * 1000)
        self._period_s = privacy.period_s
        self._known: tuple[int, int] | None = None

    def left(self, now_s: float) -> int:
        """Thousandths that may still be spent, at a time since 1970 in seconds."""
        return max(0, self.limit - self._at(now_s)[1])

    def due(self, now_s: float, cost: int) -> bool:
        """Whether so many thousandths may be spent now, where reports are to come evenly over the
        period. Without that its first minutes would speak for the whole."""
        start, spent = self._at(now_s)
        if spent + cost > self.limit:
            return False
        return now_s - start >= spent / self.limit * self._period_s

    def spend(self, now_s: float, thousandths: int) -> bool:
        """Writes down that so much is spent.

        Returns:
            whether it may be: it is written, and was there.
        """
        start, spent = self._at(now_s)
        if thousandths < 0 or spent + thousandths > self.limit:
            return False
        try:
            folder = private_folder(self._folder)
            try:
                replace_file(folder, _FILE, b"%d %d\n" % (start, spent + thousandths))
            finally:
                os.close(folder)
        except (OSError, StorageError):
            # It may be on the disk or not.
            self._known = None
            return False
        self._known = start, spent + thousandths
        return True

    def _at(self, now_s: float) -> tuple[int, int]:
        """When the period began, and what was spent in it."""
        now = max(0, int(now_s // self._period_s * self._period_s))
        start, spent = self._read(now) if self._known is None else self._known
        self._known = (now, 0) if now > start else (start, spent)
        return self._known

    def _read(self, now: int) -> tuple[int, int]:
        try:
            file = os.open(self._folder / _FILE, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            return now, 0
        except OSError:
            return now, self.limit
        with os.fdopen(file, "rb") as opened:
            try:
                found = _FORM.fullmatch(opened.read(_LONGEST))
            except OSError:
                found = None
        return (int(found[1]), int(found[2])) if found else (now, self.limit)
