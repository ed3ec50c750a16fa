"""Cohorts that may be shown: no report is of fewer than k devices, nor is any difference of two.

The smallest thing that a report can be of is a *base cell*: a model's version on a class of
device in a version of the app, on one day. A base cell of fewer than k devices is taken out before
anything is added up, whatever is asked, so every report is a sum of base cells of k devices each,
and so is the difference of any two reports of one state of the store (what they have in common
cancels, what is left are whole base cells). Suppressing rows of the finished table would not do
that: a total less the rows that are shown gives the one that is not.

How many base cells were taken out is told only where they have k devices together.

What this doesn't cover: the same report asked twice while devices go on sending differs by what
came between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.errors import UsageError
from edgekit.telemetry.store import Reader

__all__ = [
    "BASE",
    "DEFAULT_K",
    "LEAST_K",
    "Base",
    "Window",
    "base_of",
    "check_columns",
    "devices_of",
    "grouped",
]

BASE: Final = ("model", "version", "device", "app")
"""What reports can group by, and filter on."""

DEFAULT_K: Final = 10
LEAST_K: Final = 2


@dataclass(frozen=True)
class Window:
    """Days since 1970, UTC, from the first to the last."""

    first: int
    last: int


@dataclass(frozen=True)
class Base:
    """What a report may be made of.

    Attributes:
        k: devices that a base cell has at least.
        shown: how many base cells there are.
        left_out: how many are not, as they have fewer; None where their devices are fewer than k
            together, so that even their number would tell.
    """

    k: int
    shown: int
    left_out: int | None


def base_of(
    store: Reader, window: Window, k: int = DEFAULT_K, where: Mapping[str, str] | None = None
) -> Base:
    """Makes the temporary table ``shown`` (``cohort``, ``day``, ``devices`` of its base cell, and
    the columns of `BASE`) of what a report of a window may be made of.

    Devices are those of a day, by the names that they have on that day. Of days of which the names
    are forgotten it is the most devices of any one cohort in the base cell, which may be fewer.

    Raises:
        UsageError: k is less than 2, or something else than `BASE` is to be filtered on.
    """
    if k < LEAST_K:
        raise UsageError(f"k is {k}, at least {LEAST_K} is wanted", hint="10 is a good one")
    where = dict(where or {})
    check_columns(where)
    columns = ", ".join(f'c."{name}"' for name in BASE)
    names = ", ".join(f'"{name}"' for name in BASE)
    wanted = "".join(f' AND "{name}" = ?' for name in where)
    span = [window.first, window.last]
    store.query("DROP TABLE IF EXISTS base")
    store.query(
        f"""CREATE TEMP TABLE base AS
        SELECT day, {names}, max(devices) AS devices FROM (
            SELECT day, {columns}, count(DISTINCT d.device) AS devices
            FROM device_day d JOIN cohort c ON c.id = d.cohort
            WHERE day BETWEEN ? AND ? GROUP BY day, {columns}
            UNION ALL
            SELECT day, {columns}, max(devices)
            FROM cohort_day d JOIN cohort c ON c.id = d.cohort
            WHERE day BETWEEN ? AND ? GROUP BY day, {columns}
        ) AS found WHERE true{wanted} GROUP BY day, {names}""",
        [*span, *span, *where.values()],
    )
    same = " AND ".join(f'b."{name}" = c."{name}"' for name in BASE)
    named = ", ".join(f'b."{name}"' for name in BASE)
    store.query("DROP TABLE IF EXISTS shown")
    store.query(
        f"""CREATE TEMP TABLE shown AS
        SELECT c.id AS cohort, b.day, b.devices, {named}
        FROM base b JOIN cohort c ON {same} WHERE b.devices >= ?""",
        [k],
    )
    # For the planner: no one else knows how much is in it.
    store.query("ANALYZE shown")
    (row,) = store.query(
        "SELECT count(*) FILTER (WHERE devices >= ?), count(*) FILTER (WHERE devices < ?), "
        "coalesce(sum(devices) FILTER (WHERE devices < ?), 0)::BIGINT FROM base",
        [k, k, k],
    )
    shown, out, devices = row
    return Base(k, shown, out if not out or devices >= k else None)


def check_columns(names: Mapping[str, str] | Sequence[str]) -> None:
    """Whether a report can be asked by some columns.

    Raises:
        UsageError: one is none of `BASE`.
    """
    for name in names:
        if name not in BASE:
            raise UsageError(f"a report does not know {name!r}; it knows: {', '.join(BASE)}")


def grouped(columns: int) -> str:
    """``GROUP BY`` the first so many columns, by their places; of none, all rows are one group."""
    places = ", ".join(str(i + 1) for i in range(columns))
    return f"GROUP BY {places}" if places else ""


def devices_of(store: Reader, by: Sequence[str]) -> dict[tuple[Any, ...], tuple[int, int]]:
    """Of each group of what is ``shown``: devices on the day that had the most, and device-days.

    Names are made anew every day, so no one can tell how many devices several days have together.
    """
    columns = "".join(f'"{name}", ' for name in by)
    days = ", ".join(f'"{name}"' for name in dict.fromkeys((*by, "day")))
    rows = store.query(
        f"""SELECT {columns} max(devices)::BIGINT, sum(devices)::BIGINT FROM (
            SELECT {days}, sum(devices) AS devices
            FROM (
                SELECT DISTINCT day, devices, {", ".join(f'"{n}"' for n in BASE)} FROM shown
            ) AS cells GROUP BY {days}
        ) AS days {grouped(len(by))}"""
    )
    # Without columns there is one row even of nothing.
    return {tuple(row[:-2]): (row[-2], row[-1]) for row in rows if row[-1]}
