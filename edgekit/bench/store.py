"""Results that stay: an SQLite file of measurements, appended to and never rewritten.

One row is one measurement: the artifacts of one subject, on one device, with one setting, as the
``edgekit.bench/1`` document with its raw samples. Failures are rows too.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from edgekit.bench.leases import state_folder
from edgekit.errors import BadData, StorageError, UsageError

__all__ = ["Measurement", "Store", "default_store"]

_VERSION: Final = 1
_TABLES = """
CREATE TABLE session (
  id INTEGER PRIMARY KEY, matrix TEXT NOT NULL, created TEXT NOT NULL, finished TEXT
);
CREATE TABLE measurement (
  id INTEGER PRIMARY KEY, session INTEGER REFERENCES session (id), cell TEXT,
  created TEXT NOT NULL, url TEXT NOT NULL, device TEXT, subject TEXT NOT NULL,
  settings TEXT NOT NULL, status TEXT NOT NULL, reason TEXT, attempts INTEGER NOT NULL,
  document BLOB
);
CREATE INDEX measurement_cell ON measurement (session, cell);
"""


@dataclass(frozen=True)
class Measurement:
    """One row.

    Attributes:
        id: its number.
        session: the run of a matrix that it belongs to, None for a single one.
        cell: which cell of the matrix it is.
        created: when it was finished, UTC.
        url: the device's.
        device: id of the device's profile, None if none was named.
        subject: what was measured: the bundle or the artifact's file.
        settings: how.
        status: ``ok`` or ``failed``.
        reason: why it failed.
        attempts: how often it was tried, as a whole.
        document: the ``edgekit.bench/1`` document, None if it failed.
    """

    id: int
    session: int | None
    cell: str | None
    created: str
    url: str
    device: str | None
    subject: str
    settings: dict[str, Any]
    status: str
    reason: str | None
    attempts: int
    document: dict[str, Any] | None


_COLUMNS: Final = tuple(Measurement.__dataclass_fields__)


def default_store() -> Path:
    """Where results lie unless a file is named."""
    return state_folder() / "bench.sqlite"


class Store:
    """The file; several processes may append at a time.

    Args:
        path: the file; made where it is not there.

    Raises:
        StorageError: it cannot be written.
        BadData: it is not such a file, or a newer edgekit's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as base:
                base.execute("PRAGMA journal_mode = WAL")
                base.execute("BEGIN IMMEDIATE")
                (version,) = base.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in _TABLES.split(";"):
                        base.execute(statement)
                    base.execute(f"PRAGMA user_version = {_VERSION}")
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        if version not in (0, _VERSION):
            raise BadData(f"{path} is of version {version}; this edgekit knows {_VERSION}")

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One connection for one transaction: threads share no connection."""
        try:
            base = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            try:
                yield base
                if base.in_transaction:
                    base.execute("COMMIT")
            finally:
                base.close()
        except sqlite3.DatabaseError as error:
            if "disk" in str(error) or "readonly" in str(error) or "unable to open" in str(error):
                raise StorageError(f"cannot write {self.path}: {error}") from error
            raise BadData(f"{self.path} is no store of results: {error}") from error

    def session(self, matrix: str, *, again: bool) -> int:
        """The unfinished run of a matrix, or a new one.

        Args:
            matrix: digest of what is measured and how.
            again: a new one in any case.
        """
        with self._open() as base:
            base.execute("BEGIN IMMEDIATE")
            found = base.execute(
                "SELECT id FROM session WHERE matrix = ? AND finished IS NULL ORDER BY id DESC",
                (matrix,),
            ).fetchone()
            if found is not None and not again:
                return int(found[0])
            added = base.execute(
                "INSERT INTO session (matrix, created) VALUES (?, ?)", (matrix, _now())
            )
            return int(added.lastrowid or 0)

    def finish(self, session: int) -> None:
        """Says that nothing of a session is left to measure."""
        with self._open() as base:
            base.execute("UPDATE session SET finished = ? WHERE id = ?", (_now(), session))

    def append(
        self,
        *,
        url: str,
        device: str | None,
        subject: str,
        settings: Mapping[str, Any],
        document: Mapping[str, Any] | None = None,
        reason: str | None = None,
        attempts: int = 1,
        session: int | None = None,
        cell: str | None = None,
    ) -> int:
        """Adds a measurement, failed where there is no document; its number."""
        text = None if document is None else json.dumps(document, allow_nan=False)
        values = (
            session,
            cell,
            _now(),
            url,
            device,
            subject,
            json.dumps(dict(settings), sort_keys=True),
            "failed" if document is None else "ok",
            reason,
            attempts,
            None if text is None else zlib.compress(text.encode()),
        )
        with self._open() as base:
            added = base.execute(
                "INSERT INTO measurement (session, cell, created, url, device, subject, settings, "
                "status, reason, attempts, document) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            return int(added.lastrowid or 0)

    def measurements(
        self,
        *,
        id: int | None = None,
        session: int | None = None,
        device: str | None = None,
        subject: str | None = None,
        limit: int = -1,
    ) -> list[Measurement]:
        """Measurements that fit, the newest first.

        Args:
            id: of one.
            session: of one run of a matrix.
            device: its URL or its profile's id.
            subject: a part of its name.
            limit: at most so many; -1: all.
        """
        where: list[str] = ["1"]
        values: list[int | str] = []
        for column, value in (("id", id), ("session", session)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        if device is not None:
            where.append("? IN (url, device)")
            values.append(device)
        if subject is not None:
            where.append("instr(subject, ?) > 0")
            values.append(subject)
        query = (
            f"SELECT {', '.join(_COLUMNS)} FROM measurement WHERE {' AND '.join(where)} "
            "ORDER BY id DESC LIMIT ?"
        )
        with self._open() as base:
            rows = base.execute(query, (*values, limit)).fetchall()
        return [self._measurement(row) for row in rows]

    def measurement(self, id: int) -> Measurement:
        """One measurement.

        Raises:
            UsageError: there is none of that number.
        """
        found = self.measurements(id=id)
        if not found:
            raise UsageError(
                f"{self.path} has no measurement {id}", hint="which it has: edgekit bench history"
            )
        return found[0]

    def _measurement(self, row: Sequence[Any]) -> Measurement:
        told = dict(zip(_COLUMNS, row, strict=True))
        blob = told["document"]
        try:
            told["settings"] = json.loads(told["settings"])
            told["document"] = None if blob is None else json.loads(zlib.decompress(blob))
        except (ValueError, zlib.error) as error:
            raise BadData(f"{self.path}: measurement {row[0]} is damaged: {error}") from error
        return Measurement(**told)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
