"""Measurements held against each other, in pairs or not, and the store that keeps them."""

from __future__ import annotations

import copy
import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench.compare import block_medians, compare, unpaired_ratio
from edgekit.bench.store import Store
from edgekit.cli.main import main
from edgekit.errors import BadData, StorageError, UsageError
from edgekit.schemas import validate


def conditions() -> dict[str, Any]:
    """Those of a machine at rest."""
    return {
        "thermal": "ok", "busy": False, "throttling": [], "waited_s": 0.0, "temperature_c": None,
        "frequency_mhz": None, "load_average": None, "running": None, "cpu_share": 1.0,
        "slowed": 1.0, "affinity": [0], "governors": [], "battery": None,
    }  # fmt: skip


def document(seed: int = 0, **factors: float) -> dict[str, Any]:
    """A measurement of 8 rounds of 3 calls; each artifact as many times slower as it says."""
    rng = np.random.default_rng(seed)
    drift = np.exp(rng.normal(0, 0.05, (8, 1)))  # what the rounds of one run have in common
    results = []
    for name, factor in (factors or {"a": 1.0}).items():
        samples = 10 * factor * drift * np.exp(rng.normal(0, 0.01, (8, 3)))
        results.append(
            {
                "artifact": name, "target": "null", "scheme": "fp32", "delegate": "cpu",
                "threads": 1, "runtime": "numpy 2", "load_ms": 1.0, "first_ms": 1.0,
                "latency_ms": {"p50": 10.0, "p90": 11.0, "p99": None, "mad": 0.1, "n": 24},
                "samples_ms": [float(s) for s in samples.ravel()], "whole_ms": None,
                "insufficient": [],
                "steady": {"method": "x", "states": {"flat": 8}, "unsteady_rounds": 0},
                "peak_memory_mib": 30.0, "added_memory_mib": 1.0, "pss_memory_mib": None,
                "reported_memory": None, "energy": None, "bytes": 9, "conditions": conditions(),
                "rounds": [{"n": 3} for _ in range(8)], "sustained": None, "profile": None,
                "notes": [],
            }
        )  # fmt: skip
    facts = {"cpu": "A76", "machine": "aarch64", "cores": 4, "kernel": "6.1", "edgekit": "0.1.0"}
    settings = {
        "threads": 1, "runs": 24, "max_seconds": 1.0, "rounds": 8, "cpus": None,
        "max_temperature_c": None, "cool_down_s": 0.0, "sustained_s": 0.0, "profile": False,
    }  # fmt: skip
    return {
        "schema": "edgekit.bench/1", "where": "ssh://pi", "started": "2026-01-01T00:00:00+00:00",
        "settings": settings, "facts": facts, "results": results, "comparisons": [],
    }  # fmt: skip


def test_one_run_is_compared_in_pairs_and_sees_through_its_drift() -> None:
    run = document(a=1.0, b=1.05)
    validate(run)
    found = compare(run, run, [("a", "b")])
    validate(found)
    (entry,) = found["comparisons"]
    assert entry["paired"] and entry["verdict"] == "slower"
    assert 1.03 < entry["ci95"][0] <= entry["ratio"] <= entry["ci95"][1] < 1.07
    (back,) = compare(run, run, [("b", "a")])["comparisons"]
    assert back["verdict"] == "faster"


def test_two_runs_are_not_paired_and_know_less() -> None:
    one, two = document(1, a=1.0), document(2, a=1.05)
    (entry,) = compare(one, two, [("a", "a")])["comparisons"]
    assert not entry["paired"] and entry["verdict"] == "no difference shown"
    (clear,) = compare(one, document(3, a=1.4), [("a", "a")])["comparisons"]
    assert clear["verdict"] == "slower"
    assert clear["ci95"][0] < 1.4 < clear["ci95"][1]


