"""`edgekit inspect` through the real command line: bundles, artifacts, plans, and other things."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.runtime.bundle import Bundle

Run = Callable[..., Any]
Contents = tuple[dict[str, bytes], dict[str, Any]]


# -- bundles --------------------------------------------------------------------------------------


def test_a_bundle(edgekit: Run, null_bundle: Path) -> None:
    done = edgekit("inspect", null_bundle, "--json")
    assert done.code == 0
    document = done.document
    with Bundle.open(null_bundle) as bundle:
        assert document["digest"] == bundle.digest
        assert document["bytes"] == sum(f.stat().st_size for f in null_bundle.rglob("*.npz"))
    assert (document["kind"], document["name"], document["version"]) == ("bundle", "chain", "1.0")
    assert document["golden_n"] == 5
    assert document["inputs"] == [{"name": "x", "shape": [1, 2, 3], "dtype": "float32"}]
    assert document["outputs"][0]["labels"] == list("abcd")
    one, two = document["artifacts"]
    assert (one["id"], one["scheme"], one["devices"]) == ("null-fp32", "fp32", [])
    assert two["devices"] == ["raspberry-pi-5"]
    weights = (null_bundle / "null" / "fp32.npz").read_bytes()
    assert one["sha256"] == hashlib.sha256(weights).hexdigest()
    assert one["bytes"] == len(weights)
    assert one["placement"] is None


def test_a_bundle_as_text(edgekit: Run, null_bundle: Path) -> None:
    out = edgekit("inspect", null_bundle).out
    assert out.startswith("bundle chain, version 1.0: 3 files")
    assert "input x: float32 [1, 2, 3]" in out
    assert "output y: float32 [1, 4], 4 labels" in out
    assert "golden samples: 5" in out
    assert "null-w8a8" in out
    assert "raspberry-pi-5" in out


def test_a_zip_of_an_export_states_its_placement(edgekit: Run, shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.zip"
    made = edgekit(
        "export", f"{shop}/m.py:mlp", "--device", shop / "board.toml", "--target", "null",
        "--no-bench", "-o", out,
    )  # fmt: skip
    assert made.code == 0
    done = edgekit("inspect", out, "--json")
    assert done.code == 0
    (artifact,) = done.document["artifacts"]
    assert artifact["placement"]["ops"] == {"Linear": 2}
    assert artifact["placement"]["float_ops"] == 2
    assert artifact["verification"] == "runtime"
    assert "my-board" in edgekit("inspect", out).out


@pytest.mark.parametrize(
    "placement",
    [7, [], {"ops": 7}, {"ops": {"a": -1}}, {"ops": {"a": "b"}, "float_ops": 0, "boundary_ops": 0}],
    ids=str,
)
def test_a_placement_that_is_none_is_left_out(
    placement: object,
    edgekit: Run,
    bundle_contents: Contents,
    write_directory: Callable[..., Path],
    tmp_path: Path,
) -> None:
    files, manifest = bundle_contents
    manifest["artifacts"][0]["evidence"] = {"placement": placement}
    bundle = write_directory(tmp_path / "b", files, manifest)
    done = edgekit("inspect", bundle, "--json")
    assert done.code == 0
    assert done.document["artifacts"][0]["placement"] is None
    assert edgekit("inspect", bundle).code == 0


def test_a_tampered_bundle(edgekit: Run, null_bundle: Path) -> None:
    (null_bundle / "golden.npz").write_bytes(b"other")
    done = edgekit("inspect", null_bundle, "--json")
    assert done.code == 6
    assert done.document["error"]["kind"] == "TrustError"


# -- artifacts ------------------------------------------------------------------------------------


def test_a_null_artifact(edgekit: Run, null_bundle: Path) -> None:
    path = null_bundle / "null" / "fp32.npz"
    done = edgekit("inspect", path, "--json")
    assert done.code == 0
    document = done.document
    assert (document["kind"], document["target"]) == ("artifact", "null")
    assert document["placement"]["ops"] == {"Linear": 2}
    assert document["placement"]["bytes_by_dtype"] == {"float32": 4 * (6 * 8 + 8 + 8 * 4 + 4)}
    assert document["runtime"] == f"numpy {np.__version__}"
    assert document["inputs"][0]["shape"] == [1, 6]
    assert document["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.runtime
def test_an_onnx_artifact(int8: tuple[Path, list[str], Any], edgekit: Run) -> None:
    path = int8[0] / "artifacts" / "onnxruntime-w8a8" / "model.onnx"
    done = edgekit("inspect", path, "--json")
    assert done.code == 0
    document = done.document
    assert document["target"] == "onnxruntime"
    assert document["runtime"].startswith("onnxruntime ")
    assert document["inputs"] == [{"name": "input", "shape": [1, 1, 8, 8], "dtype": "float32"}]
    placement = document["placement"]
    assert placement["ops"]["QLinearConv"] == 1
    assert placement["bytes_by_dtype"]["int8"] >= 8 * 9 + 32 * 4
    recorded = next(a for a in int8[2].document["artifacts"] if a["scheme"] == "w8a8")
    assert sum(placement["ops"].values()) == recorded["placement"]["ops"]
    why = {(r["operator"], r["why"]): r["count"] for r in placement["reasons"]}
    assert why["QuantizeLinear", "the model's own inputs and outputs are float"] == 1
    assert "DequantizeLinear" not in placement["ops"], "the last layer gives float by itself"
    assert all(kind not in ("QLinearConv", "QGemm") for kind, _ in why)
    out = edgekit("inspect", path).out
    assert "QLinearConv" in out
    assert "the model's own inputs and outputs are float" in out
    assert f"{recorded['placement']['float_ops']} compute in float" in out
    assert "first left in float: " in out


@pytest.mark.runtime
def test_an_openvino_artifact_with_free_shapes(edgekit: Run, tmp_path: Path) -> None:
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([-1, 4], np.float32, name="x")
    y = ops.relu(ops.matmul(x, ops.constant(np.ones((4, 2), np.float32)), False, False))
    wide = ops.parameter([1, -1], np.float32, name="wide")
    openvino.save_model(openvino.Model([y], [x], "m"), tmp_path / "m.xml")
    openvino.save_model(openvino.Model([ops.relu(wide)], [wide], "w"), tmp_path / "w.xml")
    document = edgekit("inspect", tmp_path / "m.xml", "--json").document
    assert document["target"] == "openvino"
    assert document["bytes"] == sum((tmp_path / f"m.{s}").stat().st_size for s in ("xml", "bin"))
    assert document["inputs"][0]["shape"] == [1, 4], "a free batch is one"
    assert document["placement"]["ops"]["FullyConnected"] == 1
    free = edgekit("inspect", tmp_path / "w.xml", "--json")
    assert free.code == 0
    assert free.document["inputs"] == []
    assert "no fixed shape" in free.document["notes"][0]


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["m.onnx", "m.tflite", "m.xml"])
def test_rubbish_with_the_name_of_a_model(name: str, edgekit: Run, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x00\x01rubbish" * 50)
    done = edgekit("inspect", path, "--json")
    assert done.code == 7
    assert name in done.document["error"]["message"]


def test_a_runtime_that_is_not_installed(
    edgekit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "openvino":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (tmp_path / "m.xml").touch()
    done = edgekit("inspect", tmp_path / "m.xml")
    assert done.code == 3
    assert "pip install 'edgekit[openvino]'" in done.err


# -- plans ----------------------------------------------------------------------------------------


@pytest.mark.runtime
def test_a_plan(int8: tuple[Path, list[str], Any], edgekit: Run) -> None:
    path = int8[0] / "plan.json"
    stated = json.loads(path.read_text())
    done = edgekit("inspect", path, "--json")
    assert done.code == 0
    plan = done.document["plan"]
    assert plan["scheme"] == "w8a8"
    assert plan["calibration_n"] == stated["calibration"]["n"]
    assert len(plan["edges"]) == len(stated["edges"])
    weight = next(e for e in plan["edges"] if e["edge"] == "0.weight")
    source = next(e for e in stated["edges"] if e["edge"] == "0.weight")
    assert weight["channels"] == 8 == len(source["scale"])
    assert weight["scale"] == [min(source["scale"]), max(source["scale"])]
    assert weight["range"][1] == pytest.approx(127 * max(source["scale"]))
    out = edgekit("inspect", path).out
    assert out.startswith("plan w8a8: ")
    assert "0.weight" in out
    assert " .. " in out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is no plan"),
        ('{"schema": "edgekit.export/1"}', "its schema is 'edgekit.export/1'"),
        ('{"schema": "edgekit.plan/1"}', "is no sound plan"),
        ('{"schema": "edgekit.plan/1", "scheme": "w8a8", "program_digest": "", "edges": [{}]}',
         "is no sound plan"),
        ("[" * 100_000, "is not JSON"),
    ],
    ids=range(6),
)  # fmt: skip
def test_a_file_that_is_no_plan(text: str, said: str, edgekit: Run, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    done = edgekit("inspect", tmp_path / "plan.json", "--json")
    assert done.code == 7
    assert said in done.document["error"]["message"]


def test_a_manifest_is_no_plan(edgekit: Run, null_bundle: Path) -> None:
    done = edgekit("inspect", null_bundle / "manifest.json")
    assert done.code == 7
    assert "inspect the directory it lies in" in done.err


# -- other things ---------------------------------------------------------------------------------


def test_what_is_none_of_them(edgekit: Run, tmp_path: Path) -> None:
    assert edgekit("inspect", tmp_path / "absent").code == 2
    (tmp_path / "notes.txt").write_text("hello")
    done = edgekit("inspect", tmp_path / "notes.txt")
    assert done.code == 2
    assert ".tflite" in done.err
    assert ".zip" in done.err
    assert edgekit("inspect", tmp_path).code == 7
