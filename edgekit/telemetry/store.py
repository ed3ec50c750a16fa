"""Store: DuckDB in a file, written by one process and in whole transactions.

What was acknowledged is on the disk, and is there once however often it is sent: the ids of
records are written in the transaction that writes what they hold.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import time_ns
from types import TracebackType
from typing import Any, Final

import duckdb
import numpy as np

from edgekit.errors import BadData, Locked, StorageError
from edgekit.telemetry.contract import Cohort, Series
from edgekit.telemetry.counts import Counts
from edgekit.telemetry.reading import HOUR_NS, Delivery
from edgekit.telemetry.tables import DDL, DEVICE_DAYS, SEEN_DAYS, VERSION

__all__ = ["Store", "Written"]

_MOST_COHORTS: Final = 100_000
_CAST: Final = {"device": "::UUID", "id": "::UUID", "parts": "::BLOB"}


class Written:
    """What a write did.

    Attributes:
        duplicates: deliveries of which all had been counted before.
        refused: deliveries of cohorts beyond the most that there may be.
    """

    def __init__(self) -> None:
        self.duplicates = 0
        self.refused: list[Delivery] = []


class Store:
    """A fleet's telemetry. Not safe to use from several threads.

    Args:
        path: of the file, made where it is absent; readable by its owner only.
        read_only: for reports; the receiver must not be running on the file.
        clock_ns: nanoseconds since 1970.

    Raises:
        BadData: the file is no store of this version.
        Locked: another process has it open.
        StorageError: it cannot be read or written.
    """

    def __init__(
        self, path: Path, *, read_only: bool = False, clock_ns: Callable[[], int] = time_ns
    ) -> None:
        self._clock_ns = clock_ns
        self.path = path
        self._db = _open(path, read_only)
        try:
            self._prepare(read_only)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is in the log into the file."""
        self._db.close()

    def _prepare(self, read_only: bool) -> None:
        tables = {name for (name,) in self._db.execute("SHOW TABLES").fetchall()}
        if not tables and not read_only:
            with _Transaction(self._db):
                for statement in DDL:
                    self._db.execute(statement)
        elif "about" not in tables:
            raise BadData(f"{self.path} is a database, but no store of telemetry")
        found = self._db.execute("SELECT version FROM about").fetchall()
        if found != [(VERSION,)]:
            raise BadData(
                f"{self.path} is a store of version {found}, this edgekit reads {VERSION}",
                hint="use the edgekit that wrote it",
            )
        rows = self._db.execute("SELECT * FROM cohort").fetchall()
        self._cohorts: dict[Cohort, int] = {row[1:]: row[0] for row in rows}
        rows = self._db.execute("SELECT * FROM series").fetchall()
        self._series = {Series(row[1], row[2], row[3:]): row[0] for row in rows}

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a statement that reads."""
        rows: list[tuple[Any, ...]] = self._db.execute(sql, parameters).fetchall()
        return rows

    # -- writing ----------------------------------------------------------------------------------

    def write(self, deliveries: Sequence[Delivery]) -> Written:
        """Counts deliveries, each once; all of them or none.

        Raises:
            StorageError: nothing was written.
        """
        written = Written()
        hour = self._clock_ns() // HOUR_NS
        counts = Counts(hour)
        try:
            with _Transaction(self._db):
                seen = self._count(deliveries, counts, written)
                cohorts = self._numbered("cohort", self._cohorts, counts.cohorts, tuple)
                series = self._numbered("series", self._series, counts.series, _series_row)
                for table, columns in counts.rows(cohorts, series).items():
                    self._insert(table, columns)
                if seen:
                    self._insert("seen", _seen_columns(seen, hour // 24))
        except duckdb.Error as error:
            raise StorageError(f"{self.path} cannot be written: {_first(error)}") from error
        self._cohorts, self._series = cohorts, series
        return written

    def _count(
        self, deliveries: Sequence[Delivery], counts: Counts, written: Written
    ) -> list[tuple[bytes, list[int]]]:
        before = self._parts({d.id for d in deliveries if d.id is not None})
        new_cohorts: set[Cohort] = set()
        seen: list[tuple[bytes, list[int]]] = []
        for delivery in deliveries:
            if delivery.cohort not in self._cohorts:
                full = len(self._cohorts) + len(new_cohorts) >= _MOST_COHORTS
                if full and delivery.cohort not in new_cohorts:
                    written.refused.append(delivery)
                    continue
                new_cohorts.add(delivery.cohort)
            if delivery.id is None:
                counts.add(delivery)
                continue
            known = before.get(delivery.id, frozenset())
            parts = counts.add(delivery, known)
            new = [part for part in parts if part not in known]
            if new:
                before[delivery.id] = known.union(new)
                seen.append((delivery.id, new))
            else:
                written.duplicates += 1
        return seen

    def _parts(self, ids: set[bytes]) -> dict[bytes, frozenset[int]]:
        """The parts of records that have been counted, of those that were asked for."""
        if not ids:
            return {}
        self._db.register("asked", {"id": _uuids(ids)})
        rows = self._db.execute(
            "SELECT id, parts FROM seen WHERE id IN (SELECT id::UUID FROM asked)"
        ).fetchall()
        self._db.unregister("asked")
        found: dict[bytes, frozenset[int]] = {}
        for name, parts in rows:
            counted = np.frombuffer(parts, "<u4").tolist()
            found[name.bytes] = found.get(name.bytes, frozenset()).union(counted)
        return found

    def _numbered(
        self, table: str, known: Mapping[Any, int], wanted: Iterable[Any], row: Callable[[Any], Any]
    ) -> dict[Any, int]:
        """Gives numbers to what has none yet. What is known changes when all is written only."""
        numbers = dict(known)
        for key in wanted:
            if key not in numbers:
                numbers[key] = len(numbers)
                values = (numbers[key], *row(key))
                marks = ", ".join("?" * len(values))
                self._db.execute(f"INSERT INTO {table} VALUES ({marks})", values)
        return numbers

    def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        self._db.register("incoming", dict(columns))
        names = ", ".join(f"{name}{_CAST.get(name, '')}" for name in columns)
        self._db.execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {names} FROM incoming")
        self._db.unregister("incoming")

    # -- upkeep -----------------------------------------------------------------------------------

    def tidy(self, keep_days: int = 400) -> None:
        """Adds up cells of hours that are over, and of days that are a week old; forgets ids and
        devices of which the time is over, and everything older than ``keep_days``.

        Raises:
            StorageError: nothing was changed.
        """
        hour = self._clock_ns() // HOUR_NS
        day = hour // 24
        week = (day - 7) * 24
        # Of a week ago and before only the day is kept.
        by = f"CASE WHEN hour < {week} THEN hour // 24 * 24 ELSE hour END"
        device = "requests", "elsewhere", "errors", "crashes"
        sums = ", ".join(f"sum({name})::BIGINT" for name in device)
        try:
            with _Transaction(self._db):
                self._fold(
                    "cell",
                    f"SELECT {by}, cohort, series, bucket, sum(n)::BIGINT FROM cell GROUP BY ALL "
                    "ORDER BY 3, 2, 1",
                )
                self._fold(
                    "moment",
                    f"SELECT {by}, cohort, series, sum(n)::BIGINT, sum(total), min(low), max(high) "
                    "FROM moment GROUP BY ALL",
                )
                self._fold(
                    "device_day",
                    f"SELECT day, cohort, device, {sums} FROM device_day GROUP BY ALL",
                )
                old = day - DEVICE_DAYS
                self._db.execute(
                    f"INSERT INTO cohort_day SELECT day, cohort, count(*), {sums} FROM device_day "
                    f"WHERE day < {old} GROUP BY ALL"
                )
                self._db.execute(f"DELETE FROM device_day WHERE day < {old}")
                # By the receiver's clock: a device's may be wrong.
                self._db.execute(f"DELETE FROM seen WHERE day < {day - SEEN_DAYS}")
                for table in ("cell", "moment", "event"):
                    self._db.execute(f"DELETE FROM {table} WHERE hour < {(day - keep_days) * 24}")
                self._db.execute(f"DELETE FROM cohort_day WHERE day < {day - keep_days}")
            self._db.execute("CHECKPOINT")
        except duckdb.Error as error:
            raise StorageError(f"{self.path} cannot be written: {_first(error)}") from error

    def _fold(self, table: str, select: str) -> None:
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE folded AS {select}")
        self._db.execute(f"DELETE FROM {table}")
        self._db.execute(f"INSERT INTO {table} SELECT * FROM folded")
        self._db.execute("DROP TABLE folded")


class _Transaction:
    def __init__(self, db: duckdb.DuckDBPyConnection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _at: TracebackType | None,
    ) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _open(path: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    try:
        if not read_only and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        db = duckdb.connect(str(path), read_only=read_only, config={"threads": 2})
        # Nothing that is asked of it reaches for another file, or the network.
        db.execute("SET enable_external_access = false")
        if not read_only:
            path.chmod(0o600)
    except (duckdb.Error, OSError) as error:
        if "lock" in str(error).lower():
            raise Locked(
                f"{path} is open in another process", hint="ask the receiver that has it, or end it"
            ) from error
        foreign = "not a valid" in str(error) or not isinstance(error, OSError | duckdb.IOException)
        kind = BadData if foreign else StorageError
        raise kind(f"{path} cannot be opened: {_first(error)}") from error
    return db


def _series_row(series: Series) -> tuple[Any, ...]:
    return (series.metric, series.scale, *series.values)


def _uuids(ids: Iterable[bytes]) -> np.ndarray[Any, Any]:
    return np.array([str(uuid.UUID(bytes=one)) for one in ids], dtype=object)


def _seen_columns(seen: Sequence[tuple[bytes, list[int]]], day: int) -> dict[str, Any]:
    parts = np.empty(len(seen), dtype=object)
    parts[:] = [np.array(new, "<u4").tobytes() for _, new in seen]
    return {
        "id": _uuids(name for name, _ in seen),
        "day": np.full(len(seen), day, np.int32),
        "parts": parts,
    }


def _first(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
