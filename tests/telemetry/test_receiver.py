"""TEL-03 and more: what the receiver takes is counted once, and on the disk when it says so."""

from __future__ import annotations

import contextlib
import json
import socket
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from receiving import (
    PROTOBUF,
    RESOURCE,
    Receiving,
    crash,
    logs_request,
    metrics_record,
    receiver,
    window,
    zipped,
)

from edgekit.errors import BadData, Locked
from edgekit.runtime import otlp
from edgekit.runtime.recorder import Recorder
from edgekit.runtime.schedule import Pace
from edgekit.telemetry.duck import DuckStore
from edgekit.telemetry.reading import read_logs, read_metrics
from edgekit.telemetry.store import Store

REQUESTS = "SELECT sum(n)::BIGINT FROM cell JOIN series ON series = id WHERE metric = ?"


def requests(store: Store) -> int:
    return store.query(REQUESTS, ["edgekit.inference.requests"])[0][0] or 0


Opener = Callable[..., Store]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "fleet.duckdb"


def test_a_record_of_which_the_answer_was_lost_is_counted_once(store: Path) -> None:
    """TEL-03, over the wire: committed, killed before the client reads, sent again."""
    event, device = uuid.uuid4().hex, uuid.uuid4().hex
    body, headers = zipped(otlp.request([metrics_record(window(), event=event, device=device)]))
    with receiver(store) as one:
        with socket.create_connection(("127.0.0.1", one.port)) as lost:
            head = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
            start = f"POST /v1/metrics HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{head}"
            lost.sendall(start.encode() + b"\r\n" + body)
            # The first byte of the answer tells that it was committed; the device never reads it.
            assert lost.recv(1)
        one.process.kill()
        one.process.wait()
    with receiver(store) as two:
        for _ in range(2):
            status, answer, _ = two.post("/v1/metrics", body, headers)
            assert (status, answer) == (200, b"")
        log = logs_request([crash(event)], device)
        for _ in range(2):
            assert two.post("/v1/logs", *zipped(log))[0] == 200
        files = [*store.parent.glob("fleet.duckdb*")]
        assert len(files) > 1
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert two.end() == 0
    with DuckStore(store, read_only=True) as kept:
        assert requests(kept) == 10
        assert kept.query("SELECT name, count(*) FROM event GROUP BY ALL") == [("edgekit.crash", 1)]
        assert kept.query("SELECT requests, crashes FROM device_day WHERE requests > 0")[0][0] == 10


def test_a_record_that_a_collector_split_is_counted_whole_and_once(opened: Opener) -> None:
    event, device = uuid.uuid4().hex, uuid.uuid4().hex
    whole = otlp.decode("ResourceMetrics", metrics_record(window(), event=event, device=device))
    metrics = whole["scope_metrics"][0]["metrics"]

    def part(some: list[object]) -> bytes:
        made = {**whole, "scope_metrics": [{"metrics": some}]}
        return otlp.request([otlp.encode("ResourceMetrics", made)])

    with opened() as kept:
        for cut in (metrics[:2], metrics[2:], metrics[1:4], metrics):
            kept.write(read_metrics(part(cut)).deliveries)
        split = kept.query(
            "SELECT metric, sum(n)::BIGINT FROM cell JOIN series ON series = id GROUP BY 1"
        )
        again = read_metrics(part(metrics) + part(metrics)).deliveries
        assert kept.write(again).duplicates == 2
    assert dict(split) == {
        f"edgekit.{name}": 10
        for name in (
            "inference.duration", "inference.memory", "inference.requests",
            "prediction.classes", "prediction.confidence",
        )
    }  # fmt: skip


def test_what_comes_twice_within_one_transaction_is_counted_once(opened: Opener) -> None:
    record = metrics_record(window(), event=uuid.uuid4().hex)
    with opened() as kept:
        done = kept.write(read_metrics(otlp.request([record, record])).deliveries)
        assert done.duplicates == 1
        assert requests(kept) == 10


