"""Real artifacts in their real runtimes on processors without VNNI, and what the simulation says.

OpenVINO's kernels can be kept from using what this processor has (``ONEDNN_MAX_CPU_ISA``); the rest
runs on an emulated one: ``qemu-x86_64 -cpu Haswell`` (AVX2), ``-cpu Denverton`` (SSE4.2).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit import ExportRequest, Store, export_bundle
from edgekit.compress.plan import QuantPlan
from edgekit.metrics import sqnr_db
from edgekit.names import NO_VNNI
from edgekit.runtime import cpu
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.golden import unpack_golden
from edgekit.schemas import validate
from edgekit.sources import load

HERE = Path(__file__).parent
X86 = platform.machine() == "x86_64"

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(not X86, reason="x86 kernels run on x86; Arm has none that saturate"),
]

IDS = [
    "tflite-w8a8",
    "openvino-w8a8",
    f"openvino-w8a8-{NO_VNNI}",
    "onnxruntime-w8a8",
    f"onnxruntime-w8a8-{NO_VNNI}",
]
DEFAULT = {t: f"{t}-w8a8" for t in ("openvino", "onnxruntime")}
VARIANT = {t: f"{t}-w8a8-{NO_VNNI}" for t in DEFAULT}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One export for a machine with VNNI and one without: the bundle, and the document."""
    folder = tmp_path_factory.mktemp("saturation")
    sys.path.insert(0, str(HERE))
    try:
        from saturating_model import pictures
    finally:
        sys.path.remove(str(HERE))
    np.savez(folder / "calib.npz", input=pictures(32, 0))
    labels = np.arange(48) % 10
    np.savez(folder / "eval.npz", input=pictures(48, 1), y=labels)
    request = ExportRequest(
        devices=("core-ultra", "intel-nuc"),
        targets=("tflite", "openvino", "onnxruntime"),
        calib=folder / "calib.npz",
        evaluation=folder / "eval.npz",
        out=folder / "bundle",
        bench=False,
    )
    model = load(f"{HERE / 'saturating_model.py'}:build")
    result = export_bundle(model, request, store=Store(folder / "store"))
    assert result.exit_code == 0, result.failed
    return folder / "bundle", result.document


def run(bundle: Path, out: Path, *, processor: str | None = None, **env: str) -> dict[str, Any]:
    """`on_device.py` on this processor, or on an emulated one."""
    command = [sys.executable, "-W", "ignore", str(HERE / "on_device.py"), str(bundle), str(out)]
    if processor is not None:
        if shutil.which("qemu-x86_64") is None:
            pytest.fail("qemu-x86_64 is not installed: apt-get install -y qemu-user")
        command = ["qemu-x86_64", "-cpu", processor, *command]
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    loaded: dict[str, Any] = json.loads(out.read_text())
    return loaded


def golden(bundle: Path, name: str) -> np.ndarray:
    """What a plan answers to the golden inputs; ``name`` as `plan_name` gives it."""
    [output] = unpack_golden((bundle / f"golden-{name}.npz").read_bytes())[1].values()
    return output


def plan_of(bundle: Path, artifact: str) -> np.ndarray:
    """The answers of the plan that an artifact was rendered from."""
    return golden(bundle, f"w8a8@{NO_VNNI}" if artifact == VARIANT["openvino"] else "w8a8")


def close(got: Any, wanted: np.ndarray) -> float:
    return float(sqnr_db(wanted, np.asarray(got, np.float32)) or np.inf)


@pytest.fixture(scope="module")
def simulated(exported: tuple[Path, Any]) -> dict[str, np.ndarray]:
    """By target, what the simulation says that the default artifact answers without VNNI."""
    from edgekit.compress.evaluate import evaluate
    from edgekit.compress.saturation import render_saturating

    bundle = exported[0]
    plan = QuantPlan.from_json(json.loads((bundle / "plan.json").read_text()))
    store = bundle.parent / "store"
    [file] = store.rglob("program-w8a8.pt2")
    program = torch.export.load(file)
    feeds, _ = unpack_golden((bundle / "golden-w8a8.npz").read_bytes())
    rows = {k: v[:, None] for k, v in feeds.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            target: evaluate(render_saturating(program, plan, target), rows, list(rows), ["y"])[
                "y"
            ][:, 0]
            for target in DEFAULT
        }
    finally:
        torch.set_num_threads(before)


def test_each_device_gets_what_its_processor_needs(exported: tuple[Path, Any]) -> None:
    bundle, document = exported
    validate(document)
    rows = {a["id"]: a for a in document["artifacts"]}
    assert list(rows) == IDS
    assert {i: r["variant"] for i, r in rows.items() if r["variant"]} == dict.fromkeys(
        VARIANT.values(), NO_VNNI
    )
    assert rows["tflite-w8a8"]["devices"] == ["core-ultra", "intel-nuc"]
    assert all(rows[i]["devices"] == ["core-ultra"] for i in DEFAULT.values())
    assert all(rows[i]["devices"] == ["intel-nuc"] for i in VARIANT.values())
    for row in rows.values():  # each judged by itself, in its runtime, against its own plan
        assert row["verification"] == "runtime" and row["parity"]["against"] == "plan"
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    validate(manifest)
    needs = {a["id"]: a["requires"] for a in manifest["artifacts"]}
    assert needs[DEFAULT["openvino"]]["isa"] == ["x86_64:avx_vnni|avx512_vnni"]
    assert needs[DEFAULT["onnxruntime"]]["without_vnni"] == {"session.x64quantprecision": "1"}
    for artifact in (*VARIANT.values(), "tflite-w8a8"):
        assert not needs[artifact].keys() & {"isa", "without_vnni"}
    plan = json.loads((bundle / f"plan-w8a8@{NO_VNNI}.json").read_text())
    assert plan["variant"] == NO_VNNI
    assert [e["quant_max"] for e in plan["edges"] if e["kind"] == "weight"] == [64, 127, 64, 64]


