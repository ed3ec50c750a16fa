"""What a store in PostgreSQL has of its own: secrets, its server's absence, and its lock."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")
pytest.importorskip("psycopg", reason="pip install 'edgekit[postgresql]'")

import psycopg
from postgres_server import PASSWORD
from receiving import Receiving, crash, logs_request, metrics_record, receiver, window, zipped

from edgekit.cli.main import main
from edgekit.errors import BadData, EdgekitError, Locked, StorageError, UsageError
from edgekit.runtime import otlp
from edgekit.telemetry.postgres import PostgresStore
from edgekit.telemetry.reading import read_metrics
from edgekit.telemetry.store import Reader
from edgekit.telemetry.tables import VERSION

if TYPE_CHECKING:
    from postgres_server import Server


@pytest.fixture
def url(database: Server) -> str:
    return database.database()


def record(event: str | None = None) -> bytes:
    return otlp.request([metrics_record(window(), event=event or uuid.uuid4().hex)])


def total(store: Reader) -> int:
    sql = "SELECT sum(n)::BIGINT FROM cell JOIN series ON series = id WHERE metric = ?"
    return store.query(sql, ["edgekit.inference.requests"])[0][0] or 0


# -- secrets --------------------------------------------------------------------------------------


def test_the_password_is_nowhere(
    database: Server, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "receiver.log"
    with receiver(url, log=log) as running:
        assert running.store == url.replace(f":{url.split(':')[2].partition('@')[0]}@", "@")
        assert running.post("/v1/metrics", *zipped(record()))[0] == 200
        # What it logs when its server fails it.
        database.stop(signal.SIGQUIT)
        assert running.post("/v1/metrics", *zipped(record()))[0] == 503
        assert running.post("/v1/metrics", *zipped(record()))[0] == 503
        assert running.get("/v1/report")[0] == 503
        database.start()
    wrong = url.replace(database.url("").partition("@")[0], "postgresql://fleet:other-s3cret")
    said = [log.read_text(), running.store]
    for place in (wrong, url.replace("fleet:", "nobody:"), url + "x"):
        assert main(["telemetry", "report", place]) == 8
        said += [*capsys.readouterr()]
        with pytest.raises(StorageError) as raised:
            PostgresStore(place)
        said.append(f"{raised.value!r} {raised.value.__cause__!r}")
    assert main(["telemetry", "report", url, "--json"]) == 0
    said += [*capsys.readouterr()]
    for text in said:
        assert "s3cret" not in text and PASSWORD not in text
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    # The watch may look while the database is away, or not.
    told = [entry for entry in logged if entry["message"] != "the watch could not look"]
    assert [entry["message"] for entry in told if "reason" in entry] == [
        "nothing can be written", "nothing can be written", "the store cannot be read",
    ]  # fmt: skip
    assert "fleet@" in told[0]["reason"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://fleet:pa/ss@host/db",
        "postgresql://fleet:pa@ss@host/db",
        "postgresql://fleet:pa#ss@host:x/db",
        "postgresql://fleet:pass@host:port/db",
        "postgresql://fleet:password/db",
        "postgresql://fleet:pass@host/db?sslmod=require",
        "postgresql://fleet:pa%zzss@host/db",
        "postgresql://fleet:pass@[::1/db",
    ],
)
def test_a_url_that_is_wrong_is_not_quoted(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        PostgresStore(url)
    assert "pa" not in str(raised.value).replace("parameters", "").replace("percent-encoded", "")
    assert "%40" in raised.value.hint
    assert raised.value.__cause__ is None


def test_parameters_of_the_url_go_to_libpq(database: Server) -> None:
    loopback = database.url("postgres", loopback=True)
    with pytest.raises(StorageError, match="does not support SSL"):
        PostgresStore(f"{loopback}?sslmode=require")
    with pytest.raises(StorageError, match="invalid sslmode"):
        PostgresStore(f"{loopback}?sslmode=maybe")
    with pytest.raises(BadData, match="no store"):
        PostgresStore(f"{loopback}?sslmode=prefer", read_only=True)


# -- what it is -----------------------------------------------------------------------------------


def test_a_newer_store_and_another_database_are_refused(url: str) -> None:
    PostgresStore(url).close()
    with psycopg.connect(url) as db:
        db.execute("UPDATE about SET version = version + 1")
    with pytest.raises(BadData, match=f"version {VERSION + 1}, this edgekit reads {VERSION}"):
        PostgresStore(url)
    with psycopg.connect(url) as db:
        db.execute("DROP TABLE about")
    with pytest.raises(BadData, match="no store of telemetry"):
        PostgresStore(url)
    # A schema of one's own is as good as a database.
    with psycopg.connect(url) as db:
        db.execute("CREATE SCHEMA telemetry")
    with PostgresStore(f"{url}?options=-csearch_path%3Dtelemetry") as store:
        store.write(read_metrics(record()).deliveries)
        assert total(store) == 10


def test_what_is_not_there_yet_is_not_made_by_a_report(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["telemetry", "report", url]) == 7
    assert "no store of telemetry" in capsys.readouterr().err


def test_one_receiver_writes_and_reports_are_read_beside_it(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with PostgresStore(url) as one:
        one.write(read_metrics(record()).deliveries)
        with pytest.raises(Locked, match="another receiver"):
            PostgresStore(url)
        assert main(["telemetry", "serve", url, "--port", "0"]) == 9
        assert main(["telemetry", "report", url, "--json", "--by", "all"]) == 0
        assert json.loads(capsys.readouterr().out)["base_cells"] == {"shown": 0, "left_out": None}
    with PostgresStore(url) as two:
        assert total(two) == 10


def test_what_is_acknowledged_is_on_the_disk_however_the_server_is_set_up(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as db:
        ((name,),) = db.execute("SELECT current_database()").fetchall()
        db.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with PostgresStore(url) as store:
        assert store.query("SHOW synchronous_commit") == [("on",)]


# -- its server's absence -------------------------------------------------------------------------


def until(answered: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not answered():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_server_that_restarts_loses_nothing(database: Server, url: str, tmp_path: Path) -> None:
    events = [uuid.uuid4().hex for _ in range(6)]
    device = uuid.uuid4().hex

    def sent(running: Receiving, event: str) -> bool:
        return running.post("/v1/metrics", *zipped(record(event)))[0] == 200

    with receiver(url, log=tmp_path / "log") as running:
        assert sent(running, events[0])
        for how, event in ((signal.SIGINT, events[1]), (signal.SIGQUIT, events[2])):
            database.stop(how)
            assert not sent(running, event)
            assert running.get("/health/live")[0] == 200
            database.start()
            until(lambda event=event: sent(running, event))
        for event in events:
            assert sent(running, event)
        log = logs_request([crash(uuid.uuid4().hex)], device)
        assert running.post("/v1/logs", *zipped(log))[0] == 200
        assert running.get("/v1/report")[0] == 200
        assert running.end() == 0
    with PostgresStore(url) as store:
        assert total(store) == 60
        assert store.query("SELECT count(*) FROM event") == [(1,)]
        assert store.query("SELECT count(*) FROM seen") == [(7,)]


def test_a_connection_that_is_ended_fails_one_write_whole(url: str) -> None:
    with PostgresStore(url) as store:
        first = read_metrics(record()).deliveries
        store.write(first)
        with psycopg.connect(url, autocommit=True) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid != pg_backend_pid()"
            )
        second = read_metrics(record()).deliveries
        with pytest.raises(StorageError):
            store.write(second)

        def written() -> bool:
            try:
                store.write(second)
            except EdgekitError:  # the lock is held until its server sees that we are gone
                return False
            return True

        until(written)
        assert store.write([*first, *second]).duplicates == 2
        assert total(store) == 20
        # Numbers that another receiver has given meanwhile are read anew.
        assert len(store.query("SELECT DISTINCT cohort, series FROM cell")) == len(
            store.query("SELECT id FROM series")
        )


class Cutting:
    """A way to a server that cuts connections once a commit has been answered, before its answer
    comes through."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut = False
        self.commits = 0
        self._committing = threading.Event()
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            for way in ((client, server, True), (server, client, False)):
                self._threads.append(threading.Thread(target=self._pass, args=way))
                self._threads[-1].start()

    def _pass(self, source: socket.socket, to: socket.socket, out: bool) -> None:
        while True:
            try:
                data = source.recv(65_536)
                if out and self.cut and b"COMMIT" in data:
                    self._committing.set()
                if not out and self._committing.is_set():
                    assert b"COMMIT" in data
                    self.cut, data = False, b""
                    self.commits += 1
                    self._committing.clear()
                if data:
                    to.sendall(data)
            except OSError:
                data = b""
            if not data:
                for end in (source, to):
                    with_no_error(end.shutdown, socket.SHUT_RDWR)
                    end.close()
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)


def with_no_error(do: Callable[..., object], *arguments: object) -> None:
    with suppress(OSError):
        do(*arguments)


@contextmanager
def cutting(port: int) -> Iterator[Cutting]:
    way = Cutting(port)
    try:
        yield way
    finally:
        way.close()


def test_a_commit_of_which_the_answer_was_lost_is_counted_once(database: Server, url: str) -> None:
    name = url.rpartition("/")[2]
    with cutting(database.port) as way:
        through = database.url(name, loopback=True).replace(f":{database.port}", f":{way.port}")
        with PostgresStore(through) as store:
            store.write(read_metrics(record()).deliveries)
            way.cut = True
            lost = read_metrics(record()).deliveries
            with pytest.raises(StorageError):
                store.write(lost)
            assert way.commits == 1
            with PostgresStore(url, read_only=True) as beside:
                assert total(beside) == 20

            found = []

            def again() -> bool:
                try:
                    found.append(store.write(lost).duplicates)
                except EdgekitError:
                    return False
                return True

            until(again)
            assert found == [1]
            assert total(store) == 20
