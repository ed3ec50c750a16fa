"""The receiver's part of telemetry.py: what it takes in, what it keeps, and how fast it reports."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from receiving import PROTOBUF, Receiving, metrics_record, receiver

from edgekit.runtime import otlp
from edgekit.runtime.aggregate import Aggregate
from edgekit.runtime.drift_reference import DriftReference
from edgekit.runtime.recorder import Recorder
from edgekit.runtime.schedule import Pace
from edgekit.telemetry.cohorts import Window
from edgekit.telemetry.contract import COHORT, METRICS, SERIES
from edgekit.telemetry.duck import DuckStore
from edgekit.telemetry.report import report

__all__ = ["recorders", "reporting", "throughput"]

POINTS_A_SECOND: Final = 50_000
REPORT_S: Final = 3.0
MEMORY_MB: Final = 400.0
"""The most that the receiver's process may take while it holds bodies of 64 MiB at most."""

_RECORDS: Final = 256  # of a request, as devices send them
_REQUESTS_OF_RECORD: Final = 40
_LINKS: Final = 4
_EVENT, _DEVICE, _DIGEST = "e" * 32, "d" * 32, "b" * 64


# -- points a second over HTTP --------------------------------------------------------------------


def _template() -> tuple[bytes, int]:
    """A record of a window as a device has it after a while, and its data points."""
    aggregate = Aggregate()
    for i in range(_REQUESTS_OF_RECORD):
        aggregate.add("device", "sure", 0.02 + i % 7 * 1e-3, i / 40, i % 12, 1e8 + i * 1e4)
        aggregate.add_inputs([(0, (i % 26, i % 13, i % 28))])
    aggregate.add("cloud", "unsure", 0.2, 0.3, 3, None)
    aggregate.add_error("device", "MemoryError")
    record = metrics_record(aggregate, event=_EVENT, device=_DEVICE)
    return record, otlp.points(record)


def _bodies(count: int, record: bytes) -> Iterator[bytes]:
    """Requests of other devices each, gzipped."""
    for _ in range(count):
        records = (
            record.replace(_EVENT.encode(), uuid.uuid4().hex.encode()).replace(
                _DEVICE.encode(), uuid.uuid4().hex.encode()
            )
            for _ in range(_RECORDS)
        )
        yield gzip.compress(otlp.request(records), 1)


