"""TEL-18 and more: what a report says of many devices, and that it says nothing of few."""

from __future__ import annotations

import itertools
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from receiving import RESOURCE, crash, logs_request, metrics_record, window

from edgekit import schemas
from edgekit.cli.main import main
from edgekit.errors import UsageError
from edgekit.runtime import otlp
from edgekit.runtime.aggregate import Aggregate
from edgekit.runtime.sketch import RELATIVE_ERROR
from edgekit.telemetry.cohorts import BASE, Window
from edgekit.telemetry.duck import DuckStore
from edgekit.telemetry.merged import quantiles
from edgekit.telemetry.reading import read_logs, read_metrics
from edgekit.telemetry.report import RANKS, report
from edgekit.telemetry.store import Store
from edgekit.telemetry.versions import against

NOW = time.time_ns()
TODAY = NOW // (86_400 * 10**9)
DAYS = Window(TODAY - 1, TODAY)


def fill(store: Store, devices: int, requests: int = 10, **resource: str) -> None:
    attributes = {**RESOURCE, **{k.replace("_", "."): v for k, v in resource.items()}}
    aggregate = window(1)
    aggregate.requests = {("device", "sure"): requests}
    records = [metrics_record(aggregate, resource=attributes, time_ns=NOW) for _ in range(devices)]
    store.write(read_metrics(otlp.request(records)).deliveries)


@pytest.fixture
def store(opened: Callable[..., Store]) -> Store:
    return opened(lambda: NOW)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Store]:
    """A store for what takes thousands of statements and none that others don't have."""
    with DuckStore(tmp_path / "fleet.duckdb", clock_ns=lambda: NOW) as opened:
        yield opened


def test_percentiles_are_those_of_all_values_within_the_bound(store: Store) -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(-4, 1, (20, 200))
    records = []
    for row in values:
        aggregate = Aggregate()
        for value in row:
            aggregate.add("device", "sure", float(value), 0.9, 3, None)
        records.append(metrics_record(aggregate, time_ns=NOW))
    store.write(read_metrics(otlp.request(records)).deliveries)
    (entry,) = report(store, DAYS)["cohorts"]
    latency = entry["latency_s"]["device"]
    assert latency["count"] == values.size
    assert latency["relative_error"] == pytest.approx(RELATIVE_ERROR)
    for rank in RANKS:
        true = np.quantile(values, rank, method="lower")
        assert latency[f"p{rank * 100:g}"] == pytest.approx(true, rel=RELATIVE_ERROR * 1.0001)
    assert entry["devices"] == 20
    assert entry["memory_bytes"] is None


def test_sketches_of_two_scales_merge_at_the_coarser() -> None:
    fine = [(5, i, 1) for i in range(64)]
    coarse = [(4, i, 2) for i in range(32)]
    both = quantiles([*fine, *coarse], [0.0, 0.5, 1.0])
    assert both is not None
    assert both.values == quantiles([(4, i, 4) for i in range(32)], [0.0, 0.5, 1.0]).values  # type: ignore[union-attr]
    assert both.relative_error == pytest.approx((2 ** (1 / 16) - 1) / (2 ** (1 / 16) + 1))
    assert quantiles([], [0.5]) is None


def test_rates_are_counted(store: Store) -> None:
    device = uuid.uuid4().hex
    fill(store, 9)
    aggregate = window(6)
    aggregate.add("cloud", "unsure", 0.2, 0.4, 3, None)
    aggregate.add_error("device", "MemoryError")
    records = [metrics_record(aggregate, device=device, time_ns=NOW)]
    store.write(read_metrics(otlp.request(records)).deliveries)
    log = logs_request([crash(uuid.uuid4().hex)], device)
    store.write(read_logs(log).deliveries)
    (entry,) = report(store, DAYS)["cohorts"]
    assert entry["requests"] == 97
    assert entry["sources"] == {"cloud": 1 / 97, "device": 96 / 97}
    assert entry["error_rate"] == 1 / 97
    assert entry["errors"] == {"MemoryError": 1}
    assert (entry["crashes"], entry["crashes_per_device_day"]) == (1, 0.1)


# -- TEL-18 ---------------------------------------------------------------------------------------


def test_a_cohort_below_k_is_in_no_report(store: Store) -> None:
    """TEL-18: k devices are shown, k - 1 are not, and not in the total either."""
    fill(store, 10)
    fill(store, 9, requests=7, edgekit_device_class="pixel-6")
    whole = report(store, DAYS)
    schemas.validate(whole)
    assert [entry["device"] for entry in whole["cohorts"]] == ["pixel-8"]
    (total,) = report(store, DAYS, by=())["cohorts"]
    assert total["requests"] == 100
    assert report(store, DAYS, where={"device": "pixel-6"})["cohorts"] == []
    # That there are nine more, even.
    assert whole["base_cells"] == {"shown": 1, "left_out": None}


