"""TEL-19, the receiver's side: noised counts are kept apart, and the noise is taken out again."""

from __future__ import annotations

import json
import random
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from receiving import RESOURCE, metrics_record, receiver
from scipy import stats

from edgekit.cli.main import main
from edgekit.runtime import otlp
from edgekit.runtime._draws import Report
from edgekit.runtime.aggregate import CONFIDENCE_BOUNDS, Aggregate
from edgekit.runtime.privacy import LocalPrivacy, Noise, randomized
from edgekit.runtime.recorder import Recorder
from edgekit.telemetry.cohorts import Window
from edgekit.telemetry.drifting import held_against
from edgekit.telemetry.duck import DuckStore
from edgekit.telemetry.reading import read_metrics
from edgekit.telemetry.report import report


def seeded(seed: int) -> Any:
    """As `secrets.randbelow`, but the same every day."""
    return random.Random(seed).randrange


def test_the_noise_is_taken_out_again_within_the_error_that_is_told() -> None:
    truth, noise, below = [0.5, 0.3, 0.15, 0.05], Noise(1_000, 4), seeded(9)
    n, missed = 2_000, 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        reports = [randomized(int(t), 4, 1_000, below) for t in rng.choice(4, n, p=truth)]
        shares = np.array(noise.estimated(np.bincount(reports, minlength=4).tolist())) / n
        assert shares.sum() == pytest.approx(1.0)
        missed += int((np.abs(shares - truth) > 1.96 * noise.error(n) / n).sum())
    assert missed <= stats.binom.ppf(0.9999, 160, 0.05)
    expected = noise.expected({0: 500, 1: 300, 2: 150, 3: 50})
    assert sum(expected.values()) == pytest.approx(1_000)
    counts = [round(v * 1_000) for v in expected.values()]
    assert np.array(noise.estimated(counts)) / 1e6 == pytest.approx(truth, abs=1e-4)


def test_tel_19_a_report_says_noised_and_estimates_what_was_there(tmp_path: Path) -> None:

    rng, below, now = np.random.default_rng(4), seeded(4), time.time_ns()
    records, truth = [], [0.6, 0.3, 0.1]
    for _ in range(1_500):
        aggregate = Aggregate()
        aggregate.requests = {("device", "sure"): 1}
        index, confidence = int(rng.choice(3, p=truth)), int(rng.integers(16, 20))
        aggregate.reports = [
            Report("edgekit.prediction.classes", -1, randomized(index, 3, 2_000, below), 3, 2_000),
            Report(
                "edgekit.prediction.confidence", -1,
                randomized(confidence, 20, 2_000, below), 20, 2_000,
            ),
        ]  # fmt: skip
        device = uuid.uuid4().hex
        records.append(metrics_record(aggregate, device=device, resource=RESOURCE, time_ns=now))
    with DuckStore(tmp_path / "fleet.duckdb") as store:
        request = read_metrics(otlp.request(records))
        assert not request.rejected
        store.write(request.deliveries)
        day = now // (86_400 * 10**9)
        (entry,) = report(store, Window(day - 1, day + 1))["cohorts"]
    assert entry["confidence"] is None  # nothing exact was told
    by_feature = {one["feature"]: one for one in entry["noised"]}
    classes = by_feature["prediction.classes"]
    assert (classes["epsilon"], classes["reports"]) == (2.0, 1_500)
    assert classes["shares"] == pytest.approx(truth, abs=1.5 * classes["error"])
    assert classes["error"] < 0.05
    assert sum(by_feature["prediction.confidence"]["shares"][:16]) == pytest.approx(0, abs=0.2)

    class Known:
        def __init__(self, counts: dict[int, int]) -> None:
            self.known = counts

        def counts(self, metric: str, which: str = "", scheme: str = "") -> dict[int, int]:
            return self.known

    reports = [randomized(int(i), 3, 2_000, below) for i in rng.choice(3, 3_000, p=truth)]
    window = dict(enumerate(np.bincount(reports, minlength=3).tolist()))
    feature = {("edgekit.prediction.classes", "", "2000", "3"): [{("d", ""): {0: window}}]}
    name = "prediction.classes (noised, epsilon=2)"
    for counts, flagged in (({0: 600, 1: 300, 2: 100}, False), ({0: 300, 1: 300, 2: 400}, True)):
        known: Any = {"d": Known(counts)}
        assert held_against(known, feature)["features"][name]["flagged"] is flagged


@pytest.mark.parametrize(
    "wrong",
    [
        {"edgekit.noise.epsilon": 1_000},
        {"edgekit.noise.choices": 20},
        {"edgekit.noise.epsilon": 1_000, "edgekit.noise.choices": 19},
    ],
)
def test_noise_that_could_not_be_taken_out_is_rejected(wrong: dict[str, int]) -> None:

    bins = [0] * 19 + [1]
    point = {
        "time_unix_nano": 1, "count": 1, "bucket_counts": bins,
        "explicit_bounds": list(CONFIDENCE_BOUNDS), "attributes": otlp.key_values(wrong),
    }  # fmt: skip
    histogram = {"data_points": [point], "aggregation_temporality": otlp.DELTA}
    metric = {"name": "edgekit.prediction.confidence", "histogram": histogram}
    record = otlp.encode("ResourceMetrics", {"scope_metrics": [{"metrics": [metric]}]})
    found = read_metrics(otlp.request([record]))
    assert sum(found.rejected.values()) == 1
    assert "noise" in next(iter(found.rejected))


def test_devices_that_noise_reach_the_report_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, privacy = tmp_path / "fleet.duckdb", LocalPrivacy(epsilon=2.0, budget=8.0, classes=4)
    with receiver(store) as server:
        where = f"http://127.0.0.1:{server.port}"
        for i in range(10):
            folder = tmp_path / str(i)
            with Recorder(folder, endpoint=where, privacy=privacy, background=False) as recorder:
                recorder.give_consent()
                for _ in range(30):
                    recorder.record(0.01, confidence=0.97, predicted=2)
                assert recorder.flush()
                while recorder.counts().pending:
                    recorder.upload()
        assert server.end() == 0
    assert main(["telemetry", "report", str(store), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["cohorts"]
    assert (entry["requests"], entry["confidence"]) == (300, None)
    assert {one["feature"]: (one["epsilon"], one["reports"]) for one in entry["noised"]} == {
        "prediction.classes": (2.0, 10), "prediction.confidence": (2.0, 10),
    }  # fmt: skip
    assert main(["telemetry", "report", str(store)]) == 0
    assert "noised, epsilon=2: prediction.classes of" in capsys.readouterr().out
