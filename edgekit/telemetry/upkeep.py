"""Upkeep: adding up what is over, and forgetting what is too old, in steps of a bounded size.

A write puts its counts behind those that are there, and marks the hours and days that it touched.
Upkeep adds up the rows of an hour that is over, so that there is one row of each bucket, and of a
day that is a week old, of which only the day is kept. It goes by the marks, so it reads what
changed, not the store. Rows are taken in portions by their key: all that is to be added up is in
one portion, and a step takes as long as a portion does, however large the fleet is.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from edgekit.telemetry.tables import DEVICE_DAYS, SEEN_DAYS

__all__ = ["PORTION", "Mark", "Step", "marks", "steps"]

PORTION: Final = 200_000
"""Rows of a step: DuckDB takes a quarter of a second for them."""

_FINE_DAYS: Final = 7
_UUIDS: Final = 2**128

_CELL: Final = "abs(cohort * 31::BIGINT + series * 7 + bucket)"
_MOMENT: Final = "abs(cohort * 31::BIGINT + series * 7)"
_DEVICE: Final = ("requests", "elsewhere", "errors", "crashes")
_DEVICE_SUMS: Final = ", ".join(f"sum({name})::BIGINT AS {name}" for name in _DEVICE)

Query = Callable[..., list[tuple[Any, ...]]]


class Mark(NamedTuple):
    """What is to be added up: an ``hour`` (of cells and moments), a ``day`` (of devices), or a
    ``fine`` day, of which hours are still told apart."""

    kind: str
    which: int


@dataclass(frozen=True)
class Step:
    """One transaction.

    Attributes:
        statements: that it does.
        begun: marks of which the work begins with it.
        ended: marks of which it ends, so that they go.
    """

    statements: Sequence[str]
    begun: frozenset[Mark] = frozenset()
    ended: frozenset[Mark] = frozenset()


def marks(rows: Mapping[str, Mapping[str, Any]]) -> set[Mark]:
    """What has to be marked when these rows, columns by their tables, are written."""
    hours: set[int] = set()
    for table in ("cell", "moment"):
        if table in rows:
            hours.update(rows[table]["hour"].tolist())
    found = {Mark("hour", hour) for hour in hours} | {Mark("fine", hour // 24) for hour in hours}
    if "device_day" in rows:
        found |= {Mark("day", day) for day in rows["device_day"]["day"].tolist()}
    return found


def steps(query: Query, hour: int, keep_days: int, portion: int) -> Iterator[Step]:
    """Steps to do, in this order, each as it is taken.

    Args:
        query: rows of a statement, as the steps before have left the store.
        hour: the present one, since 1970.
        keep_days: days that counts are kept.
        portion: rows that a step reads, about.
    """
    day = hour // 24
    yield from _fold_cells(query, hour, portion)
    # Today's are added up as well: devices send many times a day.
    for (at,) in query("SELECT which FROM waiting WHERE kind = 'day' ORDER BY which"):
        yield from _fold_devices(query, at, portion)
    yield from _forget_devices(query, day - DEVICE_DAYS, portion)
    yield from _forget_names(query, (day - DEVICE_DAYS) * 24)
    yield from _forget_ids(query, day - SEEN_DAYS, portion)
    for table in ("cell", "moment", "event"):
        yield from _expire(query, table, "hour", (day - keep_days) * 24, 24)
    yield from _expire(query, "cohort_day", "day", day - keep_days, 1)


def _fold_cells(query: Query, hour: int, portion: int) -> Iterator[Step]:
    week = hour // 24 - _FINE_DAYS
    rows = query(
        "SELECT kind, which FROM waiting "
        "WHERE kind = 'hour' AND which < ? OR kind = 'fine' AND which < ?",
        [hour, week],
    )
    days: dict[int, set[Mark]] = defaultdict(set)
    for mark in (Mark(*row) for row in rows):
        days[mark.which // 24 if mark.kind == "hour" else mark.which].add(mark)
    for day, found in sorted(days.items()):
        done = frozenset(found)
        if day < week:
            span, by = f"hour BETWEEN {day * 24} AND {day * 24 + 23}", str(day * 24)
        else:
            hours = ", ".join(str(mark.which) for mark in sorted(done))
            span, by = f"hour IN ({hours})", "hour"
        yield Step((), begun=done)
        for part in _portions(query, "cell", span, _CELL, portion):
            yield _fold(
                "cell",
                f"{by}, cohort, series, bucket, sum(n)::BIGINT",
                part,
                "GROUP BY 1, 2, 3, 4 ORDER BY 3, 2, 1",
            )
        for part in _portions(query, "moment", span, _MOMENT, portion):
            yield _fold(
                "moment",
                f"{by}, cohort, series, sum(n)::BIGINT AS n, sum(total) AS total, "
                "min(low) AS low, max(high) AS high",
                part,
                "GROUP BY 1, 2, 3",
            )
        yield Step((), ended=done)


def _fold_devices(query: Query, day: int, portion: int) -> Iterator[Step]:
    done = frozenset({Mark("day", day)})
    yield Step((), begun=done)
    for part in _device_portions(query, "device_day", "device", f"day = {day}", portion):
        columns = f"day, cohort, device, {_DEVICE_SUMS}"
        yield _fold("device_day", columns, part, "GROUP BY 1, 2, 3")
    yield Step((), ended=done)


def _fold(table: str, columns: str, where: str, rest: str) -> Step:
    return Step(
        (
            f"CREATE TEMP TABLE folded AS SELECT {columns} FROM {table} WHERE {where} {rest}",
            f"DELETE FROM {table} WHERE {where}",
            f"INSERT INTO {table} SELECT * FROM folded",
            "DROP TABLE folded",
        )
    )


def _forget_devices(query: Query, before: int, portion: int) -> Iterator[Step]:
    """Of a day's devices their number is kept, in each cohort."""
    for day in _old_days(query, "device_day", before):
        cohorts = query(
            f"SELECT cohort, count(*) FROM device_day WHERE day = {day} GROUP BY 1 ORDER BY 1"
        )
        for first, last in _together(cohorts, portion):
            where = f"day = {day} AND cohort BETWEEN {first} AND {last}"
            yield Step(
                (
                    "INSERT INTO cohort_day SELECT day, cohort, count(DISTINCT device), "
                    f"{_DEVICE_SUMS} FROM device_day WHERE {where} GROUP BY 1, 2",
                    f"DELETE FROM device_day WHERE {where}",
                ),
            )


