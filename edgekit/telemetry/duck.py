"""The store as a DuckDB file, which one process at a time can open."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import time_ns
from typing import Any, Final

import duckdb
import numpy as np

from edgekit.errors import BadData, Locked, StorageError
from edgekit.telemetry.store import Row, Store, first_line

__all__ = ["DuckStore"]

_CONFIG: Final = {
    "threads": 2,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_CAST: Final = {"device": "::UUID", "id": "::UUID", "parts": "::BLOB"}


class DuckStore(Store):
    """A store in a file.

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
        super().__init__(str(path), clock_ns)
        self.path = path
        self._db = _open(path, read_only)
        try:
            self._prepare(read_only)
            if not read_only:
                # Not before it is known to be ours.
                _keep_private(path)
        except BaseException:
            self._db.close()
            raise

    def _let_go(self) -> None:
        # Writes what is in the log into the file.
        self._db.close()

    def size(self) -> int | None:
        """Of its file, and of the log beside it."""
        files = (self.path, self.path.with_name(f"{self.path.name}.wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """See `Store.query`."""
        return _rows(self._db, self.name, sql, parameters)

    def _open_reader(self) -> _Cursor:
        try:
            cursor = self._db.cursor()
            cursor.execute("BEGIN")
        except duckdb.Error as error:
            raise StorageError(f"{self.name} cannot be read: {first_line(error)}") from error
        return _Cursor(cursor, self.name)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except duckdb.Error as error:
            raise StorageError(f"{self.name} cannot be written: {first_line(error)}") from error

    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self._db.execute(sql, parameters)

    def _tables(self) -> set[str]:
        return {name for (name,) in self.query("SHOW TABLES")}

    def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        self._db.register("incoming", dict(columns))
        names = ", ".join(f"{name}{_CAST.get(name, '')}" for name in columns)
        self._db.execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {names} FROM incoming")
        self._db.unregister("incoming")

    def _seen(self, ids: Sequence[uuid.UUID]) -> list[Row]:
        self._db.register("asked", {"id": np.array([str(one) for one in ids], dtype=object)})
        rows: list[Row] = self._db.execute(
            "SELECT id, parts FROM seen WHERE id IN (SELECT id::UUID FROM asked)"
        ).fetchall()
        self._db.unregister("asked")
        return rows

    def _settle(self) -> None:
        try:
            self._db.execute("CHECKPOINT")
        except duckdb.Error as error:
            raise StorageError(f"{self.name} cannot be written: {first_line(error)}") from error


class _Cursor:
    """See `edgekit.telemetry.store.OpenReader`."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, name: str) -> None:
        self._cursor, self._name = cursor, name

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return _rows(self._cursor, self._name, sql, parameters)

    def end(self) -> None:
        self._cursor.interrupt()

    def close(self) -> None:
        self._cursor.close()


def _rows(
    db: duckdb.DuckDBPyConnection, name: str, sql: str, parameters: Sequence[Any]
) -> list[Row]:
    try:
        rows: list[Row] = db.execute(sql, parameters).fetchall()
    except (duckdb.IOException, duckdb.InterruptException, duckdb.OutOfMemoryException) as error:
        raise StorageError(f"{name} cannot be read: {first_line(error)}") from error
    return rows


def _keep_private(path: Path) -> None:
    try:
        path.chmod(0o600)
    except OSError as error:
        raise StorageError(f"{path} cannot be kept private: {error.strerror}") from error


def _open(path: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    try:
        if not read_only and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        # By its whole path: what begins with a word and a colon is for an extension, which DuckDB
        # would fetch.
        db = duckdb.connect(str(path.absolute()), read_only=read_only, config=_CONFIG)
        # Nothing that is asked of it reaches for another file, or the network.
        db.execute("SET enable_external_access = false")
    except (duckdb.Error, OSError) as error:
        if "lock" in str(error).lower():
            raise Locked(
                f"{path} is open in another process",
                hint="a receiver that has it answers for it: edgekit telemetry report "
                "http://127.0.0.1:4318",
            ) from error
        foreign = "not a valid" in str(error) or not isinstance(error, OSError | duckdb.IOException)
        kind = BadData if foreign else StorageError
        raise kind(f"{path} cannot be opened: {first_line(error)}") from error
    return db
