"""Report: how a fleet does, by model version, class of device and version of the app.

Counts are added up in the store, cohort by cohort, from base cells of k devices only (see
`edgekit.telemetry.cohorts`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.runtime.drift_reference import DriftReference
from edgekit.telemetry.cohorts import (
    BASE,
    DEFAULT_K,
    Window,
    base_of,
    check_columns,
    devices_of,
    grouped,
)
from edgekit.telemetry.drifting import against_references, drifts
from edgekit.telemetry.merged import quantiles
from edgekit.telemetry.noised import noised
from edgekit.telemetry.spread import intervals, spreads
from edgekit.telemetry.store import Reader

__all__ = ["RANKS", "report"]

RANKS: Final = (0.5, 0.9, 0.95, 0.99)
_DURATION: Final = "edgekit.inference.duration"
_MEMORY: Final = "edgekit.inference.memory"
_BINS: Final = 20

_Group = tuple[Any, ...]


def report(
    store: Reader,
    window: Window,
    *,
    by: Sequence[str] = BASE,
    where: Mapping[str, str] | None = None,
    k: int = DEFAULT_K,
    baseline: Window | None = None,
    references: Sequence[DriftReference] | None = None,
    false_alarms: float = 0.01,
    daily: bool = False,
) -> dict[str, Any]:
    """A document of the form ``edgekit.telemetry-report/1``.

    Args:
        window: of whole days, UTC, by the devices' clocks.
        by: columns of `BASE`, of which each set of values is one entry.
        where: values that columns of `BASE` must have.
        k: devices that anything in it is of, at least.
        baseline: what drift over time is told against; none is told without.
        references: of bundles, which drift of the devices that have them is told against.
        false_alarms: the share of cohorts without drift that may be flagged; of each day, too.
        daily: whether each entry has a ``series`` of its days. A base cell is of one day, so a day
            of an entry is a sum of base cells like the entry itself.

    Raises:
        UsageError: a column is none of `BASE`, or k is less than 2.
    """
    check_columns(by)
    base = base_of(store, window, k, where)
    entries = _entries(store, by)
    days = _entries(store, (*by, "day")) if daily else {}
    told: dict[str, Any] = {"by": by, "false_alarms": false_alarms, "daily": daily}
    if references is not None:
        held = against_references(store, window, references, **told)
        for group, entry in (*entries.items(), *days.items()):
            nothing: dict[str, Any] = {"features": {}, "no_reference": {}}
            entry["reference_drift"] = held.get(group, nothing)
    if baseline is not None:  # the last, as it wants the table of cohorts for the baseline
        drift = drifts(store, baseline, where=where, k=k, **told)
        for group, entry in (*entries.items(), *days.items()):
            entry["drift"] = drift.get(group, {})
    for group, entry in days.items():
        entries[group[:-1]].setdefault("series", []).append(entry)
    return {
        "schema": "edgekit.telemetry-report/1",
        "first_day": window.first,
        "baseline": None if baseline is None else [baseline.first, baseline.last],
        "references": None if references is None else [one.digest for one in references],
        "last_day": window.last,
        "by": list(by),
        "where": dict(where or {}),
        "k": k,
        "base_cells": {"shown": base.shown, "left_out": base.left_out},
        "cohorts": list(entries.values()),
    }


def _entries(store: Reader, by: Sequence[str]) -> dict[_Group, dict[str, Any]]:
    """What is said of each group of the base cells that are shown, in order; of days, too, where
    ``day`` is the last of the columns."""
    sums = _sums(store, by)
    sketches = _sketches(store, by)
    bins = _confidences(store, by)
    crashes = _crashes(store, by)
    spread = spreads(store, by)
    reports = noised(store, by)
    entries: dict[_Group, dict[str, Any]] = {}
    for group, (devices, device_days) in sorted(devices_of(store, by).items()):
        entry: dict[str, Any] = dict(zip(by, group, strict=True))
        entry |= {"devices": devices, "device_days": device_days}
        entry |= _rates(sums[group], crashes.get(group, 0), device_days)
        entry |= intervals(entry, spread.get(group))
        entry["latency_s"] = {
            source: _percentiles(cells)
            for source, cells in sorted(sketches[group].items())
            if source
        }
        entry["memory_bytes"] = _percentiles(sketches[group].get("", []))
        entry["confidence"] = _confidence(bins[group])
        entry["noised"] = reports.get(group, [])
        entries[group] = entry
    return entries


def _columns(by: Sequence[str]) -> str:
    return "".join(f'shown."{name}", ' for name in by)


def _sums(store: Reader, by: Sequence[str]) -> dict[_Group, list[tuple[str, str, str, int]]]:
    """Metric, source, reason or error, and count."""
    rows = store.query(
        f"""SELECT {_columns(by)} metric, source, reason || error, sum(n)::BIGINT
        FROM cell JOIN shown ON cell.cohort = shown.cohort AND cell.hour // 24 = shown.day
        JOIN series ON series.id = cell.series
        WHERE metric IN ('edgekit.inference.requests', 'edgekit.inference.errors')
        {grouped(len(by) + 3)}"""
    )
    found: dict[_Group, list[tuple[str, str, str, int]]] = defaultdict(list)
    for row in rows:
        found[tuple(row[:-4])].append(row[-4:])
    return found


def _sketches(
    store: Reader, by: Sequence[str]
) -> dict[_Group, dict[str, list[tuple[int, int, int]]]]:
    """Scale, bucket and count, by source; memory under no source."""
    rows = store.query(
        f"""SELECT {_columns(by)} CASE WHEN metric = ? THEN source ELSE '' END, scale, bucket,
            sum(n)::BIGINT
        FROM cell JOIN shown ON cell.cohort = shown.cohort AND cell.hour // 24 = shown.day
        JOIN series ON series.id = cell.series
        WHERE metric IN (?, ?) AND (metric = ? OR source != '')
        {grouped(len(by) + 3)}""",
        [_DURATION, _DURATION, _MEMORY, _MEMORY],
    )
    found: dict[_Group, dict[str, list[tuple[int, int, int]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        found[tuple(row[:-4])][row[-4]].append(row[-3:])
    return found


def _confidences(store: Reader, by: Sequence[str]) -> dict[_Group, list[int]]:
    rows = store.query(
        f"""SELECT {_columns(by)} bucket, sum(n)::BIGINT
        FROM cell JOIN shown ON cell.cohort = shown.cohort AND cell.hour // 24 = shown.day
        JOIN series ON series.id = cell.series
        WHERE metric = 'edgekit.prediction.confidence' AND epsilon = ''
        {grouped(len(by) + 1)}"""
    )
    found: dict[_Group, list[int]] = defaultdict(lambda: [0] * _BINS)
    for row in rows:
        found[tuple(row[:-2])][row[-2]] = row[-1]
    return found


def _crashes(store: Reader, by: Sequence[str]) -> dict[_Group, int]:
    rows = store.query(
        f"""SELECT {_columns(by)} count(*)
        FROM event JOIN shown ON event.cohort = shown.cohort AND event.hour // 24 = shown.day
        WHERE name = 'edgekit.crash' {grouped(len(by))}"""
    )
    return {tuple(row[:-1]): row[-1] for row in rows}


def _rates(
    sums: Sequence[tuple[str, str, str, int]], crashes: int, device_days: int
) -> dict[str, Any]:
    sources: dict[str, int] = defaultdict(int)
    reasons: dict[str, int] = defaultdict(int)
    errors: dict[str, int] = defaultdict(int)
    for metric, source, what, n in sums:
        if metric == "edgekit.inference.errors":
            errors[what] += n
        else:
            sources[source] += n
            reasons[what] += n
    requests = sum(sources.values())
    return {
        "requests": requests,
        "sources": {name: n / requests for name, n in sorted(sources.items()) if requests},
        "reasons": {name: n / requests for name, n in sorted(reasons.items()) if requests},
        "error_rate": sum(errors.values()) / requests if requests else None,
        "fallback_rate": (requests - sources["device"]) / requests if requests else None,
        "errors": dict(sorted(errors.items())),
        "crashes": crashes,
        "crashes_per_device_day": crashes / device_days,
    }


def _percentiles(cells: Sequence[tuple[int, int, int]]) -> dict[str, Any] | None:
    found = quantiles(cells, RANKS)
    if found is None:
        return None
    named = {f"p{rank * 100:g}": value for rank, value in zip(RANKS, found.values, strict=True)}
    return {**named, "count": found.count, "relative_error": found.relative_error}


def _confidence(bins: Sequence[int]) -> dict[str, Any] | None:
    """The mean is that of the bins' middles: within half a bin, 0.025, of the values' own."""
    count = sum(bins)
    if not count:
        return None
    mean = sum((i + 0.5) / _BINS * n for i, n in enumerate(bins)) / count
    return {"count": count, "mean": mean, "mean_error": 0.5 / _BINS, "bins": list(bins)}
