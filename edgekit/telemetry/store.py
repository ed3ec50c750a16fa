"""Store: what a fleet has sent, written by one process and in whole transactions.

What was acknowledged is on the disk, and is there once however often it is sent: the ids of
records are written in the transaction that writes what they hold.

`Store` is what two databases have in common: `edgekit.telemetry.duck` is a DuckDB file, which is
all that most need, `edgekit.telemetry.postgres` a PostgreSQL server. The SQL is theirs both, as
DuckDB writes it; `edgekit.telemetry.postgres` says what it writes otherwise.
"""

from __future__ import annotations

import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from time import time_ns
from typing import Any, Final, Protocol

import numpy as np

from edgekit.errors import BadData, StorageError
from edgekit.runtime._closing import Closing
from edgekit.telemetry import upkeep
from edgekit.telemetry.contract import Cohort, Series
from edgekit.telemetry.counts import Counts
from edgekit.telemetry.reading import HOUR_NS, Delivery
from edgekit.telemetry.tables import DDL, VERSION

__all__ = ["OpenReader", "Reader", "Row", "Store", "Written", "first_line", "is_postgres"]

_MOST_COHORTS: Final = 100_000

Row = tuple[Any, ...]


class Reader(Protocol):
    """What reports read from: one state of the store."""

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Rows of a statement that writes nothing but temporary tables.

        Raises:
            StorageError: it cannot be read.
        """
        ...


class OpenReader(Reader, Protocol):
    """A reader with its connection."""

    def end(self) -> None:
        """Has the statement that runs fail; from any thread."""
        ...

    def close(self) -> None:
        """Lets go of the connection, and of temporary tables."""
        ...


class Written:
    """What a write did.

    Attributes:
        duplicates: deliveries of which all had been counted before.
        refused: deliveries of cohorts beyond the most that there may be.
    """

    def __init__(self) -> None:
        self.duplicates = 0
        self.refused: list[Delivery] = []


class Store(Closing, ABC):
    """A fleet's telemetry. Not safe to use from several threads, but for `reading`.

    Args:
        name: what it is called in messages and documents; no secret is in it.
        clock_ns: nanoseconds since 1970.
    """

    _ddl: Sequence[str] = DDL

    def __init__(self, name: str, clock_ns: Callable[[], int] = time_ns) -> None:
        self.name = name
        self._clock_ns = clock_ns
        self._cohorts: dict[Cohort, int] = {}
        self._series: dict[Series, int] = {}
        # Marks that are on the disk for certain: a write need not set them.
        self._marks: set[upkeep.Mark] = set()
        self._readers: set[OpenReader] = set()
        self._reads = threading.Condition()
        self._closing = False

    # -- what a database has of its own -----------------------------------------------------------

    @abstractmethod
    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Rows of a statement, in the connection that writes.

        Raises:
            StorageError: it cannot be read.
        """

    @abstractmethod
    def _open_reader(self) -> OpenReader:
        """A connection of its own, in a transaction that sees one state."""

    @abstractmethod
    def _let_go(self) -> None:
        """Closes the connection that writes."""

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[None]:
        """All of what is done within, or nothing; StorageError where that is nothing."""

    @abstractmethod
    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> None: ...

    @abstractmethod
    def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        """Puts columns of one length behind what a table has."""

    @abstractmethod
    def _seen(self, ids: Sequence[uuid.UUID]) -> list[Row]:
        """Rows of `seen` with these ids: id and parts."""

    @abstractmethod
    def _tables(self) -> set[str]: ...

    def size(self) -> int | None:
        """Bytes that it takes; None where that is not told without asking. From any thread."""
        return None

    def _settle(self) -> None:
        """What a database wants done after its upkeep."""

    # -- opening ----------------------------------------------------------------------------------

    def _prepare(self, read_only: bool) -> None:
        """Makes the tables where there are none, and reads what is kept in memory of them."""
        tables = self._tables()
        if "about" not in tables:
            if tables or read_only:
                raise BadData(f"{self.name} is a database, but no store of telemetry")
            with self._transaction():
                for statement in self._ddl:
                    self._execute(statement)
        found = self.query("SELECT version FROM about")
        if found != [(VERSION,)]:
            versions = ", ".join(str(version) for (version,) in found) or "none"
            raise BadData(
                f"{self.name} is a store of version {versions}, this edgekit reads {VERSION}",
                hint="use the edgekit that wrote it",
            )
        rows = self.query("SELECT * FROM cohort")
        self._cohorts = {row[1:]: row[0] for row in rows}
        rows = self.query("SELECT * FROM series")
        self._series = {Series(row[1], row[2], row[3:]): row[0] for row in rows}
        self._marks = {upkeep.Mark(*row) for row in self.query("SELECT kind, which FROM waiting")}

    # -- writing ----------------------------------------------------------------------------------

    def write(self, deliveries: Sequence[Delivery]) -> Written:
        """Counts deliveries, each once; all of them or none.

        Raises:
            StorageError: nothing was written.
        """
        written = Written()
        hour = self.hour()
        counts = Counts(hour)
        with self._transaction():
            seen = self._count(deliveries, counts, written)
            cohorts = self._numbered("cohort", self._cohorts, counts.cohorts, tuple)
            series = self._numbered("series", self._series, counts.series, _series_row)
            rows = counts.rows(cohorts, series)
            for table, columns in rows.items():
                self._insert(table, columns)
            if seen:
                self._insert("seen", _seen_columns(seen, hour // 24))
            marks = upkeep.marks(rows) - self._marks
            for mark in marks:
                self._execute("INSERT INTO waiting VALUES (?, ?) ON CONFLICT DO NOTHING", mark)
        # What is known changes only when all is written.
        self._cohorts, self._series = cohorts, series
        self._marks |= marks
        return written

    def hour(self) -> int:
        """Hours since 1970, by the receiver's clock."""
        return self._clock_ns() // HOUR_NS

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
        found: dict[bytes, frozenset[int]] = {}
        if ids:
            for name, parts in self._seen([uuid.UUID(bytes=one) for one in ids]):
                counted = np.frombuffer(parts, "<u4").tolist()
                found[name.bytes] = found.get(name.bytes, frozenset()).union(counted)
        return found

    def _numbered(
        self, table: str, known: Mapping[Any, int], wanted: Iterable[Any], row: Callable[[Any], Any]
    ) -> dict[Any, int]:
        """Gives numbers to what has none yet."""
        numbers = dict(known)
        for key in wanted:
            if key not in numbers:
                numbers[key] = len(numbers)
                values = (numbers[key], *row(key))
                marks = ", ".join("?" * len(values))
                self._execute(f"INSERT INTO {table} VALUES ({marks})", values)
        return numbers

    # -- reading ----------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """One state of the store, in a connection of its own: from any thread, beside writes.

        Raises:
            StorageError: it cannot be read.
        """
        reader = self._open_reader()
        try:
            with self._reads:
                if self._closing:
                    raise StorageError(f"{self.name} is closed")
                self._readers.add(reader)
            yield reader
        finally:
            with self._reads:
                self._readers.discard(reader)
                reader.close()
                self._reads.notify()

    def close(self) -> None:
        """Ends what reads, and lets go of the database."""
        with self._reads:
            self._closing = True
            while self._readers:
                for reader in self._readers:
                    reader.end()
                # One may be between two statements, and begin the next.
                self._reads.wait(0.1)
        self._let_go()

    # -- upkeep -----------------------------------------------------------------------------------

    def tidy(self, keep_days: int = 400) -> None:
        """All of `tidying` at once.

        Raises:
            StorageError: what was to be done last was not.
        """
        for _ in self.tidying(keep_days):
            pass

    def tidying(self, keep_days: int = 400, portion: int = upkeep.PORTION) -> Iterator[None]:
        """Adds up cells of hours that are over, and of days that are a week old; forgets ids and
        devices of which the time is over, and everything older than ``keep_days``.

        One short transaction at a time: between two steps there may be writes.

        Args:
            portion: rows that a step reads, about.

        Raises:
            StorageError: a step was not done; those before it were.
        """
        for step in upkeep.steps(self.query, self.hour(), keep_days, portion):
            # What is written from here on is marked anew, and then the mark stays.
            self._marks -= step.begun
            ended = step.ended - self._marks
            with self._transaction():
                for sql in step.statements:
                    self._execute(sql)
                for mark in ended:
                    self._execute("DELETE FROM waiting WHERE kind = ? AND which = ?", mark)
            yield
        self._settle()


def _series_row(series: Series) -> Row:
    return (series.metric, series.scale, *series.values)


def _seen_columns(seen: Sequence[tuple[bytes, list[int]]], day: int) -> dict[str, Any]:
    ids, parts = np.empty(len(seen), dtype=object), np.empty(len(seen), dtype=object)
    ids[:] = [str(uuid.UUID(bytes=name)) for name, _ in seen]
    parts[:] = [np.array(new, "<u4").tobytes() for _, new in seen]
    return {"id": ids, "day": np.full(len(seen), day, np.int32), "parts": parts}


def first_line(error: BaseException) -> str:
    """What an error says, cut short."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def is_postgres(store: str) -> bool:
    """Whether a store is named by a URL of PostgreSQL's."""
    return store.lower().startswith(("postgresql://", "postgres://"))