def test_no_difference_of_two_reports_is_of_fewer_than_k(file: Store) -> None:
    """TEL-18: every report that can be asked for, less every other one."""
    rng = random.Random(1)
    k, sizes = 5, {}
    # Requests tell whose they are: of cohort i each device has 20 ** i, so any sum or difference of
    # cohorts is a number of base 20 of which digit i is how many devices of cohort i are in it.
    axes = itertools.product(("pixel-6", "pixel-8"), ("1.0", "1.1"), ("2.0", "2.1"))
    for i, (device, version, app) in enumerate(axes):
        devices = rng.choice((k - 1, k, k + 3)) if i else k - 1
        sizes[i] = devices
        names = {"edgekit_device_class": device, "edgekit_bundle_version": version}
        fill(file, devices, 20**i, **names, service_version=app)
    totals = []
    wheres: list[Mapping[str, str]] = [{}]
    wheres += [{"device": d} for d in ("pixel-6", "pixel-8")]
    wheres += [{"version": v} for v in ("1.0", "1.1")]
    wheres += [{"device": "pixel-6", "app": a} for a in ("2.0", "2.1")]
    for n in range(len(BASE) + 1):
        for by, where in itertools.product(itertools.combinations(BASE, n), wheres):
            entries = report(file, DAYS, by=by, where=where, k=k)["cohorts"]
            totals += [entry["requests"] for entry in entries]
            totals.append(sum(entry["requests"] for entry in entries))
    assert sum(size * 20**i for i, size in sizes.items() if size >= k) in totals
    small = {i for i, size in sizes.items() if size < k}
    assert 2 <= len(small) < len(sizes)
    for one, other in itertools.product(set(totals), repeat=2):
        there = {i for i, digit in enumerate(digits(one - other)) if digit}
        assert not there & small


def digits(number: int) -> list[int]:
    """Of base 20, from -10 to 9."""
    found = []
    while number:
        digit = (number + 10) % 20 - 10
        found.append(digit)
        number = (number - digit) // 20
    return found


def test_devices_without_a_name_make_no_cohort(store: Store) -> None:
    for _ in range(20):
        record = otlp.decode("ResourceMetrics", metrics_record(window(), time_ns=NOW))
        record["resource"]["attributes"] = otlp.key_values(RESOURCE)
        body = otlp.request([otlp.encode("ResourceMetrics", record)])
        store.write(read_metrics(body).deliveries)
    assert report(store, DAYS)["cohorts"] == []


def test_what_a_report_does_not_know_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="model, version, device, app"):
        report(store, DAYS, by=("os",))
    with pytest.raises(UsageError, match="model, version, device, app"):
        report(store, DAYS, where={'"; DROP TABLE cell; --': "x"})
    with pytest.raises(UsageError, match="at least 2"):
        report(store, DAYS, k=1)


def test_the_command_shows_it(store: Store, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store, 12)
    fill(store, 3, edgekit_device_class="ipad")
    store.close()
    assert main(["telemetry", "report", where, "--by", "device"]) == 0
    text = capsys.readouterr().out
    assert "pixel-8" in text and "ipad" not in text and "some, of fewer than 10" in text
    assert main(["telemetry", "report", where, "--by", "all", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    schemas.validate(document)
    assert [entry["requests"] for entry in document["cohorts"]] == [120]
    assert main(["telemetry", "report", where, "--where", "device"]) == 2


def test_drift_is_told_of_what_drifted(
    store: Store, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(3)
    day = 86_400 * 10**9
    with store:
        for back in range(8):
            for name in ("pixel-6", "pixel-8"):
                drifted = back == 0 and name == "pixel-6"
                records = []
                for _ in range(12):
                    aggregate = Aggregate()
                    for sure in rng.beta(4 if drifted else 6, 2, 100):
                        aggregate.add(
                            "device", "sure", 0.01, float(sure), int(rng.integers(10)), None
                        )
                    resource = {**RESOURCE, "edgekit.device.class": name}
                    when = NOW - back * day
                    records.append(metrics_record(aggregate, resource=resource, time_ns=when))
                store.write(read_metrics(otlp.request(records)).deliveries)
        now, before = Window(TODAY, TODAY), Window(TODAY - 7, TODAY - 1)
        document = report(store, now, by=("device",), baseline=before)
    schemas.validate(json.loads(json.dumps(document)))
    entries = document["cohorts"]
    flags = {
        (entry["device"], name): drift["flagged"]
        for entry in entries
        for name, drift in entry["drift"].items()
    }
    assert flags == {
        ("pixel-6", "prediction.confidence"): True,
        ("pixel-6", "prediction.classes"): False,
        ("pixel-8", "prediction.confidence"): False,
        ("pixel-8", "prediction.classes"): False,
    }
    arguments = ["--days", "1", "--baseline-days", "7", "--by", "device"]
    assert main(["telemetry", "report", where, *arguments]) == 0
    text = capsys.readouterr().out
    assert "drift of pixel-6: prediction.confidence: psi" in text
    assert "drift of pixel-8" not in text


def test_a_canary_that_crashes_is_worse(
    store: Store, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(version: str, devices: int, crashes: int) -> None:
        resource = {**RESOURCE, "edgekit.bundle.version": version}
        for i in range(devices):
            aggregate = window(10)
            if i < crashes:
                aggregate.add_error("device", "MemoryError")
            record = metrics_record(aggregate, resource=resource, time_ns=NOW)
            store.write(read_metrics(otlp.request([record])).deliveries)

    run("1.0", 60, 2)
    run("1.1", 20, 10)
    run("1.2", 20, 1)
    run("1.3", 9, 9)
    bad = against(store, DAYS, "1.0", "1.1")
    schemas.validate(bad)
    assert bad["canary"] == {"version": "1.1", "device_days": 20, "failed": 10}
    assert (bad["worse"], bad["since_day"]) == (True, TODAY)
    assert against(store, DAYS, "1.0", "1.2")["worse"] is False
    # Of fewer than k devices nothing is said, be it ever so bad.
    few = against(store, DAYS, "1.0", "1.3")
    assert (few["worse"], few["canary"]["failed"]) == (None, 0)
    schemas.validate(few)
    with pytest.raises(UsageError, match="one version against another"):
        against(store, DAYS, "1.0", "1.0")
    store.close()
    assert main(["telemetry", "canary", where, "1.0", "1.1"]) == 1
    assert "worse, p" in capsys.readouterr().out
    assert main(["telemetry", "canary", where, "1.0", "1.2"]) == 0