def test_the_official_sdk_uploads(store: Path) -> None:
    exporter = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.metric_exporter")
    from opentelemetry.sdk import metrics
    from opentelemetry.sdk.metrics import export, view
    from opentelemetry.sdk.resources import Resource

    with receiver(store) as running:
        delta = export.AggregationTemporality.DELTA
        sender = exporter.OTLPMetricExporter(
            f"http://127.0.0.1:{running.port}/v1/metrics",
            compression=exporter.Compression.Gzip,
            preferred_temporality={metrics.Counter: delta, metrics.Histogram: delta},
            preferred_aggregation={metrics.Histogram: view.ExponentialBucketHistogramAggregation()},
        )
        reader = export.PeriodicExportingMetricReader(sender, 60_000)
        provider = metrics.MeterProvider([reader], Resource(RESOURCE))
        meter = provider.get_meter("edgekit")
        counter = meter.create_counter("edgekit.inference.requests")
        counter.add(7, {"edgekit.source": "device", "edgekit.reason": "sure", "user": "ann@b.org"})
        durations = meter.create_histogram("edgekit.inference.duration", "s")
        for i in range(1, 1001):
            durations.record(i / 1000, {"edgekit.source": "device"})
        assert provider.force_flush()
        provider.shutdown()
        assert running.end() == 0
    with DuckStore(store, read_only=True) as kept:
        assert requests(kept) == 7
        assert kept.query(REQUESTS, ["edgekit.inference.duration"]) == [(1000,)]
        assert kept.query("SELECT model, version, device, app FROM cohort") == [
            ("net", "1.0", "pixel-8", "2.1")
        ]
    assert b"ann@b.org" not in store.read_bytes()


def test_what_the_contract_does_not_have_is_rejected_and_said(store: Path) -> None:
    good = otlp.decode("ResourceMetrics", metrics_record(window()))
    stray = {
        "name": "process.cpu.time",
        "sum": {"data_points": [{"as_int": 1}, {"as_int": 2}], "aggregation_temporality": 1},
    }
    late = {
        "name": "edgekit.inference.errors",
        "sum": {"data_points": [{"as_int": 1}], "aggregation_temporality": 2},
    }
    good["scope_metrics"][0]["metrics"] += [stray, late]
    body = otlp.request([otlp.encode("ResourceMetrics", good)])
    with receiver(store) as running:
        status, answer, headers = running.post("/v1/metrics", *zipped(body))
        assert (status, headers["content-type"]) == (200, "application/x-protobuf")
        count, message = otlp.rejected(answer)
        assert count == 3
        assert "delta" in message and "edgekit does not have" in message
        assert "process.cpu" not in message
    with DuckStore(store, read_only=True) as kept:
        assert requests(kept) == 10


def test_json_is_read_as_well(store: Path) -> None:
    body = b"""{"resourceLogs": [{"resource": {}, "scopeLogs": [{"logRecords": [
        {"eventName": "edgekit.crash", "severityNumber": 17,
         "attributes": [{"key": "error.type", "value": {"stringValue": "ValueError"}}]},
        {"body": {"stringValue": "call me at 555"}}]}]}]}"""
    with receiver(store) as running:
        status, answer, _ = running.post("/v1/logs", body, {"Content-Type": "application/json"})
        assert status == 200
        assert b'"rejectedLogRecords":"1"' in answer
    with DuckStore(store, read_only=True) as kept:
        assert kept.query("SELECT attributes FROM event") == [('{"error.type":"ValueError"}',)]


def test_keys_are_asked_for(store: Path) -> None:
    keys = store.with_name("keys")
    keys.write_text("fleet 0123456789abcdef\nops admin fedcba9876543210\n")
    keys.chmod(0o600)
    body, headers = zipped(otlp.request([metrics_record(window())]))
    with receiver(store, "--keys", keys) as running:
        assert running.post("/v1/metrics", body, headers)[0] == 401
        bearer = {**headers, "Authorization": "Bearer 0123456789abcdef"}
        assert running.post("/v1/metrics", body, bearer)[0] == 200
        # Who may send may not read.
        assert running.get("/v1/report")[0] == 401
        assert running.get("/v1/report", "0123456789abcdef")[0] == 403
        assert running.get("/v1/report", "fedcba9876543210")[0] == 200
        rules = b'{"rules": []}'
        for path, body in (
            ("/v1/canary?control=1&canary=2", None),
            ("/v1/alerts", None),
            ("/metrics", None),
            ("/v1/check", rules),
        ):
            for key, wanted in ((None, 401), ("0123456789abcdef", 403), ("fedcba9876543210", 200)):
                if body is None:
                    status = running.get(path, key)[0]
                else:
                    asked = {} if key is None else {"Authorization": f"Bearer {key}"}
                    status = running.post(path, body, asked)[0]
                assert (path, key, status) == (path, key, wanted)


