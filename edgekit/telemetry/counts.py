"""Counts: deliveries added up in memory, as the rows that a store takes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgekit.telemetry.contract import Cohort, Series
from edgekit.telemetry.reading import HOUR_NS, ZERO, Delivery, Point, attributes_text

__all__ = ["Counts"]

_PAST_HOURS: Final = 32 * 24
_FUTURE_HOURS: Final = 1
_REQUESTS, _ELSEWHERE, _ERRORS, _CRASHES = range(4)

Columns = dict[str, np.ndarray[Any, Any]]
_Key = tuple[int, Cohort, Series]


class Counts:
    """What some deliveries add.

    Args:
        now_hour: since 1970, by the receiver's clock. A device whose clock is more than 32 days
            behind it or an hour ahead is counted in this hour.
    """

    def __init__(self, now_hour: int) -> None:
        self._now = now_hour
        self._cells: dict[_Key, dict[int, int]] = {}
        self._moments: dict[_Key, list[float]] = {}
        self._days: dict[tuple[int, Cohort, bytes], list[int]] = {}
        self._events: list[tuple[int, Cohort, bytes | None, str, int, str]] = []

    @property
    def cohorts(self) -> set[Cohort]:
        """Those that are in it."""
        return {
            *(key[1] for key in self._cells),
            *(key[1] for key in self._days),
            *(event[1] for event in self._events),
        }

    @property
    def series(self) -> set[Series]:
        """Those that are in it."""
        return {key[2] for key in self._cells}

    def add(self, delivery: Delivery, left_out: frozenset[int] = frozenset()) -> list[int]:
        """Counts a delivery, but for points that were counted before; gives all its parts."""
        parts = [point.series.part for point in delivery.points]
        if delivery.events and 0 not in left_out:
            self._add_events(delivery)
        for part, point in zip(parts, delivery.points, strict=True):
            if part not in left_out:
                self._add_point(delivery, point)
        return parts or [0]

    def _hour(self, time_ns: int) -> int:
        hour = time_ns // HOUR_NS
        near = self._now - _PAST_HOURS <= hour <= self._now + _FUTURE_HOURS
        return hour if near else self._now

    def _add_point(self, delivery: Delivery, point: Point) -> None:
        hour, series = self._hour(point.time_ns), point.series
        key = hour, delivery.cohort, series
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = {}
        for bucket, n in enumerate(point.counts, point.first):
            if n:
                cell[bucket] = cell.get(bucket, 0) + n
        if point.zeros:
            cell[ZERO] = cell.get(ZERO, 0) + point.zeros
        if point.total == point.total:
            moment = self._moments.setdefault(key, [0, 0.0, np.inf, -np.inf])
            moment[0] += sum(point.counts) + point.zeros
            moment[1] += point.total
            moment[2] = min(moment[2], point.low)
            moment[3] = max(moment[3], point.high)
        if delivery.device is None:
            return
        day = self._day(hour, delivery.cohort, delivery.device)
        if series.metric == "edgekit.inference.requests":
            day[_REQUESTS] += point.counts[0]
            if series.source != "device":
                day[_ELSEWHERE] += point.counts[0]
        elif series.metric == "edgekit.inference.errors":
            day[_ERRORS] += point.counts[0]

    def _add_events(self, delivery: Delivery) -> None:
        for event in delivery.events:
            hour = self._hour(event.time_ns)
            self._events.append(
                (
                    hour,
                    delivery.cohort,
                    delivery.device,
                    event.name,
                    event.severity,
                    attributes_text(event.attributes),
                )
            )
            if delivery.device is not None:
                day = self._day(hour, delivery.cohort, delivery.device)
                day[_CRASHES] += event.name == "edgekit.crash"

    def _day(self, hour: int, cohort: Cohort, device: bytes) -> list[int]:
        key = hour // 24, cohort, device
        day = self._days.get(key)
        if day is None:
            day = self._days[key] = [0, 0, 0, 0]
        return day

    def rows(self, cohorts: Mapping[Cohort, int], series: Mapping[Series, int]) -> dict[str, Any]:
        """Columns by name, for each table that gets any."""
        cells = [
            (hour, cohorts[cohort], series[of], bucket, n)
            for (hour, cohort, of), cell in self._cells.items()
            for bucket, n in cell.items()
        ]
        moments = [
            (hour, cohorts[cohort], series[of], *values)
            for (hour, cohort, of), values in self._moments.items()
        ]
        days = [
            (day, cohorts[cohort], str(uuid.UUID(bytes=device)), *values)
            for (day, cohort, device), values in self._days.items()
        ]
        events = [
            (hour, cohorts[cohort], None if device is None else str(uuid.UUID(bytes=device)), *rest)
            for hour, cohort, device, *rest in self._events
        ]
        tables = {
            "cell": _columns(("hour", "cohort", "series", "bucket", "n"), cells, "iiiiq"),
            "moment": _columns(
                ("hour", "cohort", "series", "n", "total", "low", "high"), moments, "iiiqddd"
            ),
            "device_day": _columns(
                ("day", "cohort", "device", "requests", "elsewhere", "errors", "crashes"),
                days,
                "iiOqqqq",
            ),
            "event": _columns(
                ("hour", "cohort", "device", "name", "severity", "attributes"), events, "iiOOiO"
            ),
        }
        return {name: columns for name, columns in tables.items() if columns}


def _columns(names: Sequence[str], rows: Sequence[tuple[Any, ...]], kinds: str) -> Columns:
    if not rows:
        return {}
    columns = zip(*rows, strict=True)
    return {
        name: np.array(column, dtype=np.dtype(kind))
        for name, column, kind in zip(names, columns, kinds, strict=True)
    }
