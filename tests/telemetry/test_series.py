"""Reports by day: each day is a report of its own, and no difference is of too few devices."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from receiving import RESOURCE, metrics_record, receiver, window

from edgekit import schemas
from edgekit.runtime import otlp
from edgekit.telemetry.cohorts import BASE, Window
from edgekit.telemetry.duck import DuckStore
from edgekit.telemetry.reading import read_metrics
from edgekit.telemetry.report import report
from edgekit.telemetry.store import Store

NOW = time.time_ns()
DAY_NS = 86_400 * 10**9
TODAY = NOW // DAY_NS


def fill(store: Store, back: int, devices: int, requests: int = 10, **names: str) -> None:
    resource = {**RESOURCE, **{k.replace("_", "."): v for k, v in names.items()}}
    aggregate = window(1)
    aggregate.requests = {("device", "sure"): requests}
    when = NOW - back * DAY_NS
    records = [metrics_record(aggregate, resource=resource, time_ns=when) for _ in range(devices)]
    store.write(read_metrics(otlp.request(records)).deliveries)


@pytest.fixture
def store(tmp_path: Path) -> DuckStore:
    return DuckStore(tmp_path / "fleet.duckdb", clock_ns=lambda: NOW)


def test_a_day_of_a_series_is_the_report_of_that_day(opened: Callable[..., Store]) -> None:
    store = opened(lambda: NOW)
    for back, devices in ((0, 12), (1, 10), (3, 11)):
        fill(store, back, devices, 10 + back)
    days = Window(TODAY - 3, TODAY)
    before = Window(TODAY - 3, TODAY - 1)
    document = report(store, days, by=("device",), daily=True, baseline=before)
    schemas.validate(document)
    (entry,) = document["cohorts"]
    series = entry["series"]
    assert [one["day"] for one in series] == [TODAY - 3, TODAY - 1, TODAY]
    assert sum(one["requests"] for one in series) == entry["requests"] == 120 + 110 + 143
    for one in series:
        alone = Window(one["day"], one["day"])
        (whole,) = report(store, alone, by=("device",), baseline=before)["cohorts"]
        assert {**whole, "day": one["day"]} == one
    plain = report(store, days, by=("device",), baseline=before)["cohorts"]
    assert plain == [{name: value for name, value in entry.items() if name != "series"}]


def test_a_day_of_too_few_devices_is_in_no_series(store: DuckStore) -> None:
    fill(store, 0, 10)
    fill(store, 1, 9)
    (entry,) = report(store, Window(TODAY - 1, TODAY), by=(), daily=True)["cohorts"]
    assert [one["day"] for one in entry["series"]] == [TODAY]
    assert entry["requests"] == 100


def test_no_difference_of_days_or_windows_is_of_fewer_than_k(store: DuckStore) -> None:
    """TEL-18, with days: every figure of every series and window, less every other one."""
    k, sizes = 4, (3, 4, 5, 3, 4, 7)
    # Digit i of a sum of requests, of base 20, is how many devices of base cell i are in it.
    cells = itertools.product((0, 1), ("pixel-6", "pixel-8", "ipad"))
    for i, ((back, device), devices) in enumerate(zip(cells, sizes, strict=True)):
        fill(store, back, devices, 20**i, edgekit_device_class=device)
    windows = (Window(TODAY - 1, TODAY), Window(TODAY - 1, TODAY - 1), Window(TODAY, TODAY))
    wheres = [{}, *({"device": d} for d in ("pixel-6", "pixel-8", "ipad"))]
    figures: set[int] = set()
    for when, where, n in itertools.product(windows, wheres, (0, 2, 4)):
        found = report(store, when, by=BASE[4 - n :], where=where, k=k, daily=True)["cohorts"]
        figures.add(sum(entry["requests"] for entry in found))
        for entry in found:
            figures |= {entry["requests"], *(day["requests"] for day in entry["series"])}
    assert sum(n * 20**i for i, n in enumerate(sizes) if n >= k) in figures
    small = [i for i, n in enumerate(sizes) if n < k]
    for one, other in itertools.product(figures, repeat=2):
        more, digits = one - other, []
        while more:
            digits.append((more + 10) % 20 - 10)
            more = (more - digits[-1]) // 20
        assert not any(digits[i] for i in small if i < len(digits))


def test_rates_have_intervals_that_know_of_devices(opened: Callable[..., Store]) -> None:
    store = opened(lambda: NOW)
    fill(store, 0, 30)
    bad = window(10)
    for _ in range(9):
        bad.add_error("device", "MemoryError")
    record = metrics_record(bad, time_ns=NOW)
    store.write(read_metrics(otlp.request([record])).deliveries)
    (entry,) = report(store, Window(TODAY, TODAY))["cohorts"]
    assert entry["error_rate"] == 9 / 310
    low, high = entry["error_rate_ci95"]
    # Nine errors of one device say little of the fleet: as if it were one of 31.
    assert low < 0.005 and 0.1 < high < 0.25
    assert entry["fallback_rate"] == 0 and entry["fallback_rate_ci95"][1] > 0.1
    assert entry["crash_rate"] == 0 and entry["crash_rate_ci95"][0] == 0


def test_where_devices_have_no_names_any_more_there_is_no_interval(tmp_path: Path) -> None:
    now = [NOW]
    with DuckStore(tmp_path / "fleet.duckdb", clock_ns=lambda: now[0]) as store:
        fill(store, 0, 12)
        now[0] += 40 * DAY_NS
        store.tidy()
        (entry,) = report(store, Window(TODAY, TODAY))["cohorts"]
    assert entry["requests"] == 120
    names = ("error_rate_ci95", "fallback_rate_ci95", "crash_rate", "crash_rate_ci95")
    assert [entry[name] for name in names] == [None] * 4


def test_the_receiver_answers_series_and_comparisons(tmp_path: Path) -> None:
    path = tmp_path / "fleet.duckdb"
    with DuckStore(path) as store:
        fill(store, 0, 12)
        fill(store, 0, 12, edgekit_bundle_version="1.1")
    with receiver(path) as running:
        status, body = running.get("/v1/report?by=version&series=day&days=2")
        found = json.loads(body)["cohorts"]
        assert status == 200 and [len(entry["series"]) for entry in found] == [1, 1]
        status, body = running.get("/v1/canary?control=1.0&canary=1.1&days=3&model=net")
        found = json.loads(body)
        assert (status, found["worse"], found["canary"]["device_days"]) == (200, False, 12)
        for wrong in (
            "report?series=hour", "canary?control=1.0", "canary?control=1&canary=1",
            "canary?control=1&canary=2&k=2", "canary?control=1&canary=2&days=36",
            "canary?control=1&canary=2&alpha=2", "canary?control=1&canary=2&by=app",
        ):  # fmt: skip
            assert running.get(f"/v1/{wrong}")[0] == 400, wrong
        assert running.get("/")[0] == 200
        assert running.post("/", b"")[0] == 405
