"""A run's folder of real files: a bundle, answers of its artifact, an export, a sensitivity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import ArraySamples
from edgekit.report import collect
from edgekit.runtime.bundle import Bundle

SHA = "0" * 64
EVIL = "<script>alert('x')</script>"

RunWriter = Callable[..., Path]


def samples_for(bundle: Path, n: int = 40, seed: int = 3) -> ArraySamples:
    """Samples [1, 2, 3] with labels that the float model mostly agrees with."""
    with Bundle.open(bundle) as opened:
        session = opened.session(opened.artifact("null-fp32"))
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((n, 2, 3)).astype(np.float32)
        y = np.array([int(session.run({"x": row[None]})["y"].argmax()) for row in x])
        session.close()
    y[::9] = (y[::9] + 1) % 4
    return ArraySamples({"x": x}, y, source="rows")


def export_of(bundle: Path) -> dict[str, Any]:
    """The export's document of the null bundle, as an export writes it."""
    with Bundle.open(bundle) as opened:
        artifacts = [_row(a.id, a.scheme, a.path, a.bytes) for a in opened.artifacts]
    gates = [
        {"artifact": "null-w8a8", "name": "max-drop", "limit": 1.0, "value": 2.5, "passed": False},
        {"artifact": "null-w8a8", "name": "parity", "limit": "plan", "value": "runtime",
         "passed": True},
        {"artifact": None, "name": "faster", "limit": 1.0, "value": None, "passed": None,
         "detail": "it was not measured beside float"},
    ]  # fmt: skip
    return {
        "schema": "edgekit.export/1", "model": "chain", "bundle": None,
        "devices": ["raspberry-pi-5", "host"], "metric": "top1",
        "reference": {"kind": "float", "value": 90.0, "n": 40}, "artifacts": artifacts,
        "gates": gates, "wall_s": 1.5,
    }  # fmt: skip


def _row(id: str, scheme: str, path: str, size: int) -> dict[str, Any]:
    quantized = scheme == "w8a8"
    placement = {
        "ops": 2, "float_ops": 0 if quantized else 2, "undelegated_ops": None,
        "first_fallback": None, "bytes_by_dtype": {"int8" if quantized else "float32": 400},
    }  # fmt: skip
    return {
        "id": id, "target": "null", "delegate": "cpu", "scheme": scheme, "io": "float32",
        "variant": None, "devices": ["raspberry-pi-5", "host"], "path": path, "bytes": size,
        "status": "ok", "reason": None, "verification": "runtime",
        "value": 87.5 if quantized else 90.0, "drop_points": 2.5 if quantized else 0.0,
        "drop_ci95": [0.5, 4.5] if quantized else [0.0, 0.0],
        "parity": None, "placement": placement,
        "latency_ms": {"p50": 0.05 if quantized else 0.1, "p90": 0.2, "p99": None, "n": 20,
                       "threads": 1, "where": "this machine"},
        "load_ms": 1.0, "peak_memory_mib": 30.0,
        "float": {"latency_p50_ms": 0.1, "bytes": 4 * size} if quantized else None,
    }  # fmt: skip


def quantized() -> dict[str, Any]:
    """The document of `edgekit quantize --sensitivity`."""
    layers = [
        {"layer": name, "kind": "layer", "nodes": [name], "sqnr_alone_db": db, "macs": 10,
         "gain_kept_db": gain, "metric_alone": 90.0, "metric_kept": 90.0, "macs_share": 0.5,
         "bytes": 30, "border_elements": 0}
        for name, db, gain in (("body.0", 31.5, 4.0), (EVIL, 22.25, 9.0), ("tail", None, None))
    ]  # fmt: skip
    return {
        "schema": "edgekit.quantize/1", "model": "chain", "scheme": "w8a8", "folder": "plan",
        "plan": {"digest": SHA, "program_digest": SHA, "edges": 4, "kept_float": []},
        "metric": None, "reference": None, "value": None, "drop_points": None, "drop_ci95": None,
        "sensitivity": {"n": 32, "sqnr_db": 21.0, "metric": "top1", "metric_quantized": 90.0,
                        "metric_float": 91.0, "layers": layers},
        "kept_for_accuracy": [], "wall_s": 1.0,
    }  # fmt: skip


def stage(root: Path, name: str, **about: Any) -> dict[str, Any]:
    """A stage's entry in ``run.json``, with what lies in its folder."""
    folder = root / name
    files = [
        {"path": p.relative_to(folder).as_posix(), "bytes": p.stat().st_size,
         "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in sorted(folder.rglob("*")) if p.is_file()
    ]  # fmt: skip
    entry = {
        "name": name, "status": "ok", "cached": False, "why": "never run", "fingerprint": SHA,
        "inputs": {}, "reads": {}, "result": hashlib.sha256(name.encode()).hexdigest(),
        "value": None, "files": files, "metrics": {}, "gates": [], "notes": [], "attempts": 1,
        "wall_s": 2.0, "reason": None,
    }  # fmt: skip
    return {**entry, **about}


@pytest.fixture
def write_run(tmp_path: Path, null_bundle: Path) -> RunWriter:
    """Writes a run with all that a report shows; ``loss`` scales its curve."""

    def write(
        name: str = "run", loss: float = 1.0, settings: Mapping[str, Any] | None = None
    ) -> Path:
        root = tmp_path / name
        evidence = root / "answers"
        collect(null_bundle, samples_for(null_bundle), evidence, artifact="null-w8a8", worst=5)
        bundle = root / "exported" / "bundle"
        bundle.parent.mkdir(parents=True)
        for path in (p for p in null_bundle.rglob("*") if p.is_file()):
            place = bundle / path.relative_to(null_bundle)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
        (root / "exported" / "export.json").write_text(json.dumps(export_of(null_bundle)))
        (root / "plan").mkdir()
        (root / "plan" / "quantize.json").write_text(json.dumps(quantized()))
        curve = [[i, loss / (i + 1)] for i in range(5)]
        stages = [
            stage(root, "trained", metrics={"train/loss": curve, "val/loss": curve[:3],
                                            "score": [[0, 50.0], [4, 90.0]]}),
            stage(root, "plan", inputs={"trained": SHA}, reads={"plan.scheme": "w8a8"}),
            stage(root, "exported", inputs={"trained": SHA, "plan": SHA}, attempts=2, gates=[
                {"name": "max-drop null-w8a8", "passed": False, "text": "2.5 of 1.0"}]),
            stage(root, "answers", inputs={"exported": SHA}, value={"top1": 85.0}, gates=[
                {"name": EVIL, "passed": True, "text": "85 of 50"}]),
            stage(root, "late", status="failed", result=None, fingerprint=None, wall_s=None,
                  reason=f"it broke: {EVIL}", attempts=3),
        ]  # fmt: skip
        document = {
            "schema": "edgekit.run/1", "recipe": {"name": "chain", "sha256": SHA},
            "settings": {"train.epochs": 5, "label": EVIL, **(settings or {})},
            "data": {"source": "digits", "digest": "d" * 64}, "devices": ["raspberry-pi-5"],
            "versions": {"torch": "2.13.0"}, "stages": stages, "wall_s": 12.0,
            "machine": {"system": "Linux", "machine": "x86_64", "python": "3.11.2",
                        "processor": ["avx2"], "cores": 2},
        }  # fmt: skip
        (root / "run.json").write_text(json.dumps(document))
        return root

    return write
