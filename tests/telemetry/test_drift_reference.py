"""Drift against a bundle: what it was proven on, from its manifest to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from receiving import receiver

from edgekit.cli.main import main
from edgekit.runtime.aggregate import CONFIDENCE_BOUNDS
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.drift_reference import (
    DriftReference,
    counted_inputs,
    counted_predictions,
    with_policy,
)
from edgekit.runtime.input_statistics import INPUT_BOUNDS
from edgekit.runtime.policy import Policy, certainty
from edgekit.runtime.recorder import Recorder
from edgekit.telemetry.drift import compare
from edgekit.telemetry.drifting import held_against

CLASSES = "edgekit.prediction.classes"
CONFIDENCE = "edgekit.prediction.confidence"
Made = Callable[..., Path]


def inputs_of(rng: np.random.Generator, n: int, shift: float = 0.0) -> np.ndarray:
    """[n, 1, 2, 3] float32."""
    loudness = rng.lognormal(0, 0.3, (n, 1, 1, 1))
    return (rng.standard_normal((n, 1, 2, 3)) * loudness + shift).astype(np.float32)


def scores_of(rng: np.random.Generator, n: int, sharp: float = 3.0) -> np.ndarray:
    """[n, 4] logits."""
    return rng.standard_normal((n, 4)) * sharp


def statistics(**more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    predictions = {
        "held_out": True,
        "plans": {
            "fp32": counted_predictions(scores_of(rng, 3_000), "logits"),
            "w8a8": counted_predictions(scores_of(rng, 3_000, 2.0), "logits"),
        },
    }
    inputs = {"x": counted_inputs(inputs_of(rng, 2_000))}
    return {"inputs": inputs, "predictions": {"y": {**predictions, **more}}}


@pytest.fixture
def made(
    tmp_path: Path,
    bundle_contents: tuple[dict[str, bytes], dict[str, Any]],
    write_directory: Callable[..., Path],
) -> Made:
    """Writes a bundle whose manifest is changed in some fields."""

    def write(name: str = "bundle", **fields: Any) -> Path:
        files, manifest = bundle_contents
        return write_directory(tmp_path / name, files, manifest | fields)

    return write


def of(path: Path) -> DriftReference:
    with Bundle.open(path) as bundle:
        return DriftReference(bundle)


# -- what the manifest holds ----------------------------------------------------------------------


def test_a_bundle_gives_back_what_was_counted(made: Made) -> None:
    known = statistics()
    reference = of(made(reference_statistics=known))
    plans = known["predictions"]["y"]["plans"]
    assert reference.counts(CLASSES, scheme="w8a8") == dict(enumerate(plans["w8a8"]["classes"]))
    # A device that does not tell its scheme has the bundle's first artifact; fp32 is one here.
    assert reference.counts(CLASSES) == dict(enumerate(plans["fp32"]["classes"]))
    confidence = reference.counts(CONFIDENCE, scheme="w8a8")
    assert confidence is not None
    assert len(confidence) == len(CONFIDENCE_BOUNDS) + 1
    assert sum(confidence.values()) == 3_000
    for name, bounds in INPUT_BOUNDS.items():
        counts = reference.counts(f"edgekit.input.{name}", "0")
        assert counts is not None
        assert (len(counts), sum(counts.values())) == (len(bounds) + 1, 2_000)
        assert reference.counts(f"edgekit.input.{name}", "1") is None
    assert reference.counts("edgekit.inference.memory") is None


def test_bundles_without_a_reference_open_and_have_none(made: Made) -> None:
    moved = statistics()
    moved["inputs"]["x"]["histograms"]["mean"]["edges"][3] += 0.01
    damaged = statistics()
    damaged["predictions"]["y"]["plans"]["fp32"]["classes"] = [1, -2, "3", None]
    for i, (known, there) in enumerate(
        [
            (None, 0),
            ({}, 0),
            ({"inputs": {"x": {"mean": 0.0, "std": 1.0, "n": 9}}, "predictions": {}}, 0),
            ({"inputs": [1], "predictions": {"y": {"n": 4, "classes": [1, 1, 1, 1]}}}, 0),
            # A model is surer of what it has learnt from: its inputs only are held against.
            (statistics(held_out=False), 3),
            (moved, 4),
            (damaged, 4),
            (statistics(), 5),
        ]
    ):
        reference = of(made(f"bundle{i}", reference_statistics=known))
        found = [reference.counts(metric) for metric in (CLASSES, CONFIDENCE)]
        found += [reference.counts(f"edgekit.input.{name}", "0") for name in INPUT_BOUNDS]
        assert sum(counts is not None for counts in found) == there, i


def test_confidence_is_that_of_the_policy(made: Made) -> None:
    policy = Policy(temperature=2.5, min_confidence=0.5, signal="margin")
    path = made(reference_statistics=statistics(), policy=policy.to_json())
    assert of(path).counts(CONFIDENCE) is None  # its counts are of another number
    assert of(path).counts(CLASSES) is not None
    scores = scores_of(np.random.default_rng(1), 500)
    with Bundle.open(path) as bundle:
        known = with_policy(bundle, policy, scores, "w8a8")
    counts = of(made("again", reference_statistics=known, policy=policy.to_json())).counts(
        CONFIDENCE
    )
    assert counts is not None
    sure = certainty(scores, 2.5, "margin")
    assert counts[0] == (sure <= CONFIDENCE_BOUNDS[0]).sum()
    assert sum(counts.values()) == 500


# -- comparing ------------------------------------------------------------------------------------


def test_hours_that_vary_together_raise_no_alarm_against_a_bundle() -> None:
    """A bundle's samples were drawn one by one; those of an hour are alike."""
    rng = np.random.default_rng(1)
    p = np.exp(np.linspace(0, 2, 10))
    p /= p.sum()
    n, effect = 100, 4.0
    flags, naive = [], []
    for _ in range(400):
        reference = rng.multinomial(20_000, p)
        shares = rng.dirichlet((n - effect) / (effect - 1) * p, 24)
        hours = np.stack([rng.multinomial(n, q) for q in shares])
        flags.append(compare(reference[None], hours, ordered=True, false_alarms=0.05).flagged)
        naive.append(compare(reference[None], hours.sum(0), ordered=True).flagged)
    assert np.mean(flags) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(naive) > 0.3