def test_reports_are_asked_of_the_receiver(store: Path) -> None:
    records = [metrics_record(window()) for _ in range(12)]
    with receiver(store) as running:
        assert running.post("/v1/metrics", *zipped(otlp.request(records)))[0] == 200
        status, body = running.get("/v1/report?by=device&model=net&baseline_days=7")
        assert status == 200
        (entry,) = json.loads(body)["cohorts"]
        assert (entry["device"], entry["devices"], entry["requests"]) == ("pixel-8", 12, 120)
        for wrong in (
            "by=os",
            "k=9",
            "k=x",
            "days=-1",
            "user=ann",
            "false_alarms=2&baseline_days=1",
            "false_alarms=nan",
            "false_alarms=1e-300",
        ):
            status, body = running.get(f"/v1/report?{wrong}")
            assert (wrong, status) == (wrong, 400)
        assert running.end() == 0


def test_finer_sketches_become_coarser_exactly() -> None:
    point = {
        "count": 6,
        "scale": 7,
        "positive": {"offset": -3, "bucket_counts": [1, 0, 2, 0, 1, 2]},
        "time_unix_nano": time.time_ns(),
    }
    metric = {
        "name": "edgekit.inference.memory",
        "exponential_histogram": {"data_points": [point], "aggregation_temporality": 1},
    }
    record = otlp.encode("ResourceMetrics", {"scope_metrics": [{"metrics": [metric]}]})
    (delivery,) = read_metrics(otlp.request([record])).deliveries
    (found,) = delivery.points
    # Buckets -3, -1 | 1, 2 by fours: -1 and 0.
    assert (found.first, list(found.counts), found.series.scale) == (-1, [3, 3], 5)


def test_upkeep_adds_up_and_forgets(opened: Opener) -> None:
    now = time.time_ns()
    day = 86_400 * 10**9
    record = metrics_record(window(), event=uuid.uuid4().hex, time_ns=now)
    with opened(lambda: now) as kept:
        for _ in range(5):
            kept.write(
                read_metrics(otlp.request([metrics_record(window(), time_ns=now)])).deliveries
            )
        kept.write(read_metrics(otlp.request([record])).deliveries)
        kept.tidy()
        assert requests(kept) == 60
        assert kept.query("SELECT count(*) FROM device_day") == [(6,)]
    with opened(lambda: now + 31 * day) as kept:
        kept.tidy()
        assert kept.write(read_metrics(otlp.request([record])).deliveries).duplicates == 1
    with opened(lambda: now + 36 * day) as kept:
        kept.tidy()
        assert requests(kept) == 60
        assert kept.query("SELECT count(*) FROM seen") == [(0,)]
        assert kept.query("SELECT count(*) FROM device_day") == [(0,)]
        assert kept.query("SELECT devices, requests FROM cohort_day") == [(6, 60)]
        kept.tidy(keep_days=30)
        assert requests(kept) == 0


def test_a_file_that_is_no_store_is_refused(store: Path) -> None:
    store.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(BadData, match=r"fleet\.duckdb"):
        DuckStore(store)


def test_a_store_has_one_writer(store: Path) -> None:
    with receiver(store), pytest.raises(Locked, match="another process"):
        DuckStore(store)


