"""Bench on real runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bench.measure import bench, stated_signature
from edgekit.bench.subjects import bundle_requests, file_request
from edgekit.errors import EdgekitError
from edgekit.runtime.bundle import Bundle
from edgekit.schemas import validate

pytestmark = pytest.mark.runtime


def test_every_runtime_of_a_bundle_is_measured(net_bundle: Path) -> None:
    with Bundle.open(net_bundle) as bundle:
        document = bench(bundle_requests(bundle), runs=20, rounds=2, max_seconds=1.0)
    validate(document)
    results = {result["target"]: result for result in document["results"]}
    assert set(results) == {"tflite", "openvino", "onnxruntime", "executorch", "torch-mobile"}
    for target, result in results.items():
        assert result["latency_ms"]["n"] == 20
        assert 0 < result["latency_ms"]["p50"] < 50
        assert result["load_ms"] > 0.1
        # Importing the runtime is not the model's: a few KiB of weights do not take 100 MiB.
        assert 0 < result["added_memory_mib"] < 100, target
        assert result["added_memory_mib"] < result["peak_memory_mib"]
        assert result["notes"][0].startswith("runtime: ")


def test_a_bare_file_is_measured_with_the_signature_it_states(artifacts: Path) -> None:
    request = file_request(artifacts / "txt.onnx")
    assert [spec.name for spec in request.signature.inputs] == ["ids", "mask"]
    document = bench([request], runs=4, rounds=1)
    assert document["results"][0]["bytes"] == (artifacts / "txt.onnx").stat().st_size


def test_sec_08_a_tflite_file_cut_anywhere_hurts_its_worker_only(
    artifacts: Path, tmp_path: Path
) -> None:
    whole = (artifacts / "net.tflite").read_bytes()
    path = tmp_path / "cut.tflite"
    for size in range(64, len(whole), len(whole) // 6):
        path.write_bytes(whole[:size])
        with pytest.raises(EdgekitError):
            stated_signature("tflite", path)
