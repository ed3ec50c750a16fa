"""`edgekit export --engine`: a vendor's quantizer in place of the plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.runtime.bundle import Bundle

Run = Callable[..., Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """80 labelled pictures for the shop's ``cnn``."""
    rng = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    pictures = rng.standard_normal((80, 1, 8, 8)).astype(np.float32)
    np.savez(path, input=pictures, y=rng.integers(0, 4, 80))
    return path


@pytest.mark.runtime
def test_an_engines_artifact_is_held_against_the_float_model(
    edgekit: Run, shop: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = edgekit(
        "export", f"{shop}/m.py:cnn", "--target", "onnxruntime", "--engine", "onnxruntime",
        "--calib", data, "--no-bench", "--require-verified", "-o", out, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (artifact,) = done.document["artifacts"]
    assert artifact["status"] == "ok"
    assert artifact["verification"] == "runtime"
    assert artifact["parity"]["against"] == "float"
    assert 15 < artifact["parity"]["sqnr_db"] < 80
    assert artifact["placement"]["bytes_by_dtype"]["int8"] >= 8 * 9 + 32 * 4
    assert [g["limit"] for g in done.document["gates"] if g["name"] == "parity"] == ["float"]
    with Bundle.open(out) as bundle:
        lineage = bundle.manifest["lineage"]
        names = {entry["path"] for entry in bundle.manifest["files"]}
        evidence = bundle.artifacts[0].evidence
    assert lineage["engine"]["id"] == "onnxruntime"
    assert lineage["engine"]["settings"]["per_channel"] is True
    assert "plan.json" not in names
    checks = {c["name"]: c["passed"] for c in evidence["verify"]["checks"]}
    assert evidence["verify"]["against"] == "float"
    (gist,) = [name for name in checks if name.startswith("gist:")]
    assert checks[gist] and checks["repeatable"]
    # What only means something against a plan is not claimed, neither passed nor failed.
    assert not [n for n in checks if "sqnr:" in n or "stored-plan" in n or "agreement" in n]
    again = edgekit("verify", out, "--json")
    assert again.code == 0, again.err
    assert again.document["artifacts"][0]["against"] == "float"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--engine", "onnxruntme"], 2, ["'onnxruntme'", "Did you mean 'onnxruntime'?"]),
        (
            ["--engine", "ai-edge-quantizer"],
            5,
            ["'ai-edge-quantizer' makes no w8a8 for onnxruntime", "tflite"],
        ),
    ],
)
def test_an_engine_that_can_not_serve_is_refused(
    args: list[str],
    code: int,
    said: list[str],
    edgekit: Run,
    shop: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    model = f"{shop}/m.py:cnn"
    done = edgekit(
        "export", model, "--target", "onnxruntime", "--calib", data, *args, "-o", out, "--json"
    )
    assert done.code == code
    for words in said:
        assert words in json.dumps(done.document, ensure_ascii=False)
    assert not out.exists()
