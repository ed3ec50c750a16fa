"""What one bad device, one bad question or one slip of the hand must not do to all the others."""

from __future__ import annotations

import gc
import json
import os
import re
import stat
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

import duckdb
from receiving import RESOURCE, metrics_record, window

from edgekit.cli.main import main
from edgekit.errors import BadData
from edgekit.runtime import otlp
from edgekit.telemetry import store as stores
from edgekit.telemetry.checking import asked_rules, check
from edgekit.telemetry.cohorts import Window
from edgekit.telemetry.dashboard import page
from edgekit.telemetry.duck import DuckStore
from edgekit.telemetry.merged import quantiles
from edgekit.telemetry.reading import HOUR_NS, Request, read_metrics
from edgekit.telemetry.report import report
from edgekit.telemetry.rules import rules_of
from edgekit.telemetry.store import Store

NOW = time.time_ns()
TODAY = Window(NOW // HOUR_NS // 24, NOW // HOUR_NS // 24)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with DuckStore(tmp_path / "fleet.duckdb", clock_ns=lambda: NOW) as opened:
        yield opened


def sent(name: str, changed: Mapping[str, Any], times: int = 1) -> Request:
    """A window's record, with one field of its points changed, and the points so many times."""
    record = otlp.decode("ResourceMetrics", metrics_record(window(), time_ns=NOW))
    for metric in record["scope_metrics"][0]["metrics"]:
        if metric["name"] == name:
            (data,) = (metric[kind] for kind in ("sum", "exponential_histogram") if kind in metric)
            for point in data["data_points"]:
                point.update(changed)
            data["data_points"] *= times
    return read_metrics(otlp.request([otlp.encode("ResourceMetrics", record)]))


def sketch(first: int, scale: int, counts: int = 1) -> dict[str, Any]:
    positive = {"offset": first, "bucket_counts": [1] * counts}
    return {"positive": positive, "scale": scale, "zero_count": 0, "count": counts}


def test_counts_that_no_device_has_are_refused_and_sums_stay_in_range(store: Store) -> None:
    requests = "edgekit.inference.requests"
    assert sent(requests, {"as_int": 2**32 + 1}).rejected.total() == 1
    # The most that there may be, a thousand times in one transaction.
    most = sent(requests, {"as_int": 2**32}, 1000)
    assert not most.rejected
    store.write(most.deliveries)
    store.write([delivery for _ in range(12) for delivery in sent(requests, {}).deliveries])
    (entry,) = report(store, TODAY, k=2)["cohorts"]
    assert entry["requests"] == 1000 * 2**32 + 12 * 10
    store.tidy()


@pytest.mark.parametrize(
    ("first", "scale", "taken"),
    [
        (2**30, 5, False),
        (-(2**30), 5, False),
        (1024 * 32, 5, True),
        (1024 * 32 + 1, 5, False),
        (-1075 * 32 - 1, 5, True),
        (-1075 * 32 - 2, 5, False),
        (1, -10, True),
        (2, -10, False),
    ],
)
def test_one_sketch_with_odd_buckets_leaves_reports_of_the_others(
    store: Store, first: int, scale: int, taken: bool
) -> None:
    for _ in range(3):
        store.write(read_metrics(otlp.request([metrics_record(window(), time_ns=NOW)])).deliveries)
    odd = sent("edgekit.inference.duration", sketch(first, scale))
    assert bool(odd.rejected) != taken
    store.write(odd.deliveries)
    (entry,) = report(store, TODAY, k=2)["cohorts"]
    assert json.dumps(entry, allow_nan=False)
    assert entry["latency_s"]["device"]["count"] == 30 + taken


def test_quantiles_of_any_scale_are_numbers() -> None:
    for scale, bucket in ((-10, 0), (-10, 1), (-9, -3), (5, 1024 * 32), (5, 2**30), (5, -(2**30))):
        found = quantiles([(scale, bucket, 3)], [0.5])
        assert found is not None
        assert 0 <= found.values[0] < float("inf")
        assert 0 < found.relative_error <= 1


def test_a_sum_beyond_all_sums_is_left_out(store: Store) -> None:
    for _ in range(2):
        huge = {"sum": 1e308, "min": 1.0, "max": 1e308}
        store.write(sent("edgekit.inference.duration", huge).deliveries)
    assert store.query("SELECT count(*) FROM moment WHERE total > 1e300") == [(0,)]
    assert store.query("SELECT sum(n)::BIGINT FROM cell")[0][0] > 0


def test_json_of_very_many_values_is_refused_before_it_is_read() -> None:
    hollow = b'{"resourceMetrics":[' + b"{}," * 300_000 + b"{}]}"
    begun = time.process_time()
    with pytest.raises(BadData, match="at most 500000 values"):
        read_metrics(hollow, as_json=True)
    # It is counted, not parsed: that takes microseconds for each.
    assert time.process_time() - begun < 0.5
    assert read_metrics(b'{"resourceMetrics":[{},{}]}', as_json=True).deliveries == []


def test_attributes_that_stand_often_are_not_remembered() -> None:
    """A point may have a hundred long ones, and there is a cache of tens of thousands."""
    record = otlp.decode("ResourceMetrics", metrics_record(window(), time_ns=NOW))
    metrics = record["scope_metrics"][0]["metrics"]
    (requests,) = (one for one in metrics if one["name"] == "edgekit.inference.requests")

    def point(i: int) -> dict[str, Any]:
        odd = [otlp.key_values({"edgekit.source": f"{i} {j} {'x' * 240}"})[0] for j in range(120)]
        return {"as_int": 1, "attributes": odd}

    requests["sum"]["data_points"] = [point(i) for i in range(200)]
    record["scope_metrics"][0]["metrics"] = [requests]
    body = otlp.request([otlp.encode("ResourceMetrics", record)])
    tracemalloc.start()
    try:
        found = read_metrics(body)
        del found
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**20, f"{kept} of {len(body)} bytes"


def test_cohorts_beyond_the_most_are_refused_and_those_that_are_known_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_MOST_COHORTS", 3)

    def written(versions: range) -> list[str]:
        records = [
            metrics_record(
                window(), resource={**RESOURCE, "edgekit.bundle.version": f"{n}.0"}, time_ns=NOW
            )
            for n in versions
        ]
        deliveries = read_metrics(otlp.request(records)).deliveries
        refused = store.write(deliveries).refused
        return [delivery.cohort[1] for delivery in refused]

    assert set(written(range(2))) == set()
    assert set(written(range(5))) == {"3.0", "4.0"}
    assert set(written(range(3))) == set()
    assert store.query("SELECT count(*) FROM cohort") == [(3,)]
    found = {entry["version"]: entry["requests"] for entry in report(store, TODAY, k=2)["cohorts"]}
    assert found == {"0.0": 30, "1.0": 30, "2.0": 20}


@pytest.mark.parametrize(
    "changed",
    [{"where": {"model": "\ud800"}}, {"where": {"model": "a\0"}}, {"false_alarms": 1e-300}],
)
def test_rules_that_would_break_a_look_are_refused(changed: dict[str, Any]) -> None:
    rule = {"name": "r", "kind": "error_rate", "limit": 0.1, **changed}
    with pytest.raises(BadData, match=r"rule 1 \(r\): (where\.model|false_alarms) is"):
        rules_of([rule], "the request")


def test_the_rarest_false_alarms_can_be_looked_for(store: Store) -> None:
    for _ in range(3):
        store.write(read_metrics(otlp.request([metrics_record(window(), time_ns=NOW)])).deliveries)
    rare = {"name": "r", "kind": "error_rate", "limit": 0.1, "false_alarms": 1.1e-9}
    rare |= {"least_devices": 2, "least_requests": 1}
    rules = asked_rules(json.dumps({"rules": [rare]}).encode())
    found = check(store, rules, now_s=NOW / 1e9, k=2, interval_s=0.1)
    assert found["rules"][0]["beyond"] is False


def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "other.duckdb"
    with duckdb.connect(str(other)) as database:
        database.execute("CREATE TABLE theirs (i INTEGER)")
    other.chmod(0o644)
    with pytest.raises(BadData, match="no store of telemetry"):
        DuckStore(other)
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


def test_a_store_is_its_owners_only_whatever_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        for _ in range(2):
            with DuckStore(tmp_path / "fleet.duckdb"):
                pass
            assert stat.S_IMODE((tmp_path / "fleet.duckdb").stat().st_mode) == 0o600
            (tmp_path / "fleet.duckdb").chmod(0o644)
    finally:
        os.umask(mask)


def test_the_page_may_reach_its_receiver_and_nothing_else() -> None:
    policy = page().headers["Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules.pop(name))
    assert rules == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_the_store_reaches_for_no_other_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with store.reading() as reader, pytest.raises(duckdb.Error, match="disabled"):
        reader.query(f"SELECT * FROM read_csv('{tmp_path / 'secret.csv'}')")


@pytest.mark.parametrize("url", ["http://127.0.0.1:4318", "mysql://db/fleet", "s3://b/f.duckdb"])
def test_a_store_by_a_url_that_is_none_makes_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o022)
    try:
        assert main(["telemetry", "serve", url, "--port", "0"]) == 2
    finally:
        assert os.umask(mask) == 0o022  # it had all that came later be made for one user only
    assert "postgresql://" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_a_file_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB takes ``sqlite:`` and the like for an extension, and would fetch that."""
    monkeypatch.chdir(tmp_path)
    for name in ("sqlite:fleet.db", ":memory:"):
        with DuckStore(Path(name)):
            pass
        assert (tmp_path / name).is_file()
