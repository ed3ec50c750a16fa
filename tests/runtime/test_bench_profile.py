"""Times of layers by each runtime's own profiler, and what the worker itself takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench.archive import worker_archive
from edgekit.bench.measure import bench
from edgekit.bench.subjects import bundle_requests
from edgekit.runtime.bundle import Bundle
from edgekit.schemas import validate

pytestmark = [pytest.mark.slow, pytest.mark.runtime]

# Of the bundle's model: what each runtime must at least tell of. It may add to these (reorders,
# conversions) and fuse others into them.
KINDS = {
    "tflite": {"Convolution", "Fully Connected"},
    "openvino": {"Convolution", "FullyConnected", "MatMul"},
    "onnxruntime": {"Conv", "Gemm", "MatMul"},
    "executorch": {"Convolution", "Fully Connected"},
    "torch-mobile": {"conv2d", "linear"},
}


def profiled(net_bundle: Path, target: str) -> dict[str, Any]:
    """The result of a bundle's artifact, with its profile."""
    with Bundle.open(net_bundle) as bundle:
        (request,) = [r for r in bundle_requests(bundle) if r.target == target]
        document = bench([request], runs=5, rounds=1, max_seconds=0.5, profile=True)
    validate(document)
    result: dict[str, Any] = document["results"][0]
    return result


@pytest.mark.parametrize(
    "target",
    # The slow ones import torch, twice.
    ["tflite", "openvino", "onnxruntime"]
    + [pytest.param(t, marks=pytest.mark.slow) for t in ("executorch", "torch-mobile")],
)
def test_every_runtime_tells_the_times_of_its_layers(net_bundle: Path, target: str) -> None:
    result = profiled(net_bundle, target)
    profile = result["profile"]
    assert profile is not None, result["notes"]
    layers = profile["layers"]
    assert any(word in layer["kind"] for layer in layers for word in KINDS[target])
    assert all(layer["ms"] >= 0 for layer in layers)
    # They are parts of a call: of one that is timed while its layers are, on a machine that may be
    # busy with others. Whole microseconds are cut off or rounded, per layer.
    step = 1e-3 * profile["resolution_us"] * len(layers)
    assert profile["sum_ms"] <= 1.5 * profile["profiled_ms"] + step
    assert profile["calls"] > 1
    assert profile["runtime_version"] == result["runtime"]
    named = sum(layer["layer"] is not None for layer in layers)
    assert named >= 2 or target in ("executorch", "torch-mobile")


BARE = """
    import sys
    import numpy as np
    import onnxruntime as ort
    feeds = dict(np.load(sys.argv[2]))
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    for _ in range(20):
        session.run(None, feeds)
    lines = open("/proc/self/status").read().splitlines()
    print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
    print("torch" in sys.modules)
"""


def test_the_worker_takes_less_than_5_mib_beside_the_runtime(
    net_bundle: Path, tmp_path: Path
) -> None:
    """Against the shortest program that loads the same file in the same runtime and calls it."""
    with Bundle.open(net_bundle) as bundle:
        (request,) = [r for r in bundle_requests(bundle) if r.target == "onnxruntime"]
        assert request.feeds is not None
        np.savez(tmp_path / "feeds.npz", allow_pickle=False, **request.feeds)
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        code = textwrap.dedent(BARE)
        bare = [sys.executable, "-c", code, str(request.path), str(tmp_path / "feeds.npz")]
        said = subprocess.run(bare, env=env, capture_output=True, text=True, check=True).stdout
        assert said.split()[1] == "False"
        question = {
            **{"nonce": "n", "op": "bench", "target": "onnxruntime", "path": str(request.path)},
            **{"signature": request.signature.to_json(), "feeds": "feeds.npz", "threads": 1},
            **{"warmup_runs": 5, "warmup_seconds": 1.0, "runs": 15, "max_seconds": 5.0},
        }
        (tmp_path / "request.json").write_text(json.dumps(question))
        worker = worker_archive(tmp_path / "worker.pyz")
        ours = [sys.executable, str(worker), str(tmp_path / "request.json")]
        done = subprocess.run(ours, env=env, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["peak_bytes"] - int(said.split()[0]) < 5 * 2**20
    assert len(answer["samples_ms"]) == 15
