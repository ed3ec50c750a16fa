"""Spread: how much errors and answers from elsewhere differ from device to device.

Of days of which the names of devices are kept (`edgekit.telemetry.tables.DEVICE_DAYS`): without
them nobody can tell whether a thousand errors were of one device or of a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.telemetry.cohorts import grouped
from edgekit.telemetry.intervals import Clusters, interval
from edgekit.telemetry.store import Reader

__all__ = ["Spread", "intervals", "spreads"]


@dataclass(frozen=True)
class Spread:
    """Of a cohort's device-days.

    Attributes:
        device_days: how many there are.
        crashed: on how many of them there was a crash, at least one.
        errors, elsewhere: of requests, by device-day. A request may have two errors; of a
            device-day no more are taken than it has requests, so that they are a share of them.
        taken: which part of all errors that is.
    """

    device_days: int
    crashed: int
    taken: float
    errors: Clusters
    elsewhere: Clusters


def spreads(store: Reader, by: Sequence[str]) -> dict[tuple[Any, ...], Spread]:
    """Of each group of the base cells that are shown; groups without named devices are absent."""
    columns = "".join(f'"{name}", ' for name in by)
    # Rows of one device in several cohorts of a base cell are one device.
    rows = store.query(
        f"""SELECT {columns} count(*), count(*) FILTER (WHERE crashes > 0),
            sum(r), sum(r * r), sum(e), sum(e * e), sum(e * r), sum(x), sum(x * x), sum(x * r),
            sum(e_all)
        FROM (
            SELECT s.day, s.model, s.version, s.device, s.app, d.device AS name,
                CAST(sum(d.requests) AS DOUBLE PRECISION) AS r,
                CAST(least(sum(d.errors), sum(d.requests)) AS DOUBLE PRECISION) AS e,
                CAST(sum(d.errors) AS DOUBLE PRECISION) AS e_all,
                CAST(sum(d.elsewhere) AS DOUBLE PRECISION) AS x, sum(d.crashes) AS crashes
            FROM device_day d JOIN shown s ON s.cohort = d.cohort AND s.day = d.day
            GROUP BY 1, 2, 3, 4, 5, 6
        ) AS named {grouped(len(by))}"""
    )
    found = {}
    for row in rows:
        n, crashed, r, r_2, e, e_2, e_r, x, x_2, x_r, e_all = row[len(by) :]
        if n:
            errors = Clusters(n, r, e, r_2, e_2, e_r)
            elsewhere = Clusters(n, r, x, r_2, x_2, x_r)
            taken = e / e_all if e_all else 1.0
            found[tuple(row[: len(by)])] = Spread(n, crashed, taken, errors, elsewhere)
    return found


def intervals(entry: Mapping[str, Any], spread: Spread | None) -> dict[str, Any]:
    """What a report's entry says beside its rates: their 95 % intervals, and the share of its
    device-days on which there was a crash. None where no names of devices are kept.

    Crashes are of device-days, each one trial; `edgekit.telemetry.canary` says what that takes for
    granted.
    """
    errors = elsewhere = crashed = crash_rate = None
    if spread is not None:
        rate = None if entry["error_rate"] is None else entry["error_rate"] * spread.taken
        errors = _interval(rate, entry["requests"], spread.errors)
        elsewhere = _interval(entry["fallback_rate"], entry["requests"], spread.elsewhere)
        crash_rate = spread.crashed / spread.device_days
        crashed = list(interval(crash_rate, spread.device_days))
    return {
        "error_rate_ci95": errors,
        "fallback_rate_ci95": elsewhere,
        "crash_rate": crash_rate,
        "crash_rate_ci95": crashed,
    }


def _interval(rate: float | None, requests: int, clusters: Clusters) -> list[float] | None:
    if rate is None or not clusters.trials:
        return None
    # Devices without a name are in the requests, and are taken to be like the others.
    trials = clusters.effective(0.025) * requests / clusters.trials
    return list(interval(min(rate, 1.0), trials))
