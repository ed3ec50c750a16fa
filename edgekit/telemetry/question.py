"""Questions: what a report, or a comparison of two versions, is asked for over HTTP."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from edgekit.runtime.drift_reference import DriftReference
from edgekit.serve.refusal import Refusal
from edgekit.telemetry.cohorts import BASE, Window
from edgekit.telemetry.report import report
from edgekit.telemetry.store import Reader
from edgekit.telemetry.tables import DEVICE_DAYS
from edgekit.telemetry.versions import against

__all__ = ["Comparison", "Question"]

_NAMES: Final = ("days", "baseline_days", "by", "k", "false_alarms", "series", *BASE)
_COMPARED: Final = ("control", "canary", "model", "device", "app", "days", "alpha", "k")
_MOST_DAYS: Final = 36_500
_LEAST_RATE: Final = 1e-9


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        days: the last so many, the present one among them.
        baseline_days: so many before those are what drift is told against; 0: none is told.
        by: columns of `BASE`.
        where: values that columns must have.
        k: devices, at least.
        false_alarms: of drift.
        daily: whether each cohort has its days, too; asked for by ``series=day``.
    """

    days: int = 7
    baseline_days: int = 0
    by: tuple[str, ...] = BASE
    where: dict[str, str] = field(default_factory=dict)
    k: int = 10
    false_alarms: float = 0.01
    daily: bool = False

    @classmethod
    def parsed(cls, query: str, least_k: int) -> Question:
        """Out of a URL's query: the names of the attributes, and of columns for ``where``.

        Raises:
            Refusal: 400, something in it is not known, stands twice or has no such value.
        """
        given = _given(query, "report", _NAMES)
        if given.get("series", "day") != "day":
            raise Refusal(400, "a series is by day")
        by = given.get("by")
        return cls(
            max(1, _whole(given, "days", 7, _MOST_DAYS)),
            _whole(given, "baseline_days", 0, _MOST_DAYS),
            BASE if by is None else tuple(name for name in by.split(",") if name),
            {name: given[name] for name in BASE if name in given},
            _least(given, least_k),
            _number(given, "false_alarms"),
            "series" in given,
        )

    def answer(
        self, store: Reader, references: Sequence[DriftReference] | None = None
    ) -> dict[str, Any]:
        """The report; with references, of drift against them too.

        Raises:
            UsageError: it is asked by a column that there is not, or for a rate that is none.
        """
        today = int(time.time() // 86_400)
        window = Window(today - self.days + 1, today)
        baseline = Window(window.first - self.baseline_days, window.first - 1)
        return report(
            store,
            window,
            by=self.by,
            where=self.where,
            k=self.k,
            baseline=baseline if self.baseline_days else None,
            references=references,
            false_alarms=self.false_alarms,
            daily=self.daily,
        )


@dataclass(frozen=True)
class Comparison:
    """Two versions that are compared.

    Attributes:
        control, canary: versions of the model.
        where: values that other columns must have.
        days: the last so many, the present one among them.
        k: devices of a side, at least.
        alpha: the rate of false alarms, however often one looks.
    """

    control: str
    canary: str
    where: dict[str, str] = field(default_factory=dict)
    days: int = 14
    k: int = 10
    alpha: float = 0.01

    @classmethod
    def parsed(cls, query: str, least_k: int) -> Comparison:
        """Out of a URL's query: the names of the attributes, and of columns for ``where``.

        Raises:
            Refusal: 400, something in it is not known, stands twice, is missing or has no such
                value.
        """
        given = _given(query, "comparison", _COMPARED)
        if not given.get("control") or not given.get("canary"):
            raise Refusal(400, "a comparison is of a control and a canary: name both")
        return cls(
            given["control"],
            given["canary"],
            {name: given[name] for name in BASE if name in given},
            max(1, _whole(given, "days", 14, DEVICE_DAYS)),
            _least(given, least_k),
            _number(given, "alpha"),
        )

    def answer(self, store: Reader) -> dict[str, Any]:
        """The comparison.

        Raises:
            UsageError: the versions are one, or alpha is no rate.
        """
        today = int(time.time() // 86_400)
        return against(
            store,
            Window(today - self.days + 1, today),
            self.control,
            self.canary,
            where=self.where,
            k=self.k,
            alpha=self.alpha,
        )


def _given(query: str, what: str, names: tuple[str, ...]) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=32)
    except ValueError as error:
        raise Refusal(400, "the query has too many fields") from error
    given = dict(pairs)
    if not given.keys() <= set(names) or len(given) != len(pairs):
        raise Refusal(400, f"a {what} is asked by {', '.join(names)}, each once")
    return given


def _least(given: dict[str, str], least_k: int) -> int:
    k = _whole(given, "k", least_k, 2**31)
    if k < least_k:
        raise Refusal(400, f"k is {least_k} here, or more")
    return k


def _number(given: dict[str, str], name: str) -> float:
    try:
        found = float(given.get(name, "0.01"))
    except ValueError:
        found = math.nan
    # Below that, what chance keeps within is no number any more.
    if not _LEAST_RATE <= found < 1:
        raise Refusal(400, f"{name} is a number from {_LEAST_RATE:g} to 1, without that")
    return found


def _whole(given: dict[str, str], name: str, default: int, most: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > most:
        raise Refusal(400, f"{name} is a whole number up to {most}")
    return int(text)
