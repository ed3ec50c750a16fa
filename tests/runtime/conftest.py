"""Real artifacts for every runtime, converted once for this folder's tests, and their bundle."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.runtime.golden import pack_golden
from edgekit.runtime.manifest import canonical_json, directory_digest
from edgekit.signature import Signature, TensorSpec

FILES = {
    "tflite": ["net.tflite"],
    "openvino": ["net.xml", "net.bin"],
    "onnxruntime": ["net.onnx"],
    "executorch": ["net.pte"],
    "torch-mobile": ["net.ptl"],
}


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make_artifacts.py` fills; about 15 seconds."""
    folder = tmp_path_factory.mktemp("artifacts")
    script = Path(__file__).with_name("make_artifacts.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def net_bundle(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``net`` for every runtime, with golden vectors from eager PyTorch."""
    root = tmp_path_factory.mktemp("net") / "bundle"
    with np.load(artifacts / "net.npz") as data:
        golden = pack_golden({"image": data["in.0"]}, {"scores": data["out.0"]})
    files = {"golden.npz": golden}
    for target, names in FILES.items():
        files |= {f"{target}/{name}": (artifacts / name).read_bytes() for name in names}
    entries = {name: _entry(name, data) for name, data in files.items()}
    manifest = {
        "schema": "edgekit.bundle/1",
        "name": "net",
        "version": "1",
        "signature": Signature(
            (TensorSpec("image", (1, 3, 16, 16)),), (TensorSpec("scores", (1, 5)),)
        ).to_json(),
        "golden": {"path": "golden.npz", "sha256": entries["golden.npz"]["sha256"], "n": 1},
        "artifacts": [_artifact(target, entries) for target in FILES],
        "files": list(entries.values()),
    }
    for name, data in {**files, "manifest.json": canonical_json(manifest)}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _artifact(target: str, entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    parts = [entries[f"{target}/{name}"] for name in FILES[target]]
    whole = directory_digest((part["path"], part["sha256"]) for part in parts)
    return {
        "id": f"{target}-fp32",
        "target": target,
        "scheme": "fp32",
        "path": parts[0]["path"],
        "bytes": sum(part["bytes"] for part in parts),
        "sha256": parts[0]["sha256"] if len(parts) == 1 else whole,
        "files": parts,
    }