def _send(port: int, bodies: list[bytes], refused: list[int]) -> None:
    """Sends bodies one after the other over one connection, each until it is taken."""
    headers = {**PROTOBUF, "Content-Encoding": "gzip"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as link:
        while bodies:
            body = bodies.pop()
            while True:
                link.request("POST", "/v1/metrics", body, headers)
                response = link.getresponse()
                answer = response.read()
                if response.status == 200:
                    assert not answer, answer
                    break
                assert response.status == 503, response.status
                refused.append(response.status)
                time.sleep(0.2)


def throughput(folder: Path, requests: int) -> dict[str, Any]:
    """Points a second from the first byte to the last acknowledgement, all of them then kept."""
    record, points = _template()
    bodies = list(_bodies(requests, record))
    size = sum(map(len, bodies)) / requests
    refused: list[int] = []
    folder.mkdir()
    with receiver(folder / "fleet.duckdb") as server:
        links = [
            threading.Thread(target=_send, args=(server.port, bodies, refused))
            for _ in range(_LINKS)
        ]
        before, start = _busy_s(server), time.perf_counter()
        for link in links:
            link.start()
        for link in links:
            link.join()
        wall = time.perf_counter() - start
        peak, busy = server.peak_mb(), _busy_s(server) - before
        assert server.end() == 0
    wanted = requests * _RECORDS * (_REQUESTS_OF_RECORD + 1)
    kept = _kept(folder / "fleet.duckdb")
    rate = requests * _RECORDS * points / wall
    return {
        "points": requests * _RECORDS * points,
        "points_of_record": points,
        "body_bytes": size,
        "wall_s": wall,
        "points_a_second": rate,
        "receiver_us_a_point": 1e6 * busy / (requests * _RECORDS * points),
        "limit": POINTS_A_SECOND,
        "told_to_wait": len(refused),
        "peak_mb": peak,
        "counted": [kept, wanted],
        "passed": rate >= POINTS_A_SECOND and kept == wanted and peak <= MEMORY_MB,
    }


def _busy_s(server: Receiving) -> float:
    """Processor time of the receiver, in seconds."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kept(store: Path) -> int:
    with DuckStore(store, read_only=True) as opened:
        (row,) = opened.query(
            "SELECT coalesce(sum(n), 0)::BIGINT FROM cell JOIN series ON series.id = cell.series "
            "WHERE metric = 'edgekit.inference.requests'"
        )
    return int(row[0])


# -- a thousand recorders -------------------------------------------------------------------------


def _live(folder: Path, server: Receiving, windows: int, told: list[Any]) -> None:
    """A device: counts, writes and sends, as it does behind an app, until all is delivered."""
    pace = Pace(upload_s=1.0, between_s=0.1, first_s=0.5, longest_s=10.0)
    where = f"http://127.0.0.1:{server.port}"
    try:
        with Recorder(folder, endpoint=where, pace=pace, background=False) as recorder:
            recorder.give_consent()
            for _ in range(windows):
                for i in range(20):
                    recorder.record(0.01 + i * 1e-4, confidence=i / 20, predicted=i % 10)
                assert recorder.flush()
                time.sleep(min(recorder.upload(), 2.0))
            recorder.crash(MemoryError())
            while recorder.counts().pending:
                time.sleep(min(recorder.upload(), 2.0))
            told.append(recorder.counts())
    except BaseException as error:  # a thread's own would be lost
        told.append(error)
        raise


def recorders(folder: Path, devices: int, windows: int) -> dict[str, Any]:
    """Real recorders, each with its spool and its connections, against one receiver."""
    folder.mkdir()
    told: list[Any] = []
    with receiver(folder / "fleet.duckdb") as server:
        threads = [
            threading.Thread(target=_live, args=(folder / f"d{i}", server, windows, told))
            for i in range(devices)
        ]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - start
        peak = server.peak_mb()
        assert server.end() == 0
    errors = [repr(one)[:200] for one in told if isinstance(one, BaseException)]
    counts = [one for one in told if not isinstance(one, BaseException)]
    with DuckStore(folder / "fleet.duckdb", read_only=True) as opened:
        (events,) = opened.query("SELECT count(*)::BIGINT FROM event")
        (names,) = opened.query("SELECT count(DISTINCT device)::BIGINT FROM device_day")
    produced = sum(one.produced for one in counts)
    delivered = sum(one.delivered for one in counts)
    dropped = sum(sum(one.dropped.values()) for one in counts)
    wanted = [devices * windows * 20, devices, devices]
    kept = [_kept(folder / "fleet.duckdb"), int(events[0]), int(names[0])]
    whole = produced == delivered == devices * (windows + 1) and not dropped and kept == wanted
    return {
        "devices": devices,
        "records": {"produced": produced, "delivered": delivered, "dropped": dropped},
        "kept": dict(zip(("requests", "crashes", "devices"), kept, strict=True)),
        "wanted": dict(zip(("requests", "crashes", "devices"), wanted, strict=True)),
        "wall_s": wall,
        "peak_mb": peak,
        "limit_mb": MEMORY_MB,
        "errors": errors[:5],
        "passed": whole and not errors and peak <= MEMORY_MB,
    }


# -- reports --------------------------------------------------------------------------------------


def _fill(store: DuckStore, today: int, cells: int, days: int) -> None:
    """Cells of forty cohorts on many days, hour by hour, as compaction leaves them, or would."""
    cohorts = [
        {"model": "net", "version": f"1.{v}", "device": d, "app": f"2.{a}", "digest": _DIGEST}
        for v in range(4)
        for d in ("pixel-6", "pixel-8", "galaxy-s24", "iphone-15-pro", "raspberry-pi-5")
        for a in range(2)
    ]
    for i, cohort in enumerate(cohorts):
        values = [cohort.get(name, "") for name in COHORT]
        store.query(f"INSERT INTO cohort VALUES (?{', ?' * len(values)})", [i, *values])
    series: list[tuple[str, int, dict[str, str]]] = []
    for metric, about in METRICS.items():
        if about.kind == "exponential_histogram":
            series.append((metric, 5, {"source": "device"} if about.attributes else {}))
        elif about.bounds:
            series.append((metric, 0, {"input": "0"} if about.attributes else {}))
    series += [("edgekit.prediction.classes", 0, {"class": str(c)}) for c in range(10)]
    series += [("edgekit.inference.requests", 0, {"source": "device", "reason": "sure"})]
    for i, (metric, scale, values) in enumerate(series):
        row = [i, metric, scale, *(values.get(name, "") for name in SERIES)]
        store.query(f"INSERT INTO series VALUES (?{', ?' * (len(row) - 1)})", row)
    buckets = {
        i: len(METRICS[metric].bounds) + 1 if METRICS[metric].bounds else 120 if scale else 1
        for i, (metric, scale, _) in enumerate(series)
    }
    pairs = ", ".join(f"({i}, {n})" for i, n in buckets.items())
    # As many hours as it takes, spread over the days.
    hours = -(-cells // (len(cohorts) * sum(buckets.values())))
    store.query(
        f"""INSERT INTO cell SELECT
            {(today + 1) * 24 - 1} - (h.range * {days * 24} // {hours})::INTEGER,
            c.range, s.id, b.b, 1 + hash(c.range, s.id, b.b, h.range) % 97
        FROM range({hours}) h, range({len(cohorts)}) c, (VALUES {pairs}) s(id, n),
            LATERAL (SELECT unnest(range(s.n)) AS b) b"""
    )
    store.query(
        f"""INSERT INTO device_day SELECT {today} - d.range, c.range, uuid(), 100, 1, 0, 0
        FROM range({min(days, 35)}) d, range({len(cohorts)}) c, range({max(20, cells // 10_000)})"""
    )


class Proven(DriftReference):
    """A bundle's counts, without the bundle."""

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def counts(self, metric: str, which: str = "", scheme: str = "") -> dict[int, int]:
        """A thousand in every bin, or of ten classes."""
        return dict.fromkeys(range(len(METRICS[metric].bounds) + 1 if which else 20), 1_000)


def reporting(folder: Path, cells: int) -> dict[str, Any]:
    """How long a report with drift takes, of a week against the four before it and a bundle."""
    folder.mkdir()
    today = int(time.time() // 86_400)
    with DuckStore(folder / "fleet.duckdb") as store:
        _fill(store, today, cells, 35)
        ((held,),) = store.query("SELECT count(*)::BIGINT FROM cell")
        ((device_days,),) = store.query("SELECT count(*)::BIGINT FROM device_day")
    times, busy = [], []
    for _ in range(3):
        with DuckStore(folder / "fleet.duckdb", read_only=True) as store:
            window, baseline = Window(today - 6, today), Window(today - 34, today - 7)
            start, used = time.perf_counter(), time.process_time()
            found = report(store, window, baseline=baseline, references=[Proven(_DIGEST)])
            times.append(time.perf_counter() - start)
            busy.append(time.process_time() - used)
    features = [len(entry["drift"]) for entry in found["cohorts"]]
    features += [len(entry["reference_drift"]["features"]) for entry in found["cohorts"]]
    return {
        "cells": int(held),
        "device_days": int(device_days),
        "cohorts": len(found["cohorts"]),
        "features": sum(features),
        "wall_s": sorted(times)[1],
        "processor_s": sorted(busy)[1],
        "limit_s": REPORT_S,
        "passed": sorted(times)[1] <= REPORT_S and len(features) == 80 and min(features) == 5,
    }
