"""Drift of cohorts: what their confidence, classes and inputs were before, and are now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgekit.errors import UsageError
from edgekit.runtime.aggregate import CONFIDENCE_BOUNDS, DEVIATION_BOUNDS, MEAN_BOUNDS
from edgekit.telemetry.cohorts import Window, base_of, grouped
from edgekit.telemetry.drift import Drift, compare
from edgekit.telemetry.store import Reader

__all__ = ["drifts"]

_BINS: Final = {
    "edgekit.prediction.confidence": len(CONFIDENCE_BOUNDS) + 1,
    "edgekit.input.mean": len(MEAN_BOUNDS) + 1,
    "edgekit.input.deviation": len(DEVIATION_BOUNDS) + 1,
}
_CLASSES: Final = "edgekit.prediction.classes"

_Group = tuple[Any, ...]
_Feature = tuple[str, str]
_Days = dict[int, dict[int, int]]


def drifts(
    store: Reader,
    baseline: Window,
    window: Window,
    *,
    by: Sequence[str],
    where: Mapping[str, str] | None = None,
    k: int,
    false_alarms: float = 0.01,
    daily: bool = False,
) -> dict[_Group, dict[str, Any]]:
    """By cohort and feature, what `edgekit.telemetry.drift.compare` says of a window against a
    baseline, of which the days are the parts.

    The rate of false alarms is that of a cohort: its features share it. With ``daily`` the cohorts
    have a day more at their ends, each is compared by itself, and the rate is that of each day.

    Raises:
        UsageError: a column is not known, k is less than 2, or the rate is none.
    """
    if not 0 < false_alarms < 1:
        raise UsageError(f"a rate of false alarms is between 0 and 1, not {false_alarms}")
    base_of(store, baseline, k, where)
    before = _counts(store, by)
    base_of(store, window, k, where)
    now = _counts(store, by)
    found: dict[_Group, dict[str, Any]] = {}
    if daily:
        now = _by_day(now)
    for group in sorted(now):
        against = before.get(group[:-1] if daily else group)
        if against is None:
            continue
        features = sorted(against.keys() & now[group].keys())
        found[group] = {
            _name(feature): _document(
                _compared(
                    feature,
                    against[feature],
                    now[group][feature],
                    false_alarms,
                    len(features),
                )
            )
            for feature in features
        }
    return found


def _counts(store: Reader, by: Sequence[str]) -> dict[_Group, dict[_Feature, _Days]]:
    """Counts by cohort, feature, day and bin; a class is its bin."""
    columns = "".join(f'shown."{name}", ' for name in by)
    metrics = ", ".join(f"'{name}'" for name in (*_BINS, _CLASSES))
    rows = store.query(
        f"""SELECT {columns} metric, input, shown.day,
            CASE WHEN metric = '{_CLASSES}' THEN nullif(class, '')::INTEGER ELSE bucket END,
            sum(n)::BIGINT
        FROM cell JOIN shown ON cell.cohort = shown.cohort AND cell.hour // 24 = shown.day
        JOIN series ON series.id = cell.series
        WHERE metric IN ({metrics}) AND (metric != '{_CLASSES}' OR class != '')
        {grouped(len(by) + 4)}"""
    )
    found: dict[_Group, dict[_Feature, _Days]] = defaultdict(dict)
    for row in rows:
        metric, which, day, place, n = row[-5:]
        days = found[tuple(row[:-5])].setdefault((metric, which), {})
        days.setdefault(day, {})[place] = n
    return found


def _by_day(counts: dict[_Group, dict[_Feature, _Days]]) -> dict[_Group, dict[_Feature, _Days]]:
    found: dict[_Group, dict[_Feature, _Days]] = defaultdict(dict)
    for group, features in counts.items():
        for feature, days in features.items():
            for day, bins in days.items():
                found[(*group, day)][feature] = {day: bins}
    return found


def _compared(
    feature: _Feature, before: _Days, now: _Days, false_alarms: float, features: int
) -> Drift:
    size = _BINS.get(feature[0])
    if size is None:
        places = sorted({place for days in (before, now) for day in days.values() for place in day})
    else:
        places = list(range(size))
    at = {place: i for i, place in enumerate(places)}

    def table(days: _Days) -> np.ndarray[Any, Any]:
        counts = np.zeros((len(days), len(places)))
        for i, day in enumerate(sorted(days)):
            for place, n in days[day].items():
                counts[i, at[place]] += n
        return counts

    return compare(
        table(before),
        table(now).sum(axis=0),
        ordered=size is not None,
        false_alarms=false_alarms,
        features=features,
    )


def _name(feature: _Feature) -> str:
    metric, which = feature
    short = metric.removeprefix("edgekit.")
    return f"{short}.{which}" if which else short


def _document(drift: Drift) -> dict[str, Any]:
    return {
        "flagged": drift.flagged,
        "distances": {
            name: {"value": one.value, "limit": one.limit} for name, one in drift.distances.items()
        },
        "false_alarms": drift.false_alarms,
        "design_effect": drift.design_effect,
        "counts": list(drift.counts),
        "bins": drift.bins,
    }
