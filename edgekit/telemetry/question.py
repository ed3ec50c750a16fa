"""Questions: what a report is asked for over HTTP."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from edgekit.runtime.drift_reference import DriftReference
from edgekit.serve.refusal import Refusal
from edgekit.telemetry.cohorts import BASE, Window
from edgekit.telemetry.report import report
from edgekit.telemetry.store import Store

__all__ = ["Question"]

_NAMES: Final = ("days", "baseline_days", "by", "k", "false_alarms", *BASE)
_MOST_DAYS: Final = 36_500


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
    """

    days: int = 7
    baseline_days: int = 0
    by: tuple[str, ...] = BASE
    where: dict[str, str] = field(default_factory=dict)
    k: int = 10
    false_alarms: float = 0.01

    @classmethod
    def parsed(cls, query: str, least_k: int) -> Question:
        """Out of a URL's query: the names of the attributes, and of columns for ``where``.

        Raises:
            Refusal: 400, something in it is not known, stands twice or has no such value.
        """
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=32)
        given = dict(pairs)
        unknown = sorted(set(given) - set(_NAMES))
        if unknown or len(given) != len(pairs):
            raise Refusal(400, f"a report is asked by {', '.join(_NAMES)}, each once")
        k = _whole(given, "k", least_k, 2**31)
        if k < least_k:
            raise Refusal(400, f"k is {least_k} here, or more")
        try:
            false_alarms = float(given.get("false_alarms", "0.01"))
        except ValueError as error:
            raise Refusal(400, "false_alarms is a number") from error
        by = given.get("by")
        return cls(
            max(1, _whole(given, "days", 7, _MOST_DAYS)),
            _whole(given, "baseline_days", 0, _MOST_DAYS),
            BASE if by is None else tuple(name for name in by.split(",") if name),
            {name: given[name] for name in BASE if name in given},
            k,
            false_alarms,
        )

    def answer(
        self, store: Store, references: Sequence[DriftReference] | None = None
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
        )


def _whole(given: dict[str, str], name: str, default: int, most: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or int(text) > most:
        raise Refusal(400, f"{name} is a whole number up to {most}")
    return int(text)
