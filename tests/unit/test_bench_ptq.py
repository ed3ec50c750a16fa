"""The quantization benchmark's own arithmetic: what it compares, and what its table says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def ptq() -> Iterator[Any]:
    """The modules ``bench_ptq`` and ``ptq_table``; they import their neighbours by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("bench_ptq"), importlib.import_module("ptq_table")
    finally:
        sys.path.remove(str(FOLDER))


def row(folder: Path, engine: str, answers: np.ndarray[Any, Any]) -> dict[str, Any]:
    path = folder / f"{engine}.npz"
    np.savez(path, scores=answers[:, None])
    return {
        "model": "minilm", "runtime": "openvino", "engine": engine, "status": "ok",
        "outputs": str(path), "bytes": 2048, "made_s": 1.5, "made_peak_mib": 300.0,
    }  # fmt: skip


def one_hot(classes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.eye(4, dtype=np.float32)[classes]


@pytest.fixture
def judged(ptq: Any, tmp_path: Path) -> list[dict[str, Any]]:
    """100 samples of class 0: float has all right, nncf 60, inc 70, edgekit 90."""
    rows = []
    for engine, wrong in (("float", 0), ("edgekit", 10), ("inc", 30), ("nncf", 40)):
        classes = np.zeros(100, np.int64)
        classes[:wrong] = 1
        rows.append(row(tmp_path, engine, one_hot(classes)))
    found: list[dict[str, Any]] = ptq[0].judge(rows, np.zeros(100, np.int64))
    return found


def test_accuracy_is_paired_with_float_and_with_the_best_vendor(
    judged: list[dict[str, Any]],
) -> None:
    by_engine = {r["engine"]: r for r in judged}
    assert [r["value"] for r in judged] == [100.0, 90.0, 70.0, 60.0]
    assert by_engine["nncf"]["vs_float"]["difference"] == pytest.approx(-40)
    beside = by_engine["edgekit"]["vs_best_vendor"]
    assert beside["vendor"] == "inc"
    assert beside["difference"] == pytest.approx(20)
    assert beside["verdict"] == "better"
    assert 0 < beside["ci95"][0] < 20 < beside["ci95"][1]
    assert "vs_float" not in by_engine["float"]
    assert "vs_best_vendor" not in by_engine["nncf"]


def test_embeddings_are_scored_by_their_cosine_to_the_float_ones(ptq: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((50, 8)).astype(np.float32)
    turned = truth.copy()
    turned[7] = -turned[7]
    rows = [row(tmp_path, "float", truth), row(tmp_path, "nncf", turned)]
    of_float, of_nncf = ptq[0].judge(rows, None)
    assert of_float["value"] == pytest.approx(1)
    assert of_nncf["value"] == pytest.approx(48 / 50)
    assert of_nncf["worst"] == pytest.approx(-1)


def test_answers_that_are_not_finite_fail(ptq: Any, tmp_path: Path) -> None:
    right = one_hot(np.zeros(10, np.int64))
    wrong = right.copy()
    wrong[3, 0] = np.nan
    rows = [row(tmp_path, "float", right), row(tmp_path, "inc", wrong)]
    found = ptq[0].judge(rows, np.zeros(10, np.int64))[1]
    assert found["status"] == "failed"
    assert "NaN" in found["reason"]
    assert "value" not in found


def test_a_finished_step_is_taken_from_the_cache_and_a_failed_one_is_tried_again(
    ptq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [{"error": "exited with -9: killed"}, {"seconds": 2.0}]
    monkeypatch.setattr(ptq[0].Run, "_spawn", lambda self, path: answers.pop(0))
    run = ptq[0].Run(tmp_path, threads=1, limit=None, calls=10)
    assert run.step("a" * 64, {"step": "plan"})[1] == {"error": "exited with -9: killed"}
    assert run.step("a" * 64, {"step": "plan"})[1] == {"seconds": 2.0}
    assert run.step("a" * 64, {"step": "plan"})[1] == {"seconds": 2.0}
    assert answers == []


def test_calibration_pictures_are_spread_over_the_classes(ptq: Any) -> None:
    models = sys.modules["ptq_models"]
    chosen = models.evenly(500, 128)
    assert len(set(chosen.tolist())) == 128
    assert set(np.diff(chosen)) <= {3, 4}
    assert models.evenly(5, 128).tolist() == [0, 1, 2, 3, 4]
    others = [set(models.evenly(500, 128, shift)) for shift in (1, 2, 3)]
    assert set(chosen).union(*others) == set(range(500))
    assert all(len(one) == 128 and max(one) < 500 for one in others)


def test_the_table_shows_intervals_failures_and_what_was_left_out(
    ptq: Any, judged: list[dict[str, Any]]
) -> None:
    failed = {"model": "minilm", "runtime": "openvino", "engine": "ort", "status": "failed"}
    judged[-1]["runtime_version"] = "onnxruntime 1.32.0 without Fusion"
    document = {
        "rows": [*judged, {**failed, "reason": "it gave up"}],
        "skipped": [{"model": "mobilenet-v2", "reason": "no --cifar10"}],
        "titles": {"minilm": "MiniLM"},
        "metrics": {"minilm": "top1"},
        "runs": [{"facts": {"cpu": "a processor"}, "threads_making": 1}],
        "one_plan": [],
    }
    document["rows"] = [{**r, "run": 0} for r in document["rows"]]
    text = ptq[1].table(document)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    (ours,) = [line for line in lines if "| edgekit |" in line]
    assert "| 90.00 | -10.00 [" in ours
    assert "+20.00 [" in ours and "(inc)" in ours
    assert "failed: it gave up" in text
    assert "| nncf (loaded without Fusion) | 60.00 |" in text
    assert "mobilenet-v2 was left out: no --cifar10." in text
    assert "openvino: one call on one thread, a processor;" in text


def test_the_pictures_of_several_models_are_judged_together(
    ptq: Any, judged: list[dict[str, Any]], tmp_path: Path
) -> None:
    labels = np.zeros(100, np.int64)
    other = tmp_path / "other"
    other.mkdir()
    rows = [row(other, engine, one_hot(labels)) for engine in ("float", "edgekit", "nncf")]
    again = ptq[0].judge(rows, labels)
    assert ptq[0].pool({"one": (judged, labels)}) == []
    pooled = ptq[0].pool({"one": (judged, labels), "two": (again, labels)})
    found = {r["engine"]: r for r in pooled}
    assert {k: (r["value"], r["n"]) for k, r in found.items()} == {
        "float": (100.0, 200), "edgekit": (95.0, 200), "nncf": (80.0, 200),
    }  # fmt: skip
    assert found["edgekit"]["vs_best_vendor"]["vendor"] == "nncf"  # inc has one model only
    assert found["edgekit"]["vs_float"]["difference"] == pytest.approx(-5)
    (text,) = ptq[1]._pooled_tables({"pooled": pooled, "titles": {"one": "A", "two": "B"}})
    assert text.startswith("**A and B together**, 200 answers")
    assert "| openvino | edgekit | 95.00 | -5.00 [" in text


def test_the_overview_has_a_line_for_every_runtime_and_names_the_best_vendor(
    ptq: Any, judged: list[dict[str, Any]]
) -> None:
    document = {"rows": judged, "titles": {"minilm": "A net"}, "metrics": {"minilm": "top1"}}
    lines = ptq[1].overview(document).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| A net, n 100 | openvino | 100.00 | 90.00, -10.00 [")
    assert "| 70.00 inc; +20.00 [" in lines[2] and lines[2].endswith("| 2 (2) |  |")


def test_the_ablation_table_has_a_line_for_every_choice_of_methods(ptq: Any) -> None:
    common = {"sqnr_db": 20.0, "plan_s": 3.0, "n": 10}
    pictures = {**common, "methods": "none", "top1": 80.0, "float_top1": 90.0}
    sentences = {**common, "methods": "none", "cosine": 0.99, "worst_cosine": 0.9}
    models = {"a": [pictures, {**pictures, "methods": "all"}]}
    models["b"] = [sentences, {**sentences, "methods": "all"}]
    lines = ptq[1].ablation({"models": models}, {"a": "A", "b": "B"}).splitlines()
    assert "top-1 (float 90.00, n 10)" in lines[0] and "cosine (worst)" in lines[0]
    assert lines[2] == "| none | 20.0 | 80.00 | 20.0 | 0.9900 (0.9000) | 3 | 3 |"
    assert lines[3].startswith("| all |")


def of(model: str, runtime: str, value: float, **more: Any) -> dict[str, Any]:
    """A row of edgekit's, as a report has it."""
    row = {"model": model, "runtime": runtime, "engine": "edgekit", "status": "ok", "n": 9}
    return {**row, "value": value, "plan": "a" * 64, "run": 0, **more}


@pytest.fixture
def modules(ptq: Any) -> tuple[Any, Any]:
    return importlib.import_module("ptq_judge"), importlib.import_module("ptq_report")


def test_accuracies_of_one_plan_are_held_together(ptq: Any, modules: Any) -> None:
    against = {"difference": -1.0, "ci95": [-3.0, 0.5]}
    name = "mobilenet-v2"
    rows = [
        of(name, "tflite", 80.0),
        of(name, "executorch", 80.29),
        of(name, "openvino", 90.0, plan="b" * 64),  # another plan
        of(name, "coreml", 70.0, emulated=True, n=5, vs_float=against),
        {**of(name, "tflite", 60.0), "engine": "nncf"},
        {k: v for k, v in of(name, "onnxruntime", 50.0).items() if k != "plan"},
    ]
    first, second = modules[0].spreads(rows, {name: "top1"})
    assert first["values"] == {"tflite": 80.0, "executorch": 80.29}
    assert first["spread"] == pytest.approx(0.29) and first["within"] is True
    assert first["emulated"] == {"coreml": {"n": 5, **against}}
    assert second["values"] == {"openvino": 90.0}
    assert second["spread"] is None and second["within"] is None
    rows[1]["value"] = 80.31
    (over, _) = modules[0].spreads(rows, {name: "top1"})
    assert over["within"] is False
    (cosine, _) = modules[0].spreads(rows, {name: "cosine"})
    assert cosine["within"] is None and cosine["limit"] is None
    text = ptq[1].one_plan({"one_plan": [over], "titles": {name: "A net"}})
    assert text == (
        "A net, one plan (sha256 aaaaaaaaaaaa): tflite 80.00, executorch 80.31; 0.31 apart, "
        "OVER 0.3 points; coreml, emulated, 5 samples: -1.00 [-3.00, +0.50] against float."
    )


def test_rows_of_two_runs_keep_their_own_facts(modules: Any) -> None:
    run = {"edgekit": "0", "packages": {}, "threads_making": 1, "threads_measuring": 1}
    pooled = [
        {"models": ["mobilenet-v2", "mobilenet-v3-small"], "runtime": r, "engine": "edgekit"}
        for r in ("tflite", "executorch")
    ]
    # As reports were before rows named their run.
    old = {
        **run, "facts": {"cpu": "old"}, "settings": {}, "pooled": pooled,
        "rows": [
            {k: v for k, v in of("mobilenet-v2", r, 1.0).items() if k not in ("run", "plan")}
            for r in ("executorch", "tflite")
        ],
        "skipped": [{"model": m, "reason": "no data"} for m in ("minilm", "mobilenet-v3-small")],
    }  # fmt: skip
    new = {
        "runs": [{**run, "facts": {"cpu": "new"}}], "settings": {"nncf": {}}, "pooled": [],
        "rows": [
            of(m, "executorch", v) for m, v in (("mobilenet-v3-small", 3.0), ("mobilenet-v2", 2.0))
        ],
        "skipped": [],
    }  # fmt: skip
    for _ in range(2):  # merging a merged report again changes nothing
        old = modules[1].merged(old, new)
        cpus = [run["facts"]["cpu"] for run in old["runs"]]
        assert [(r["model"], r["runtime"], r["value"], cpus[r["run"]]) for r in old["rows"]] == [
            ("mobilenet-v2", "tflite", 1.0, "old"),
            ("mobilenet-v2", "executorch", 2.0, "new"),
            ("mobilenet-v3-small", "executorch", 3.0, "new"),
        ]
        assert [row["runtime"] for row in old["pooled"]] == ["tflite"]
        assert [s["model"] for s in old["skipped"]] == ["minilm"]
        assert sorted(cpus) == ["new", "old"]
        assert {p["model"] for p in old["one_plan"]} == {"mobilenet-v2", "mobilenet-v3-small"}


def test_a_step_depends_on_its_own_targets_files_and_the_shared_ones(ptq: Any) -> None:
    for target in ("torch-mobile", "onnxruntime"):
        files = ptq[0]._target_files(target)
        assert "targets/_common.py" in files and "targets/_tflite_file.py" not in files
        assert f"targets/{target.replace('-', '_')}.py" in files
    assert "targets/_onnx_file.py" in ptq[0]._target_files("onnxruntime")
    assert "targets/_torch_mobile_file.py" not in ptq[0]._target_files("onnxruntime")


def test_folds_score_a_picture_by_those_that_were_not_calibrated_with_it(ptq: Any) -> None:
    folds = importlib.import_module("bench_folds")
    float_, mine, other = folds.Scores(), folds.Scores(), folds.Scores()
    for shift, samples in enumerate(([1, 2, 3], [0, 2, 3], [0, 1, 3])):
        float_.add(shift, samples, [1.0, 1.0, 1.0])
        mine.add(shift, samples, [1.0, 1.0, float(shift == 0)])
        other.add(shift, samples, [0.0, 1.0, 0.0])
    less = folds.Scores()
    less.add(0, [1, 2, 3], [1.0, 1.0, 1.0])
    assert mine.shares() == {0: 1.0, 1: 1.0, 2: 1.0, 3: 1 / 3}
    assert [f["n"] for f in mine.folds] == [3, 3, 3]
    assert mine.folds[1]["value"] == pytest.approx(200 / 3)
    shares = {"float": float_.shares(), "edgekit": mine.shares(), "nncf": other.shares()}
    rows = {r["engine"]: r for r in folds.rows_of(shares, {"runtime": "openvino"})}
    assert rows["edgekit"]["n"] == 4
    assert rows["edgekit"]["value"] == pytest.approx(100 * (3 + 1 / 3) / 4)
    assert rows["edgekit"]["vs_float"]["difference"] == pytest.approx(-100 * (2 / 3) / 4)
    assert rows["edgekit"]["best_vendor"] == "nncf" and set(rows["edgekit"]["vs"]) == {"nncf"}
    document = {
        "titles": {"m": "M"},
        "pooled": [],
        "rows": [{**r, "model": "m"} for r in rows.values()],
    }
    (line,) = ptq[1].folds(document).splitlines()[2:]
    assert line.startswith("| M | openvino | 100.00 | 83.33, -16.67 [")
    assert "| 37.50 nncf: +45.83 [" in line
    two = {0: 1.0, 1: 1.0}
    same = {"float": two, "edgekit": two, "nncf": {0: 0.5, 1: 0.5}}
    (mine,) = [r for r in folds.rows_of(same, {}, same) if r["engine"] == "edgekit"]
    assert mine["agreement"] == 100 and mine["agreement_vs"]["nncf"]["difference"] == 50
    # An engine that failed in a fold is left out: it met other calibration sets than the others.
    kept = folds._shares(
        {("right", "m", "openvino", "float"): float_, ("right", "m", "openvino", "nncf"): less},
        "right",
        "openvino",
    )
    assert list(kept["m"]) == ["float"]
    # Models that saw the same pictures are one answer per picture, not two.
    both = folds.together([{0: 1.0, 1: 0.0, 2: 0.5}, {1: 1.0, 2: 0.5}])
    assert both == {1: 0.5, 2: 0.5}