def test_the_variant_for_onnxruntime_is_the_same_numbers(exported: tuple[Path, Any]) -> None:
    import onnx
    from onnx import numpy_helper

    with Bundle.open(exported[0]) as bundle:
        files = [
            bundle.place(bundle.artifact(i))
            for i in (DEFAULT["onnxruntime"], VARIANT["onnxruntime"])
        ]
        found = []
        for file in files:
            graph = onnx.load(str(file)).graph
            values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
            readers = [n for n in graph.node if n.op_type == "DequantizeLinear"]
            weights = [
                n
                for n in readers
                if values.get(n.input[0], np.zeros(0, np.int32)).dtype.itemsize == 1
                and n.input[0] in values
            ]
            found.append({n.input[0]: (values[n.input[0]], values[n.input[2]]) for n in weights})
        default, variant = found
        assert default.keys() == variant.keys() and len(default) == 4
        for name, (stored, zero) in default.items():
            assert stored.dtype == zero.dtype == np.int8 and not zero.any()
            unsigned, offset = variant[name]
            assert unsigned.dtype == offset.dtype == np.uint8 and (offset == 128).all()
            np.testing.assert_array_equal(unsigned.astype(int) - 128, stored)


@pytest.mark.skipif(X86 and cpu.lacks_vnni(), reason="this processor has no VNNI to do without")
def test_with_vnni_every_artifact_answers_as_its_plan(
    exported: tuple[Path, Any], tmp_path: Path
) -> None:
    bundle, _ = exported
    found = run(bundle, tmp_path / "here.json")
    assert not found["lacks_vnni"] and not found["refused"]
    assert found["chosen"] == {**DEFAULT, "tflite": "tflite-w8a8"}
    assert all(found["golden"].values())
    for artifact, got in found["bare"].items():
        assert close(got, plan_of(bundle, artifact)) > 35, artifact
        assert close(found["answers"][artifact], plan_of(bundle, artifact)) > 35, artifact


@pytest.mark.parametrize("isa", ["AVX512_CORE", "AVX2", "SSE41"])
def test_openvino_kernels_without_vnni_saturate_as_simulated(
    exported: tuple[Path, Any], simulated: dict[str, np.ndarray], tmp_path: Path, isa: str
) -> None:
    """The kernels are the real ones for these instruction sets, on this processor."""
    bundle, _ = exported
    found = run(bundle, tmp_path / "kept.json", ONEDNN_MAX_CPU_ISA=isa)
    wrong = found["bare"][DEFAULT["openvino"]]
    assert close(wrong, golden(bundle, "w8a8")) < 20
    assert close(wrong, simulated["openvino"]) > 35
    assert not found["golden"]["openvino"]  # a device that checks after installing would notice
    right = found["bare"][VARIANT["openvino"]]
    assert close(right, plan_of(bundle, VARIANT["openvino"])) > 35


@pytest.mark.slow
def test_on_an_emulated_haswell_defaults_are_wrong_and_variants_right(
    exported: tuple[Path, Any], simulated: dict[str, np.ndarray], tmp_path: Path
) -> None:
    bundle, _ = exported
    found = run(bundle, tmp_path / "haswell.json", processor="Haswell")
    assert found["lacks_vnni"]
    # What a device is given is right.
    assert all(found["golden"].values())
    assert found["chosen"] == {**VARIANT, "tflite": "tflite-w8a8"}
    assert list(found["refused"]) == [DEFAULT["openvino"]]
    for artifact, got in found["answers"].items():
        assert close(got, plan_of(bundle, artifact)) > 35, artifact
    # The files by themselves: the defaults are wrong, just as the simulation has it.
    for target, artifact in DEFAULT.items():
        wrong = found["bare"][artifact]
        assert close(wrong, golden(bundle, "w8a8")) < 20, target
        assert close(wrong, simulated[target]) > 35, target
    for artifact in (*VARIANT.values(), "tflite-w8a8"):
        assert close(found["bare"][artifact], plan_of(bundle, artifact)) > 35, artifact


@pytest.mark.slow
def test_on_an_emulated_processor_of_sse_what_a_device_is_given_is_right(
    exported: tuple[Path, Any], tmp_path: Path
) -> None:
    """Denverton stops at SSE4.2, as the Celeron of ``intel-nuc`` does."""
    bundle, _ = exported
    found = run(bundle, tmp_path / "denverton.json", processor="Denverton")
    assert found["lacks_vnni"] and found["chosen"] == {**VARIANT, "tflite": "tflite-w8a8"}
    assert all(found["golden"].values())
    for artifact, got in found["answers"].items():
        assert close(got, plan_of(bundle, artifact)) > 35, artifact
    assert close(found["bare"][DEFAULT["openvino"]], golden(bundle, "w8a8")) < 20
