"""Two versions of a model, side by side: the days that `edgekit.telemetry.canary` watches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.errors import UsageError
from edgekit.telemetry.canary import Day, watch
from edgekit.telemetry.cohorts import DEFAULT_K, Window, base_of
from edgekit.telemetry.store import Reader

__all__ = ["ERROR_SHARE", "against"]

ERROR_SHARE = 0.05
"""Share of a device's requests of a day that may end in errors before the day counts as failed."""


def against(
    store: Reader,
    window: Window,
    control: str,
    canary: str,
    *,
    where: Mapping[str, str] | None = None,
    k: int = DEFAULT_K,
    alpha: float = 0.01,
) -> dict[str, Any]:
    """A document of the form ``edgekit.telemetry-canary/1``.

    Devices are compared with those of their own class, with the same app, on the same day; where
    one side has fewer than k such devices on a day, that day says nothing.

    Args:
        control, canary: versions of the model.
        where: values of other columns of a report.

    Raises:
        UsageError: the versions are one, a column is not known, alpha is none or k less than 2.
    """
    where = dict(where or {})
    if control == canary or "version" in where:
        raise UsageError("a canary is one version against another")
    base_of(store, window, k, where)
    # Rows of one device in several cohorts of a base cell are one device.
    rows = store.query(
        """SELECT day, model, device, app,
            count(*) FILTER (WHERE version = ?), count(*) FILTER (WHERE version = ? AND failed),
            count(*) FILTER (WHERE version = ?), count(*) FILTER (WHERE version = ? AND failed)
        FROM (
            SELECT d.day, s.model, s.device, s.app, s.version, d.device AS name,
                sum(crashes) > 0 OR sum(errors) > ? * sum(requests) AS failed
            FROM device_day d JOIN shown s ON s.cohort = d.cohort AND s.day = d.day
            WHERE s.version IN (?, ?) GROUP BY 1, 2, 3, 4, 5, 6
        ) AS trials GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4""",
        [control, control, canary, canary, ERROR_SHARE, control, canary],
    )
    both = [row for row in rows if row[4] and row[6]]
    verdict = watch((Day(*row[4:]) for row in both), alpha)
    return {
        "schema": "edgekit.telemetry-canary/1",
        "first_day": window.first,
        "last_day": window.last,
        "k": k,
        "alpha": alpha,
        "control": _side(control, both, 4),
        "canary": _side(canary, both, 6),
        "worse": verdict.worse if both else None,
        "p": verdict.p,
        "evidence": verdict.evidence,
        "since_day": None if verdict.day is None else both[verdict.day][0],
    }


def _side(version: str, rows: list[tuple[Any, ...]], at: int) -> dict[str, Any]:
    days, failed = sum(row[at] for row in rows), sum(row[at + 1] for row in rows)
    return {"version": version, "device_days": days, "failed": failed}
