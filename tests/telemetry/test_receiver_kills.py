"""A receiver that is killed at any point, under load: what it acknowledged is there once."""

from __future__ import annotations

import http.client
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from receiving import Receiving, crash, logs_request, metrics_record, receiver, window, zipped

from edgekit.runtime import otlp
from edgekit.telemetry.duck import DuckStore
from edgekit.telemetry.store import Store

HOUR_NS = 3600 * 10**9
HOURS_AGO = (0, 1, 2, 30, 9 * 24, 9 * 24 + 1)
"""Of which upkeep adds up all but the first, and takes the last two together."""


class Sent:
    """A record of a device of its own, or a crash."""

    def __init__(self, rng: random.Random) -> None:
        self.device = uuid.UUID(int=rng.getrandbits(128))
        self.crash = rng.random() < 0.2
        self.acknowledged = False
        event, device = uuid.UUID(int=rng.getrandbits(128)).hex, self.device.hex
        if self.crash:
            self.path, body = "/v1/logs", logs_request([crash(event)], device)
        else:
            when = time.time_ns() - rng.choice(HOURS_AGO) * HOUR_NS
            record = metrics_record(window(3), event=event, device=device, time_ns=when)
            self.path, body = "/v1/metrics", otlp.request([record])
        self.request = zipped(body)


class Load:
    """Devices that send what was not acknowledged until it is, several at a time."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._again: deque[Sent] = deque()
        self.all: list[Sent] = []
        self.failed = 0
        self.enough = threading.Event()

    def _next(self) -> Sent | None:
        with self._lock:
            if self._again:
                return self._again.popleft()
            if self.enough.is_set():
                return None
            sent = Sent(self._rng)
            self.all.append(sent)
            return sent

    def _send(self, running: Receiving, stop: threading.Event) -> None:
        while not stop.is_set() and (sent := self._next()) is not None:
            try:
                status = running.post(sent.path, *sent.request)[0]
            except (OSError, http.client.HTTPException):
                status = 0
            if status == 200:
                sent.acknowledged = True
                continue
            with self._lock:
                self._again.append(sent)
                self.failed += 1
            time.sleep(0.02)

    @contextmanager
    def on(self, running: Receiving) -> Iterator[None]:
        """Sends to a receiver, which may end meanwhile."""
        stop = threading.Event()
        threads = [threading.Thread(target=self._send, args=(running, stop)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def check(store: Store, all_sent: list[Sent]) -> None:
    """Each record whole or not at all, and what was acknowledged is."""
    sql = "SELECT device, sum(requests)::BIGINT, sum(crashes)::BIGINT FROM device_day GROUP BY 1"
    days: dict[uuid.UUID, tuple[int, int]] = {name: rest for name, *rest in store.query(sql)}  # type: ignore[misc]
    events: dict[uuid.UUID, int] = dict(
        store.query("SELECT device, count(*) FROM event GROUP BY 1")  # type: ignore[arg-type]
    )
    there = 0
    for sent in all_sent:
        found = [*days.get(sent.device, (0, 0)), events.get(sent.device, 0)]
        whole = [0, 1, 1] if sent.crash else [3, 0, 0]
        assert found == whole or (found == [0, 0, 0] and not sent.acknowledged), sent.path
        there += found == [3, 0, 0]
    assert days.keys() <= {sent.device for sent in all_sent}
    # Counts without names are the same as those with.
    cells = dict(
        store.query("SELECT metric, sum(n)::BIGINT FROM cell JOIN series ON series = id GROUP BY 1")  # type: ignore[arg-type]
    )
    assert set(cells.values()) == ({3 * there} if there else set())
    ((ids, records),) = store.query("SELECT count(*), count(DISTINCT id) FROM seen")
    assert ids == records == there + len(events)


def killed(
    where: str, opened: Callable[..., Store], log: Path, kills: int, seed: int
) -> dict[str, Any]:
    load, rng = Load(seed), random.Random(seed)
    for i in range(kills):
        with receiver(where, log=log, tidy_s=0.2) as running, load.on(running):
            before = sum(sent.acknowledged for sent in load.all)
            # Not before it does something; then at any point.
            while sum(sent.acknowledged for sent in load.all) == before:
                assert running.process.poll() is None, log.read_text()
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.5))
            running.process.kill()
            running.process.wait()
        if i % 2:
            # Else the next receiver is the first to open it.
            with opened() as store:
                check(store, load.all)
    load.enough.set()
    with receiver(where, log=log, tidy_s=0.2) as running:
        with load.on(running):
            while not all(sent.acknowledged for sent in load.all):
                assert running.process.poll() is None, log.read_text()
                time.sleep(0.01)
        assert running.end() == 0
    with opened() as store:
        check(store, load.all)
        store.tidy()
        check(store, load.all)
    return {"sent": len(load.all), "again": load.failed}


def test_three_kills_lose_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    file = tmp_path / "fleet.duckdb"
    found = killed(str(file), lambda: DuckStore(file), tmp_path / "log", 3, seed=0)
    assert found["again"] > 0


@pytest.mark.slow
def test_thirty_kills_lose_nothing_that_was_acknowledged(
    where: str, opened: Callable[..., Store], tmp_path: Path
) -> None:
    found = killed(where, opened, tmp_path / "log", 30, seed=1)
    assert found["again"] > 10
    print(found)
