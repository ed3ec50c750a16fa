"""The receiver's /metrics: what Prometheus reads is what happened, and what a report says."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from prometheus_client.parser import text_string_to_metric_families
from receiving import RESOURCE, Receiving, metrics_record, receiver, window

from edgekit.runtime import otlp
from edgekit.serve.call import Call
from edgekit.telemetry.contract import COHORT
from edgekit.telemetry.duck import DuckStore
from edgekit.telemetry.ingest import Ingest
from edgekit.telemetry.reading import read_metrics
from edgekit.telemetry.rules import Rules
from edgekit.telemetry.watch import Fleet, Watch, Watched

NOW = time.time_ns()
DAY_NS = 86_400 * 10**9
HOSTILE = 'a"} 1\nedgekit_alert{rule="none'


def records(devices: int, version: str, back: int = 0) -> list[bytes]:
    resource = {**RESOURCE, "edgekit.bundle.version": version}
    when = NOW - back * DAY_NS
    found = []
    for i in range(devices):
        aggregate = window(40 if back else 30)
        aggregate.add("cloud", "unsure", 0.2, 0.4, 3, None)
        if i == 0:
            aggregate.add_error("device", "MemoryError")
        found.append(metrics_record(aggregate, resource=resource, time_ns=when))
    return found


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """As Prometheus' own reader has them, each once."""
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def one(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def scraped(running: Receiving, wanted: str, since: float = 0.0) -> dict[Any, float]:
    """The first scrape that has it, of a look that began after ``since``."""
    end = time.monotonic() + 60
    while True:
        status, body = running.get("/metrics")
        assert status == 200
        if wanted in body.decode():
            found = samples(body.decode())
            looked = one(found, "edgekit_fleet_looked_timestamp_seconds")
            if looked - one(found, "edgekit_fleet_look_seconds") > since:
                return found
        assert time.monotonic() < end, body.decode()
        time.sleep(0.1)


def test_what_is_scraped_is_what_happened_and_what_a_report_says(tmp_path: Path) -> None:
    path = tmp_path / "fleet.duckdb"
    with DuckStore(path) as store:
        for back in (3, 4, 5):
            store.write(read_metrics(otlp.request(records(12, "1.0", back))).deliveries)
        store.write(read_metrics(otlp.request(records(11, "1.1"))).deliveries)
        store.write(read_metrics(otlp.request(records(9, "1.2"))).deliveries)
    rules = tmp_path / "rules.toml"
    rules.write_text("[[rule]]\nname = 'quiet'\nkind = 'silence'\nhours = 5\n")
    with receiver(path, "--watch-s", 0.5, "--rules", rules) as running:
        body = otlp.request(records(12, "1.0"))
        for _ in range(2):
            assert running.post("/v1/metrics", body)[0] == 200
        other = otlp.decode("ExportMetricsServiceRequest", otlp.request(records(1, "1.0")))
        metric = other["resource_metrics"][0]["scope_metrics"][0]["metrics"][0]
        metric["name"] = "someone.else"
        running.post("/v1/metrics", otlp.encode("ExportMetricsServiceRequest", other))
        assert running.post("/v1/metrics", b"\xff")[0] == 400
        wanted = 'edgekit_fleet_requests{model="net",version="1.0"}'
        found = scraped(running, wanted, time.time())
        status, answer = running.get("/v1/report?by=model,version&days=2&baseline_days=28")
        assert status == 200
    sent = otlp.decode("ExportMetricsServiceRequest", body)["resource_metrics"]
    metrics = sum(len(scope["metrics"]) for record in sent for scope in record["scope_metrics"])
    assert one(found, "edgekit_telemetry_duplicates_total") == metrics > 12
    assert one(found, "edgekit_telemetry_requests_total", code="400") == 1
    written = one(found, "edgekit_telemetry_points_total", outcome="written")
    rejected = one(found, "edgekit_telemetry_points_total", outcome="rejected")
    why = "a metric that edgekit does not have"
    assert rejected == one(found, "edgekit_telemetry_rejected_total", reason=why) >= 1
    assert written > 60
    assert one(found, "edgekit_telemetry_write_seconds_count") >= 3
    assert one(found, "edgekit_telemetry_write_seconds_sum") > 0
    assert one(found, "edgekit_telemetry_store_bytes") > 10_000
    assert one(found, "edgekit_telemetry_held_bytes") == 0
    assert one(found, "edgekit_telemetry_held_limit_bytes") == 64 * 2**20
    assert one(found, "edgekit_alert", rule="quiet") == 0
    assert one(found, "edgekit_fleet_versions") == 2
    assert time.time() - one(found, "edgekit_fleet_looked_timestamp_seconds") < 120
    for entry in json.loads(answer)["cohorts"]:
        who = {"model": entry["model"], "version": entry["version"]}
        for name in ("devices", "requests", "error_rate", "fallback_rate", "crash_rate"):
            assert one(found, f"edgekit_fleet_{name}", **who) == entry[name], name
        told = entry["latency_s"]["cloud"]["p99"]
        latency = {**who, "source": "cloud", "quantile": "0.99"}
        assert one(found, "edgekit_fleet_latency_seconds", **latency) == told
        for feature, drift in entry["drift"].items():
            which = {**who, "against": "days", "feature": feature}
            if drift["flagged"] is None:
                assert ("edgekit_fleet_drift", frozenset(which.items())) not in found
                continue
            psi = drift["distances"]["psi"]
            assert one(found, "edgekit_fleet_drift_psi", **which) == psi["value"]
            assert one(found, "edgekit_fleet_drift_psi_limit", **which) == psi["limit"]
            assert one(found, "edgekit_fleet_drift", **which) == drift["flagged"]
    assert any(name == "edgekit_fleet_drift_psi" for name, _ in found)
    # Nine devices of 1.2 are too few.
    assert not [labels for _, labels in found if ("version", "1.2") in labels]


def test_metrics_are_for_admins_where_there_are_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ops admin fedcba9876543210\ndevice 0123456789abcdef\n")
    keys.chmod(0o600)
    with receiver(tmp_path / "fleet.duckdb", "--keys", keys) as running:
        for path in ("/metrics", "/v1/alerts"):
            told = [running.get(path, key)[0] for key in (None, "0123456789abcdef")]
            assert [*told, running.get(path, "fedcba9876543210")[0]] == [401, 403, 200]
        assert running.post("/v1/check", b'{"rules": []}')[0] == 401
        # The page holds no figure.
        assert running.get("/")[0] == 200


def test_a_scrape_reads_no_store_and_names_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = list(COHORT).index("version")
    store = DuckStore(tmp_path / "fleet.duckdb")
    deliveries = read_metrics(otlp.request(records(12, "1.0"))).deliveries
    cohort = deliveries[0].cohort
    cohort = (*cohort[:place], HOSTILE, *cohort[place + 1 :])
    store.write([dataclasses.replace(delivery, cohort=cohort) for delivery in deliveries])

    async def body() -> bytes:
        return b""

    async def scrape() -> str:
        ingest = Ingest(store)
        ingest.watch = Watch(ingest.read, Rules(), tmp_path / "alerts.json", Watched())
        await ingest.watch.look()
        assert isinstance(ingest.watch.fleet, Fleet)

        def refuse() -> Any:
            raise AssertionError("a scrape reads the store")

        monkeypatch.setattr(store, "reading", refuse)
        monkeypatch.setattr(store, "query", refuse)
        reply = await ingest.handle(Call("GET", "/metrics", {}, body))
        assert reply.status == 200
        assert reply.headers["Content-Type"] == "text/plain; version=0.0.4"
        monkeypatch.undo()
        await ingest.close()
        return reply.body.decode()

    found = samples(asyncio.run(scrape()))
    assert one(found, "edgekit_fleet_requests", model="net", version=HOSTILE) == 12 * 31
    assert not [name for name, _ in found if name == "edgekit_alert"]
    assert not (tmp_path / "alerts.json").exists()