def _forget_names(query: Query, before: int) -> Iterator[Step]:
    """Events stay as long as counts do, but nobody's."""
    for (hour,) in query(
        "SELECT DISTINCT hour FROM event WHERE device IS NOT NULL AND hour < ? ORDER BY hour",
        [before],
    ):
        yield Step((f"UPDATE event SET device = NULL WHERE hour = {hour}",))


def _together(cohorts: Sequence[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of cohorts that have at most so many rows, or are one cohort."""
    first, last, size = 0, -1, 0
    for cohort, rows in cohorts:
        if size and size + rows > most:
            yield first, last
            size = 0
        if not size:
            first = cohort
        last, size = cohort, size + rows
    if size:
        yield first, last


def _forget_ids(query: Query, before: int, portion: int) -> Iterator[Step]:
    # By the receiver's clock: a device's may be wrong.
    for day in _old_days(query, "seen", before):
        for part in _device_portions(query, "seen", "id", f"day = {day}", portion):
            yield Step((f"DELETE FROM seen WHERE {part}",))


def _expire(query: Query, table: str, column: str, before: int, unit: int) -> Iterator[Step]:
    while True:
        ((oldest,),) = query(f"SELECT min({column}) FROM {table}")
        if oldest is None or oldest >= before:
            return
        end = min(before, (oldest // unit + 1) * unit)
        yield Step((f"DELETE FROM {table} WHERE {column} < {end}",))


def _old_days(query: Query, table: str, before: int) -> list[int]:
    rows = query(f"SELECT DISTINCT day FROM {table} WHERE day < ? ORDER BY day", [before])
    return [day for (day,) in rows]


def _portions(query: Query, table: str, where: str, key: str, most: int) -> list[str]:
    """Conditions that share out rows by their key."""
    many = _many(query, table, where, most)
    if many <= 1:
        return [where] * many
    return [f"{where} AND {key} % {many} = {i}" for i in range(many)]


def _device_portions(query: Query, table: str, name: str, where: str, most: int) -> list[str]:
    """The same by random names, which are spread evenly."""
    many = _many(query, table, where, most)
    if many <= 1:
        return [where] * many
    edges = [uuid.UUID(int=_UUIDS * i // many) for i in range(many)]
    parts = [f"{where} AND {name} >= '{edge}'" for edge in edges]
    return [
        f"{part} AND {name} < '{edge}'" for part, edge in zip(parts, edges[1:], strict=False)
    ] + parts[-1:]


def _many(query: Query, table: str, where: str, most: int) -> int:
    ((rows,),) = query(f"SELECT count(*) FROM {table} WHERE {where}")
    return -(-int(rows) // most)
