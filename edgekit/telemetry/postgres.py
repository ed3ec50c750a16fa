"""The store in PostgreSQL: the same tables, for fleets that outgrow a file.

One receiver at a time writes: it holds an advisory lock for as long as its connection lives, and
has its tables' numbers in memory. Where the connection is lost, the write that it was in fails as
a whole or has been committed; devices send again what was not acknowledged, and ids tell which it
was. The next write connects anew, takes the lock anew, and reads the tables anew.

Reports need no receiver: they read from connections of their own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import conninfo

from edgekit.errors import Locked, StorageError, UsageError
from edgekit.telemetry.store import Row, Store, first_line, is_postgres
from edgekit.telemetry.tables import DDL

__all__ = ["PostgresStore"]

_FORM: Final = (
    "postgresql://USER@HOST:5432/DATABASE?sslmode=verify-full, with what is special in it "
    "percent-encoded: @ is %40"
)

# What the URL does not say. A server that vanishes is noticed within a minute, not within hours.
_DEFAULTS: Final = {
    "application_name": "edgekit-telemetry",
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "40000",
}

# Rows of one time are found without reading the table; DuckDB needs no index for that.
_INDEXES: Final = tuple(
    f"CREATE INDEX {table}_{column} ON {table} ({column})"
    for table, column in (
        ("cell", "hour"), ("moment", "hour"), ("event", "hour"), ("device_day", "day"),
        ("seen", "day"),
    )
)  # fmt: skip

# Of the schema, so that two may be used by two receivers.
_LOCK: Final = "SELECT pg_try_advisory_lock(1701079918, hashtext(current_schema()))"
# Reports add up millions of rows to thousands, and the planner expects a few: it would sort them on
# the disk, in four times the time.
_FOR_REPORTS: Final = "SET enable_sort = off; SET work_mem = '64MB'"

_LOCK_S: Final = 2.0


class PostgresStore(Store):
    """A store in a database.

    Args:
        url: ``postgresql://USER@HOST/DATABASE``, with any parameters that libpq has (``sslmode``).
            The database has nothing else in its first schema; the tables are made where there are
            none. A password is better in ``PGPASSWORD``, ``~/.pgpass`` or a service file.
        read_only: for reports, beside the receiver.
        clock_ns: nanoseconds since 1970.

    Raises:
        UsageError: it is no such URL.
        BadData: the database is no store of this version.
        Locked: a receiver writes to it.
        StorageError: it cannot be reached, read or written.
    """

    _ddl = (*DDL, *_INDEXES)

    def __init__(
        self, url: str, *, read_only: bool = False, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._parameters = _parameters(url)
        super().__init__(_shown(self._parameters), clock_ns)
        self._read_only = read_only
        self._db: psycopg.Connection[Row] | None = None
        self._within = False
        self._connected()

    def _let_go(self) -> None:
        if self._db is not None:
            self._db.close()

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """See `Store.query`."""
        return _rows(self._connected(), self.name, sql, parameters)

    # -- connections ------------------------------------------------------------------------------

    def _connected(self) -> psycopg.Connection[Row]:
        if self._db is not None and not self._db.closed:
            return self._db
        if self._within:
            # Another connection knows nothing of the transaction that this one was in.
            raise StorageError(f"{self.name} cannot be written: the connection was lost")
        self._db = self._connect()
        try:
            if not self._read_only:
                self._lock(self._db)
            self._prepare(self._read_only)
        except BaseException:
            self._db.close()
            raise
        return self._db

    def _lock(self, db: psycopg.Connection[Row]) -> None:
        end = time.monotonic() + _LOCK_S
        while _rows(db, self.name, _LOCK, ()) != [(True,)]:
            # A server sees only after a moment that a receiver that had it was killed.
            if time.monotonic() > end:
                raise Locked(
                    f"{self.name} is written by another receiver",
                    hint="end that one, or give this one a database of its own",
                )
            time.sleep(0.1)

    def _connect(self) -> psycopg.Connection[Row]:
        try:
            db: psycopg.Connection[Row] = psycopg.connect(
                **self._parameters, autocommit=True, cursor_factory=psycopg.ClientCursor
            )
            # What is acknowledged is on the disk, however the server is set up.
            db.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
        except psycopg.Error as error:
            reason = _without(first_line(error), self._parameters)
            raise StorageError(f"{self.name} cannot be opened: {reason}") from None
        return db

    def _open_reader(self) -> _Connection:
        db = self._connect()
        try:
            db.execute(_FOR_REPORTS)
        except psycopg.Error as error:
            db.close()
            raise StorageError(f"{self.name} cannot be read: {first_line(error)}") from error
        db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        db.autocommit = False
        return _Connection(db, self.name)

    # -- writing ----------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        db = self._connected()
        self._within = True
        try:
            with db.transaction():
                yield
        except psycopg.Error as error:
            raise StorageError(f"{self.name} cannot be written: {first_line(error)}") from error
        finally:
            self._within = False

    def _execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self._connected().execute(_dialect(sql, bool(parameters)), parameters or None)

    def _tables(self) -> set[str]:
        rows = self.query("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
        return {name for (name,) in rows}

    def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        copied = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        with self._connected().cursor() as cursor, cursor.copy(copied) as copy:
            for row in zip(*(column.tolist() for column in columns.values()), strict=True):
                copy.write_row(row)

    def _seen(self, ids: Sequence[uuid.UUID]) -> list[Row]:
        return self.query("SELECT id, parts FROM seen WHERE id = ANY(?)", [list(ids)])


class _Connection:
    """See `edgekit.telemetry.store.OpenReader`."""

    def __init__(self, db: psycopg.Connection[Row], name: str) -> None:
        self._db, self._name = db, name

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return _rows(self._db, self._name, sql, parameters)

    def end(self) -> None:
        with suppress(psycopg.Error):
            self._db.cancel()

    def close(self) -> None:
        # Its transaction was never committed.
        self._db.close()


def _rows(db: psycopg.Connection[Row], name: str, sql: str, parameters: Sequence[Any]) -> list[Row]:
    try:
        cursor = db.execute(_dialect(sql, bool(parameters)), parameters or None)
        return cursor.fetchall() if cursor.description is not None else []
    except psycopg.Error as error:
        raise StorageError(f"{name} cannot be read: {first_line(error)}") from error


def _dialect(sql: str, with_parameters: bool) -> Any:
    """A statement of DuckDB's as PostgreSQL has it: whole division is ``/`` of whole numbers there,
    and psycopg marks parameters by ``%s``."""
    sql = sql.replace("//", "/")
    return sql.replace("%", "%%").replace("?", "%s") if with_parameters else sql


# -- URLs -----------------------------------------------------------------------------------------


def _parameters(url: str) -> dict[str, Any]:
    # What is wrong with it is not quoted: a part of a password may stand anywhere.
    try:
        parts = urlsplit(url)
        if parts.netloc.count("@") > 1 or "@" in parts.path or not is_postgres(url):
            raise ValueError
        found = conninfo.conninfo_to_dict(url)
        for port in str(found.get("port") or "5432").split(","):
            int(port)
    except (ValueError, psycopg.Error):
        raise UsageError("the database's URL cannot be read", hint=f"allowed: {_FORM}") from None
    return {**_DEFAULTS, **found}


def _shown(parameters: Mapping[str, Any]) -> str:
    """What a database is called: no password, and none of the files that prove who we are."""
    user = f"{quote(str(parameters['user']), safe='')}@" if "user" in parameters else ""
    host = str(parameters.get("host", ""))
    place = quote(host, safe="[]:,") if not host.startswith("/") else quote(host, safe="")
    port = f":{parameters['port']}" if "port" in parameters else ""
    name = quote(str(parameters.get("dbname", "")), safe="")
    return f"postgresql://{user}{place}{port}/{name}"


def _without(message: str, parameters: Mapping[str, Any]) -> str:
    for name in ("password", "sslpassword"):
        if parameters.get(name):
            message = message.replace(str(parameters[name]), "***")
    return message
