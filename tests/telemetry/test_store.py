"""The store, whichever database keeps it: one state for a report, and upkeep between writes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from receiving import PROTOBUF, ROOT, crash, logs_request, metrics_record, window

from edgekit.runtime import otlp
from edgekit.serve.call import Call, Reply
from edgekit.serve.refusal import Refusal
from edgekit.telemetry import question
from edgekit.telemetry.ingest import Ingest
from edgekit.telemetry.reading import HOUR_NS, read_logs, read_metrics
from edgekit.telemetry.store import Reader, Store

NOW = time.time_ns() // (24 * HOUR_NS) * (24 * HOUR_NS) + 12 * HOUR_NS
"""Noon: so that a few hours before and after are of the same day."""

HOUR = NOW // HOUR_NS


class Clock:
    """A receiver's clock, which a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(opened: Callable[..., Store], clock: Clock) -> Store:
    return opened(clock)


def send(store: Store, time_ns: int, n: int = 10, **more: Any) -> None:
    record = metrics_record(window(n), time_ns=time_ns, **more)
    store.write(read_metrics(otlp.request([record])).deliveries)


def total(store: Reader) -> int:
    sql = "SELECT sum(n)::BIGINT FROM cell JOIN series ON series = id WHERE metric = ?"
    return store.query(sql, ["edgekit.inference.requests"])[0][0] or 0