def test_the_interval_of_two_samples_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = wrong = 0
    for _ in range(400):
        a, b = np.exp(rng.normal(0, 0.1, (2, 9)))
        ratio, low, high = unpaired_ratio(list(a), list(b * 1.1))
        assert low <= ratio <= high
        covered += low <= 1.1 <= high
        ratio, low, high = unpaired_ratio(list(a), list(b))
        wrong += not low <= 1 <= high
    assert covered >= 0.93 * 400 and wrong <= 0.07 * 400
    with pytest.raises(BadData, match="too few"):
        unpaired_ratio([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(BadData, match="positive"):
            unpaired_ratio([bad] * 6, [1.0] * 6)


def test_run_10_unlike_conditions_are_not_compared_unless_forced() -> None:
    one, two = document(1), document(2)
    two["facts"]["cpu"] = "A72"
    two["facts"]["kernel"] = "6.6"
    two["results"][0]["conditions"]["governors"] = ["powersave"]
    one["results"][0]["conditions"]["governors"] = ["performance"]
    with pytest.raises(UsageError, match=r"unlike conditions: cpu: A76 against A72; .*powersave"):
        compare(one, two, [("a", "a")], names=("1", "2"))
    (entry,) = compare(one, two, [("a", "a")], force=True)["comparisons"]
    assert entry["unlike"][0] == "cpu: A76 against A72"
    assert entry["changed"] == ["kernel: 6.1 against 6.6"]
    elsewhere = document(2)
    elsewhere["where"] = "ssh://other"
    with pytest.raises(UsageError, match="device: ssh://pi against ssh://other"):
        compare(one | {"results": document(1)["results"]}, elsewhere, [("a", "a")])


def test_what_cannot_be_compared_is_said() -> None:
    run = document()
    with pytest.raises(UsageError, match="one has no artifact 'x'"):
        compare(run, run, [("x", "a")], names=("one", "two"))
    few = document(2)
    few["results"][0]["rounds"] = [{"n": 12}, {"n": 12}]
    with pytest.raises(BadData, match="8 and 2 rounds"):
        compare(run, few, [("a", "a")])
    few["results"][0]["rounds"] = [{"n": 12}]
    with pytest.raises(BadData, match="24 samples in rounds of 12"):
        block_medians(few["results"][0])


# The store.


def keep(store: Store, measured: dict[str, Any] | None, **more: Any) -> int:
    """Appends a measurement, a failure if there is no document."""
    usual = {"url": "ssh://pi", "device": "raspberry-pi-5", "subject": "a.zip", "settings": {}}
    return store.append(**{**usual, **more}, document=measured)


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path / "sub" / "bench.sqlite")
    first = keep(store, document(1), settings={"threads": 4})
    second = keep(store, None, reason="the link broke", attempts=2, url="adb://x", device=None)
    again = Store(store.path)
    assert [m.id for m in again.measurements()] == [second, first]
    found = again.measurement(first)
    assert found.document == document(1) and found.settings == {"threads": 4}
    failed = again.measurement(second)
    assert (failed.status, failed.reason, failed.attempts) == ("failed", "the link broke", 2)
    assert [m.id for m in again.measurements(device="raspberry-pi-5")] == [first]
    assert [m.id for m in again.measurements(device="adb://x")] == [second]
    assert again.measurements(subject="b.zip") == []
    assert len(again.measurements(limit=1)) == 1
    with pytest.raises(UsageError, match="no measurement 9"):
        again.measurement(9)


def test_a_session_goes_on_until_it_is_finished(tmp_path: Path) -> None:
    store = Store(tmp_path / "bench.sqlite")
    first = store.session("digest", again=False)
    assert store.session("digest", again=False) == first
    assert store.session("other", again=False) != first
    anew = store.session("digest", again=True)
    assert anew != first
    store.finish(anew)
    assert store.session("digest", again=False) == first


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be told from an empty one")
    with pytest.raises(BadData, match="no store of results"):
        Store(tmp_path / "text")
    with sqlite3.connect(tmp_path / "newer.sqlite") as base:
        base.execute("PRAGMA user_version = 9")
    base.close()
    with pytest.raises(BadData, match="version 9"):
        Store(tmp_path / "newer.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Store(tmp_path / "file" / "bench.sqlite")


# The verbs.


def run_main(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `edgekit bench`."""
    code = main(["bench", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_history_lists_and_compare_judges(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = Store(tmp_path / "bench.sqlite")
    keep(store, document(1, a=1.0, b=1.05))
    keep(store, document(3, a=1.4))
    keep(store, None, reason="the link broke")
    where = ["--store", str(store.path)]
    code, out, _ = run_main(capsys, "history", *where)
    assert code == 0 and "raspberry-pi-5" in out and "failed: the link broke" in out
    code, out, _ = run_main(capsys, "history", *where, "--json", "--limit", "2")
    listed = json.loads(out)
    validate(listed)
    assert [m["id"] for m in listed["measurements"]] == [3, 2]
    assert listed["measurements"][1]["results"][0]["p50_ms"] == 10.0

    code, out, _ = run_main(capsys, "compare", "1", "2", *where)
    assert code == 0 and "a: slower, 1.3" in out and "at different times" in out
    code, out, _ = run_main(capsys, "compare", "1", "2", *where, "--fail-if-slower", "--json")
    assert code == 1
    validate(json.loads(out))
    code, out, _ = run_main(capsys, "compare", "1:a", "1:b", *where)
    assert code == 0 and "b against a: slower" in out and "in pairs" in out
    code, _, err = run_main(capsys, "compare", "1", "3", *where)
    assert code == 2 and "measurement 3 failed: the link broke" in err
    code, _, err = run_main(capsys, "compare", "1", "nothing", *where)
    assert code == 2 and "neither a file nor the number" in err


def test_compare_takes_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps(document(1, a=1.0, b=1.0)))
    two.write_text(json.dumps(document(2, b=1.4, c=1.0)))
    code, out, _ = run_main(capsys, "compare", str(one), str(two))
    assert code == 0 and out.startswith("b: slower")
    code, out, _ = run_main(capsys, "compare", f"{one}:a", f"{two}:c")
    assert code == 0 and out.startswith("c against a: no difference shown")
    (tmp_path / "other.json").write_text(json.dumps({"schema": "edgekit.export/1"}))
    code, _, err = run_main(capsys, "compare", str(one), str(tmp_path / "other.json"))
    assert code == 7 and "no edgekit.bench/1 document" in err
    lone = copy.deepcopy(document(2, x=1.0))
    two.write_text(json.dumps(lone))
    code, _, err = run_main(capsys, "compare", str(one), str(two))
    assert code == 2 and "no artifact in common" in err