def test_a_clock_that_is_wrong_counts_now(opened: Opener) -> None:
    now = time.time_ns()
    year = 365 * 86_400 * 10**9
    with opened(lambda: now) as kept:
        for when in (0, now - year, now + 10 * year):
            record = metrics_record(window(), time_ns=max(when, 60 * 10**9))
            kept.write(read_metrics(otlp.request([record])).deliveries)
        assert kept.query("SELECT DISTINCT hour FROM cell") == [(now // (3600 * 10**9),)]


def delivered(recorder: Recorder, seconds: float = 5.0) -> bool:
    """Sends until nothing waits any more, or the time is over."""
    recorder.flush()
    end = time.monotonic() + seconds
    while recorder.counts().pending and time.monotonic() < end:
        time.sleep(min(recorder.upload(), 0.1))
    return not recorder.counts().pending


def test_recorders_reach_it_though_it_is_killed(where: str, opened: Opener, tmp_path: Path) -> None:
    """The device's side as it ships: what it calls delivered is in the store, once."""
    pace = Pace(upload_s=0.01, between_s=0.01, first_s=0.01, longest_s=0.05)

    def recorder(running: Receiving) -> contextlib.closing[Recorder]:
        endpoint = f"http://127.0.0.1:{running.port}"
        folder = tmp_path / "spool"
        return contextlib.closing(Recorder(folder, endpoint=endpoint, pace=pace, background=False))

    with receiver(where, log=tmp_path / "receiver.log") as first, recorder(first) as device:
        device.give_consent()
        for _ in range(50):
            device.record(0.01, confidence=0.9, predicted=3)
        device.crash(MemoryError("at /home/ann"))
        assert delivered(device)
        first.process.kill()
        first.process.wait()
        for _ in range(30):
            device.record(0.01)
        assert not delivered(device, 0.5)
    with receiver(where, log=tmp_path / "receiver.log") as second:
        with recorder(second) as device:
            assert delivered(device)
            counts = device.counts()
            assert counts.conserved and not counts.dropped
        assert second.end() == 0
    with opened(read_only=True) as kept:
        assert requests(kept) == 80
        assert kept.query("SELECT name FROM event") == [("edgekit.crash",)]
        for table in ("event", "cohort", "series"):
            assert "/home/ann" not in str(kept.query(f"SELECT * FROM {table}"))


# -- TEL-15 ---------------------------------------------------------------------------------------


def stated(port: int, size: int) -> int:
    """The answer to a body of which only the size has come."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
        kind = "Content-Type: application/x-protobuf"
        head = f"POST /v1/logs HTTP/1.1\r\nHost: x\r\n{kind}\r\nContent-Length: {size}\r\n\r\n"
        link.sendall(head.encode())
        return int(link.recv(4096).split()[1])


def test_bodies_that_are_wrong_are_refused_and_others_served(store: Path) -> None:
    """TEL-15: bombs, sizes, nesting, types and slowness; memory stays, and others are served."""
    json_type = {"Content-Type": "application/json"}
    bomb = zipped(bytes(256 * 2**20))
    # Two bytes each, and a hundred once they are parsed.
    hollow = zipped(b"\x0a\x00" * (4 * 2**20 - 1))
    deep = b"[" * 10**6
    nested = b'{"resourceLogs":' + b'[{"scopeLogs":' * 50_000
    with receiver(store, "--body-timeout-s", 1, "--max-body-mb", 20) as running:
        assert (
            running.post("/v1/metrics", *zipped(otlp.request([metrics_record(window())])))[0] == 200
        )
        before = running.peak_mb()
        slow = socket.create_connection(("127.0.0.1", running.port))
        with contextlib.closing(slow):
            head = "POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            slow.sendall(head.encode() + b"Content-Length: 100\r\n\r\nx")
            assert running.post("/v1/metrics", *bomb)[0] == 413
            assert stated(running.port, 20 * 2**20 + 1) == 413
            assert running.post("/v1/logs", deep, json_type)[0] == 400
            assert running.post("/v1/logs", nested, json_type)[0] == 400
            assert running.post("/v1/logs", b"{}", {"Content-Type": "text/plain"})[0] == 415
            odd = {**PROTOBUF, "Content-Encoding": "br"}
            assert running.post("/v1/logs", b"", odd)[0] == 415
            assert running.post("/v1/logs", b"\xff" * 100)[0] == 400
            assert running.post("/v1/traces", b"")[0] == 404
            assert running.post("/v1/metrics", *hollow)[0] == 400
            body = zipped(otlp.request([metrics_record(window())]))
            assert running.post("/v1/metrics", *body)[0] == 200
            slow.settimeout(10)
            assert b" 408 " in slow.recv(4096)
        grown = running.peak_mb() - before
        assert grown < 400, f"{grown:.0f} MB"
        assert running.end() == 0
    with DuckStore(store, read_only=True) as kept:
        assert requests(kept) == 20
    assert read_logs(b"").deliveries == []