def test_a_cohort_of_two_artifacts_is_held_against_both(made: Made) -> None:
    reference = of(made(reference_statistics=statistics()))
    rng = np.random.default_rng(2)

    def counted(n: int, sharp: float) -> dict[int, int]:
        bins = counted_predictions(scores_of(rng, n, sharp), "logits")["confidence"]["counts"]
        return dict(enumerate(bins))

    float_counts, int8_counts = counted(1_000, 3.0), counted(4_000, 2.0)
    digest, other = reference.digest, ("0" * 64, "w8a8")
    ours = {(digest, "fp32"): {0: float_counts}, (digest, "w8a8"): {0: int8_counts}}
    theirs: dict[tuple[str, str], Any] = {other: {0: {0: 5_000}}}
    found = held_against(
        {digest: reference},
        {(CONFIDENCE, "", "", ""): [ours, theirs], (CLASSES, "", "", ""): [{other: {0: {1: 7}}}]},
    )
    confidence = found["features"]["prediction.confidence"]
    assert confidence["flagged"] is False
    assert confidence["counts"] == [3_000, 5_000]
    assert found["no_reference"] == {"prediction.confidence": 0.5, "prediction.classes": 1.0}
    turned: dict[tuple[str, str], Any] = {(digest, "w8a8"): {0: float_counts}}
    found = held_against({digest: reference}, {(CONFIDENCE, "", "", ""): [turned]})
    assert found["features"]["prediction.confidence"]["flagged"] is True
    # One device with a bundle of its own could be told from the others of its base cell.
    mixed = {**ours, other: {0: {0: 1}}}
    found = held_against({digest: reference}, {(CONFIDENCE, "", "", ""): [mixed]})
    assert found == {"features": {}, "no_reference": {"prediction.confidence": 1.0}}


# -- from the recorder to the report --------------------------------------------------------------


def _record(folder: Path, bundle: Bundle, url: str, seed: int, shifted: bool) -> None:
    rng = np.random.default_rng(seed)
    artifact = bundle.artifact("null-fp32")
    with Recorder(
        folder, bundle, artifact, endpoint=url, input_share=1, background=False, app_version="2.1",
        device_class="pixel-8" if shifted else "pixel-6",
    ) as recorder:  # fmt: skip
        recorder.give_consent()
        scores = scores_of(rng, 100, 1.0 if shifted else 3.0)
        inputs = inputs_of(rng, 100, 0.7 if shifted else 0.0)
        for row, sure, array in zip(
            scores, certainty(scores, 1, "confidence"), inputs, strict=True
        ):
            recorder.record(0.01, confidence=float(sure), predicted=int(row.argmax()))
            recorder.observe_inputs({"x": array})
        recorder.flush()
        while recorder.counts().pending:
            recorder.upload()
        assert recorder.counts().delivered == 1


def test_a_shifted_fleet_drifts_from_its_bundle_and_a_clean_one_does_not(
    tmp_path: Path, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = made(reference_statistics=statistics()), made("other", reference_statistics={})
    store = tmp_path / "fleet.duckdb"
    with receiver(store, "-k", 5, "--reference", path) as server:
        url = f"http://127.0.0.1:{server.port}"
        with Bundle.open(path) as bundle:
            for i in range(12):
                _record(tmp_path / str(i), bundle, url, i, shifted=i % 2 == 1)
        status, body = server.get("/v1/report?k=5")
        assert status == 200
        over_http = json.loads(body)
        assert server.end() == 0
    ask = ["telemetry", "report", str(store), "-k", "5", "--json", "--reference"]
    assert main([*ask, str(path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == over_http
    with Bundle.open(path) as bundle:
        assert document["references"] == [bundle.digest]
    drift = {entry["device"]: entry["reference_drift"] for entry in document["cohorts"]}
    assert drift["pixel-6"]["no_reference"] == drift["pixel-8"]["no_reference"] == {}
    for name, found in drift["pixel-6"]["features"].items():
        assert found["flagged"] is False, name
    flagged = {n for n, found in drift["pixel-8"]["features"].items() if found["flagged"]}
    assert flagged == {"prediction.confidence", "input.mean.0"}
    distances = drift["pixel-8"]["features"]["input.mean.0"]["distances"]
    assert {name for name, one in distances.items() if one["value"] > one["limit"]} == {
        "psi", "js", "ks",
    }  # fmt: skip
    # A bundle of another digest is none of theirs, and one is told so.
    assert main([*ask, str(other)]) == 0
    for entry in json.loads(capsys.readouterr().out)["cohorts"]:
        assert entry["reference_drift"]["features"] == {}
        assert set(entry["reference_drift"]["no_reference"].values()) == {1.0}
    assert main([*ask[:5], "--reference", str(other)]) == 0
    text = capsys.readouterr().out
    assert "no reference for chain 1.0 pixel-8 2.1: input.deviation.0, input.mean.0" in text
    assert main([*ask[:5], "--reference", str(path)]) == 0
    text = capsys.readouterr().out
    assert "drift of chain 1.0 pixel-8 2.1 from its bundle: input.mean.0: psi" in text
    assert "pixel-6 2.1 from its bundle" not in text
