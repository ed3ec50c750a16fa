"""Planted faults: each fails the export with exit code 1 and the words that say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgekit.runtime.bundle import Bundle
from edgekit.targets import worker

Run = Callable[..., Any]

MODELS = '''
import torch
from torch import nn


class Summed(nn.Module):
    """A running sum, for which XNNPACK has no kernel."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, input):
        return self.last(self.first(input.flatten(1)).cumsum(1))


def summed():
    torch.manual_seed(0)
    return Summed(), {"input": torch.zeros(1, 3, 4)}


def wide():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4)
    return nn.Sequential(*layers), {"input": torch.zeros(1, 3, 4)}


def zeroed():
    model, inputs = wide()
    with torch.no_grad():
        model[1].weight[::2] = 0
    return model, inputs
'''


PLANTED = """
import json
from pathlib import Path

import torch

from edgekit.compress.graph import graph_module
from edgekit.compress.plan import QuantPlan
from edgekit.compress.precision import find_units, keep_float
from edgekit.targets.worker import _task_convert


def convert(target, task):
    plan = QuantPlan.from_json(json.loads(Path(task["plan"]).read_text()))
    module = graph_module(torch.export.load(task["program"]))
    last = [u for u in find_units(module, plan) if "linear" in u.nodes]
    other = Path(task["out"]).with_name("other.json")
    other.write_text(json.dumps(keep_float(module, plan, last).to_json()))
    return _task_convert(target, {**task, "plan": str(other)})
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "faults.py"
    path.write_text(MODELS)
    return path


@pytest.fixture
def null(edgekit: Run, shop: Path) -> Run:
    """Exports a model for the null target of a board, unmeasured."""

    def run(model: str, *args: object, board: Path | None = None) -> Any:
        device = ["--device", board or shop / "board.toml", "--target", "null", "--no-bench"]
        return edgekit("export", model, *device, *args)

    return run


def gates_of(document: dict[str, Any], artifact: str) -> dict[str, dict[str, Any]]:
    return {g["name"]: g for g in document["gates"] if g["artifact"] == artifact}


# -- a "pruned" model with all its parameters -----------------------------------------------------


def test_a_pruned_model_with_all_its_parameters_fails(
    null: Run, models: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "out", tmp_path / "junit.xml"
    source = ["--pruned-from", f"{models}:wide"]
    done = null(f"{models}:zeroed", *source, "--junit", report, "-o", out, "--json")
    assert done.code == 1
    gate = gates_of(done.document, "null-fp32")["parameters"]
    assert (gate["limit"], gate["value"], gate["passed"]) == (1092, 1092, False)
    said = "no parameter was removed: it stores 1,092, and faults.py:wide 1,092"
    assert said in gate["detail"] or "no parameter was removed: it stores 1,092" in gate["detail"]
    [artifact] = done.document["artifacts"]
    assert artifact["status"] == "failed" and "no parameter was removed" in artifact["reason"]
    assert not out.exists()
    failure = ElementTree.parse(report).find(".//testcase[@name='parameters']/failure")
    assert failure is not None and "limit 1092" in str(failure.get("message"))
    assert null(f"{models}:zeroed", "--pruned-from", "1_092", "-o", out).code == 1


def test_a_pruned_model_that_lost_parameters_says_so_in_its_bundle(
    null: Run, shop: Path, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = null(f"{shop}/m.py:mlp", "--pruned-from", f"{models}:wide", "-o", out, "--json")
    assert done.code == 0, done.err
    gate = gates_of(done.document, "null-fp32")["parameters"]
    assert (gate["limit"], gate["value"], gate["passed"]) == (1092, 276, True)
    with Bundle.open(out) as bundle:
        parent = bundle.manifest["lineage"]["parent"]
        assert (parent["parameters"], bundle.manifest["model"]["parameters"]) == (1092, 276)


# -- budgets, and what else needs no runtime ------------------------------------------------------


def test_the_budgets_of_a_profile_are_gates(null: Run, shop: Path, tmp_path: Path) -> None:
    board = tmp_path / "board.toml"
    budgets = "[budgets]\nmax_bytes = 100\nlatency_p90_ms = 5.0\n\n[sources]"
    board.write_text((shop / "board.toml").read_text().replace("[sources]", budgets))
    done = null(f"{shop}/m.py:mlp", "-o", tmp_path / "out", "--json", board=board)
    assert done.code == 1
    gates = gates_of(done.document, "null-fp32")
    assert gates["max-bytes@my-board"]["passed"] is False
    assert gates["latency-p90-ms@my-board"]["passed"] is None
    text = null(f"{shop}/m.py:mlp", "-o", tmp_path / "out", board=board)
    assert "gate max-bytes@my-board: " in text.out
    assert "latency-p90-ms@my-board not judged (it can only be measured on my-board)" in text.out


def test_a_report_is_written_where_the_export_ends_early(
    edgekit: Run, null: Run, shop: Path, tmp_path: Path
) -> None:
    report = tmp_path / "junit.xml"
    report.write_text("<testsuites/>")
    done = null(f"{shop}/m.py:bessel", "--junit", report, "-o", tmp_path / "out")
    assert done.code == 5
    error = ElementTree.parse(report).find(".//error")
    assert error is not None and error.get("type") == "UnsupportedError"
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "j.xml"
    assert null(f"{shop}/m.py:mlp", "--junit", place, "-o", tmp_path / "out").code == 8
    refused = edgekit("export", "m.py:f", "--target", "tflite", "--waive", "parity", "-o", "x")
    assert refused.code == 2 and "'smaller', 'faster'" in refused.err


# -- silent fallbacks, and an "int8" file with float weights --------------------------------------


@pytest.mark.runtime
def test_an_operator_outside_of_the_delegate_fails(
    edgekit: Run, models: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ai_edge_litert")
    done = edgekit(
        "export", f"{models}:summed", "--target", "tflite", "--scheme", "fp32", "--no-bench",
        "--require-delegate", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.code == 1
    gate = gates_of(done.document, "tflite-fp32")["delegate"]
    assert (gate["limit"], gate["value"], gate["passed"]) == (0, 1, False)
    assert "1 of 4 operators run outside of xnnpack, the first: CUMSUM giving" in gate["detail"]
    [artifact] = done.document["artifacts"]
    assert gate["detail"] in artifact["reason"]
    placement = artifact["placement"]
    assert placement["ops_by_delegate"] == {"xnnpack": 3, "outside": 1}
    assert placement["macs"]["by_dtype"] == {"integer": 0, "float": 12 * 16 + 16 * 4}
    assert placement["macs"]["by_delegate"] is None
    assert not (tmp_path / "out").exists()


@pytest.mark.runtime
def test_an_int8_file_with_a_layer_in_float_fails(
    edgekit: Run, shop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A converter that leaves the last layer in float, its weights included, and tells nobody."""
    real = worker.run
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)

    def run(target: str, tasks: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        ops = {"convert": "planted:convert"}
        return real(target, [{**t, "op": ops.get(t["op"], t["op"])} for t in tasks], **options)

    monkeypatch.setattr(worker, "run", run)
    monkeypatch.setenv("EDGEKIT_STORE", str(tmp_path / "store"))
    out, report = tmp_path / "out", tmp_path / "junit.xml"
    done = edgekit(
        "export", f"{shop}/m.py:cnn", "--target", "onnxruntime", "--scheme", "w8a8",
        "--calib", f"{shop}/pictures.npz", "--without", "rounding", "--no-bench",
        "--max-float-ops", 0, "--junit", report, "-o", out, "--json",
    )  # fmt: skip
    assert done.code == 1
    gates = gates_of(done.document, "onnxruntime-w8a8")
    weights, floats = gates["weights"], gates["max-float-ops"]
    assert (weights["limit"], weights["passed"]) == (8 * 9 + 32 * 4, False)
    assert "not stored as int8: 4.weight; " in weights["detail"]
    assert (floats["value"], floats["passed"]) == (1, False)
    assert "the first: Gemm computes in float" in floats["detail"]
    assert "the plan keeps it in float, or this runtime has no integer kernel" in floats["detail"]
    [artifact] = done.document["artifacts"]
    assert weights["detail"] in artifact["reason"] and floats["detail"] in artifact["reason"]
    # One layer of two is in float against the plan's word: which has what work can't be told.
    assert artifact["placement"]["macs"]["by_dtype"] is None
    assert not out.exists()
    failed = ElementTree.parse(report).findall(".//testcase[failure]")
    assert {"weights", "max-float-ops"} <= {str(case.get("name")) for case in failed}


@pytest.mark.runtime
def test_what_was_made_as_planned_is_told_by_dtype_and_by_delegate(
    int8: tuple[Path, list[str], Any],
) -> None:
    document = int8[2].document
    quantized, float_ = (a["placement"] for a in document["artifacts"])
    work = 8 * 64 * 9 + 32 * 4
    assert quantized["macs"] == {
        "total": work,
        "by_dtype": {"integer": work, "float": 0},
        "by_delegate": {"cpu": work, "outside": 0},
    }
    assert float_["macs"]["by_dtype"] == {"integer": 0, "float": work}
    assert sum(quantized["ops_by_dtype"].values()) == quantized["ops"]
    assert quantized["undelegated_ops"] == 0
    gates = gates_of(document, "onnxruntime-w8a8")
    assert gates["weights"]["passed"] is True
    assert gates["smaller"]["passed"] is None, "the model is too small to judge"
    assert gates["faster"]["passed"] is None
    assert set(gates_of(document, "onnxruntime-fp32")) == {"parity"}