def sums(store: Reader) -> list[tuple[Any, ...]]:
    """All that is counted, by the day."""
    return [
        *store.query(
            "SELECT hour // 24, cohort, series, bucket, sum(n)::BIGINT FROM cell "
            "GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4"
        ),
        *store.query(
            "SELECT hour // 24, cohort, series, sum(n)::BIGINT, min(low), max(high), "
            "round(sum(total)::NUMERIC, 6)::VARCHAR FROM moment GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        ),
        *store.query(
            "SELECT day, cohort, device, sum(requests)::BIGINT, sum(crashes)::BIGINT "
            "FROM device_day GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        ),
    ]


def test_a_reader_sees_one_state(store: Store) -> None:
    send(store, NOW)
    with store.reading() as reader:
        assert total(reader) == 10
        send(store, NOW)
        assert total(reader) == 10
        assert total(store) == 20
    with store.reading() as reader:
        assert total(reader) == 20


# -- upkeep ---------------------------------------------------------------------------------------


def fill(store: Store) -> None:
    """Two devices; hours of today, yesterday, and a day of more than a week ago, each twice."""
    devices = uuid.uuid4().hex, uuid.uuid4().hex
    for back in (0, 1, 2, 30, 9 * 24, 9 * 24 + 1):
        for device in devices:
            for _ in range(2):
                send(store, NOW - back * HOUR_NS, device=device)
    store.write(read_logs(logs_request([crash(uuid.uuid4().hex)], devices[0])).deliveries)


def test_upkeep_adds_up_the_same_in_portions_of_any_size(store: Store) -> None:
    fill(store)
    before = sums(store)
    ((rows,),) = store.query("SELECT count(*) FROM cell")
    steps = sum(1 for _ in store.tidying(portion=5))
    assert steps > 20
    assert sums(store) == before
    hours = {hour for (hour,) in store.query("SELECT DISTINCT hour FROM cell")}
    # The hour that goes on stays as it is; of more than a week ago there is the day.
    assert hours == {HOUR, HOUR - 1, HOUR - 2, HOUR - 30, (HOUR - 9 * 24) // 24 * 24}
    keys = "SELECT hour, cohort, series, bucket FROM cell WHERE hour < ?"
    one = store.query(f"SELECT count(*) FROM (SELECT DISTINCT * FROM ({keys}) AS k) AS d", [HOUR])
    assert store.query("SELECT count(*) FROM cell WHERE hour < ?", [HOUR]) == one
    assert store.query("SELECT count(*) FROM cell")[0][0] < rows / 2
    assert store.query("SELECT count(*) FROM device_day") == [(6,)]


def test_upkeep_that_has_been_is_not_done_again(store: Store) -> None:
    fill(store)
    store.tidy()
    left = {("hour", HOUR), *(("fine", (HOUR - back) // 24) for back in (0, 30))}
    assert set(store.query("SELECT kind, which FROM waiting")) == left
    assert list(store.tidying()) == []


def test_what_is_written_between_two_steps_is_kept_and_added_up_later(
    store: Store, clock: Clock
) -> None:
    fill(store)
    sent = total(store)
    for i, _ in enumerate(store.tidying(portion=20)):
        # Into an hour that is being added up, and into the present one.
        send(store, NOW - (i % 3) * HOUR_NS, n=1)
        sent += 1
    assert total(store) == sent
    clock.now += 3 * HOUR_NS
    store.tidy()
    assert total(store) == sent
    doubled = store.query(
        "SELECT 1 FROM cell GROUP BY hour, cohort, series, bucket HAVING count(*) > 1"
    )
    assert doubled == []


KILLED = """
import os, sys
from edgekit.cli._telemetry_store import open_store
store = open_store(sys.argv[1])
store._clock_ns = lambda: int(sys.argv[2])
execute = store._execute
def killed(sql, parameters=()):
    execute(sql, parameters)
    if sql.startswith("DELETE FROM " + sys.argv[3]):
        os.kill(os.getpid(), 9)
store._execute = killed
store.tidy()
"""


def test_upkeep_that_is_killed_half_way_leaves_all_as_it_was(
    store: Store, where: str, opened: Callable[..., Store], clock: Clock
) -> None:
    fill(store)
    before = sums(store)
    for table in ("cell", "device_day"):
        store.close()
        command = [sys.executable, "-c", KILLED, where, str(NOW), table]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
        store = opened(clock)
        assert sums(store) == before
    store.tidy()
    assert sums(store) == before
    assert list(store.tidying()) == []


def test_what_is_too_old_goes_in_portions(store: Store, clock: Clock) -> None:
    for i in range(20):
        send(store, NOW - i % 2 * 24 * HOUR_NS, event=uuid.uuid4().hex)
    clock.now += 36 * 24 * HOUR_NS
    assert sum(1 for _ in store.tidying(portion=4)) > 10
    assert store.query("SELECT count(*) FROM seen") == [(0,)]
    assert store.query("SELECT count(*) FROM device_day") == [(0,)]
    assert store.query("SELECT devices, requests FROM cohort_day ORDER BY day") == [(10, 100)] * 2
    clock.now += 10 * 24 * HOUR_NS
    store.tidy(keep_days=36)
    assert total(store) == 0
    assert store.query("SELECT count(*) FROM cohort_day") == [(0,)]


def test_no_name_of_a_device_is_kept_longer_than_said(store: Store, clock: Clock) -> None:
    for _ in range(3):
        log = logs_request([crash(uuid.uuid4().hex)], uuid.uuid4().hex)
        store.write(read_logs(log).deliveries)
    named = "SELECT count(*), count(DISTINCT device) FROM event"
    store.tidy()
    assert store.query(named) == [(3, 3)]
    clock.now += 37 * 24 * HOUR_NS
    store.tidy()
    assert store.query(named) == [(3, 0)]
    assert store.query("SELECT count(*) FROM device_day") == [(0,)]


# -- beside ingest --------------------------------------------------------------------------------


def call(method: str, path: str, body: bytes = b"", query: str = "") -> Call:
    async def read() -> bytes:
        return body

    return Call(method, path, {"content-type": PROTOBUF["Content-Type"]}, read, query)


async def post(ingest: Ingest) -> Reply:
    body = otlp.request([metrics_record(window(), event=uuid.uuid4().hex)])
    return await ingest.handle(call("POST", "/v1/metrics", body))


@pytest.mark.parametrize("path", ["/v1/report", "/v1/canary"])
def test_devices_are_answered_while_a_report_runs(
    store: Store, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    seen: list[int] = []
    name = {"/v1/report": "report", "/v1/canary": "against"}[path]
    made = getattr(question, name)

    def held(reader: Reader, *arguments: Any, **more: Any) -> dict[str, Any]:
        seen.append(total(reader))
        begun.set()
        assert go_on.wait(60)
        seen.append(total(reader))
        document: dict[str, Any] = made(reader, *arguments, **more)
        return document

    async def run() -> None:
        ingest = Ingest(store)
        assert (await post(ingest)).status == 200
        query = "" if name == "report" else "control=1.0&canary=1.1"
        asked = asyncio.create_task(ingest.handle(call("GET", path, query=query)))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        assert ingest.current == 1
        for _ in range(3):
            assert (await asyncio.wait_for(post(ingest), 60)).status == 200
        await asyncio.wait_for(ingest.tidy(400), 60)
        assert not asked.done()
        go_on.set()
        reply = await asked
        assert reply.status == 200
        assert json.loads(reply.body)["k"] == 10
        assert total(store) == 40
        assert ingest.current == 0
        await ingest.close()

    monkeypatch.setattr(question, name, held)
    asyncio.run(run())
    assert seen == [10, 10]


def test_a_receiver_that_ends_waits_for_no_report(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def endless(reader: Reader, *_arguments: Any, **_more: Any) -> dict[str, Any]:
        begun.set()
        reader.query("SELECT count(*) FROM generate_series(1, 10000000000) AS n")
        raise AssertionError("it ended")

    async def run() -> Reply:
        ingest = Ingest(store)
        asked = asyncio.create_task(ingest.handle(call("GET", "/v1/report")))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await ingest.close()
        return await asyncio.wait_for(asked, 60)

    monkeypatch.setattr(question, "report", endless)
    assert asyncio.run(run()).status == 503


def test_only_so_many_reports_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def held(*_arguments: Any, **_more: Any) -> dict[str, Any]:
        assert go_on.wait(60)
        return {}

    async def run() -> list[int]:
        ingest = Ingest(store)
        asked = [asyncio.create_task(ingest.handle(call("GET", "/v1/report"))) for _ in range(16)]
        await asyncio.sleep(0)
        refused = await ingest.handle(call("GET", "/v1/report"))
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        go_on.set()
        replies = await asyncio.gather(*asked)
        await ingest.close()
        return [reply.status for reply in replies]

    monkeypatch.setattr(question, "report", held)
    assert asyncio.run(run()) == [200] * 16


def test_bodies_that_are_still_to_come_take_room_and_give_it_back(store: Store) -> None:
    body = otlp.request([metrics_record(window())])
    headers = {"content-type": PROTOBUF["Content-Type"], "content-length": str(len(body))}

    async def run() -> None:
        come = asyncio.Event()

        async def read() -> bytes:
            await come.wait()
            return body

        async def inflate() -> bytes:
            return body * 2

        async def leave() -> bytes:
            raise Refusal(499, "the client left")

        def sent(body: Callable[[], Awaitable[bytes]], **more: str) -> Coroutine[Any, Any, Reply]:
            return ingest.handle(Call("POST", "/v1/metrics", headers | more, body))

        ingest = Ingest(store, max_body=2 * len(body), max_held=3 * len(body))
        slow = [asyncio.create_task(sent(read)) for _ in range(2)]
        await asyncio.sleep(0)
        # Nobody knows how large the first gets, so it may be the largest; the second has become so.
        for refused in (
            await sent(read, **{"content-length": ""}),
            await sent(inflate, **{"content-encoding": "gzip"}),
        ):
            assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert (await sent(leave)).status == 499
        third = asyncio.create_task(sent(read))
        await asyncio.sleep(0)
        assert (await sent(read)).status == 503
        assert ingest.measures.counted["written"] == 0
        come.set()
        assert [reply.status for reply in await asyncio.gather(*slow, third)] == [200] * 3
        assert (await sent(read, **{"content-length": ""})).status == 200
        await ingest.close()

    asyncio.run(run())
