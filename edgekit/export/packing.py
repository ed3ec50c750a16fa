"""What goes into the bundle beside the artifacts: golden vectors, plan, evidence, lineage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import engines
from edgekit.compress.plan import plan_name
from edgekit.data import Samples
from edgekit.export.counting import Source
from edgekit.export.document import Row, requirements
from edgekit.export.keys import versions
from edgekit.export.planning import Planned
from edgekit.export.reference import GOLDEN_SAMPLES, Referenced, gather, load_arrays
from edgekit.export.request import ExportRequest
from edgekit.model import Model
from edgekit.pack import BundleContent, PackedArtifact, pack
from edgekit.runtime.golden import pack_golden


def pack_result(
    model: Model,
    request: ExportRequest,
    rows: Sequence[Row],
    planned: Planned,
    reference: Referenced,
    evaluation: Samples | None,
    calib: Samples | None,
    out: Path,
    source: Source | None = None,
) -> Path:
    """Packs the proven artifacts with everything a device or a reader needs beside them."""
    names = list(dict.fromkeys(_plan_of(r) for r in rows))
    documents, count = _documents(model, planned, reference, rows, names)
    content = BundleContent(
        name=request.name or model.name,
        version=request.version,
        model={
            "name": model.name,
            "digest": model.digest(),
            "parameters": sum(p.numel() for p in model.module.parameters()),
            "notes": list(model.notes),
        },
        signature=model.signature,
        artifacts=[_packed(r, planned, reference) for r in rows if r.artifact is not None],
        preprocess=None if model.preprocess is None else model.preprocess.to_json(),
        documents=documents,
        golden_n=count,
        statistics=_statistics(model, reference),
        lineage=_lineage(calib, evaluation, planned, names, request.engine, source),
        licence=model.license,
        clients=request.clients,
    )
    return pack(content, out)


def _plan_of(row: Row) -> str:
    return plan_name(row.job.target, row.job.scheme, row.job.variant)


def _packed(row: Row, planned: Planned, reference: Referenced) -> PackedArtifact:
    assert row.artifact is not None
    known, plan = reference.facts(), planned.plan(_plan_of(row))
    overrides = json.loads(plan.read_text())["overrides"] if plan.exists() else {}
    # An engine's artifact has no plan, so no steps and no floor; neither has the float model.
    bench, facts = row.measured(), known.get(_plan_of(row), known["fp32"])
    compared, accuracy = row.compared(), None
    speed = None if compared is None else dict(compared)
    if row.value is not None:
        accuracy = {"metric": "top1", "value": row.value, "drop_points": row.drop}
        accuracy["drop_ci95"] = None if row.drop_ci is None else list(row.drop_ci)
    return PackedArtifact(
        artifact=row.artifact,
        devices=row.job.devices,
        requires=requirements(row, overrides),
        verification=row.verification,
        evidence={
            "verification": row.verification,
            "verify": None if row.proof is None else dict(row.proof.document),
            "placement": None if row.placement is None else dict(row.placement),
            "bench": None
            if bench is None
            else {k: v for k, v in bench.items() if k != "samples_ms"},
            # Beside float in the same rounds: what two bundles can be compared by.
            "speed": speed,
            "accuracy": accuracy,
            # What `edgekit verify` needs to judge the bundle by the figures that it was proven by.
            "steps": facts["steps"],
            "floor": facts["floor"],
        },
    )


def _documents(
    model: Model,
    planned: Planned,
    reference: Referenced,
    rows: Sequence[Row],
    names: Sequence[str],
) -> tuple[dict[str, bytes], int]:
    count = min(GOLDEN_SAMPLES, reference.n)
    batch = model.signature.inputs[0].shape[0]
    feeds, _ = gather(model, _First(reference.samples, count) if reference.samples else None)
    flat = {k: v[:count].reshape(count * batch, *v.shape[2:]) for k, v in feeds.items()}

    def answers(file: Path) -> bytes:
        arrays = load_arrays(file)
        outputs = {
            k: v[:count].reshape(count * v.shape[1], *v.shape[2:]) for k, v in arrays.items()
        }
        return pack_golden(flat, outputs)

    documents = {"golden.npz": answers(reference.path / "outputs-fp32.npz")}
    quantized = [n for n in names if n != "fp32" and planned.plan(n).exists()]
    for name in quantized:
        # What the plan itself answers: a device can tell a wrong kernel from quantization.
        documents[f"golden-{name}.npz"] = answers(reference.path / f"outputs-{name}.npz")
        file = "plan.json" if name == quantized[0] else f"plan-{name}.json"
        documents[file] = planned.plan(name).read_bytes()
    for row in rows:
        if row.against == "float":
            continue  # `edgekit verify` holds it against the float model's answers again
        if row.artifact and row.proof and row.proof.document["against"] != "plan":
            # Its runtime rounds otherwise than the plan does, and was proven right in that: what
            # it answered then is what it has to answer again.
            documents[f"golden-{row.artifact.id}.npz"] = answers(row.proof.path / "outputs.npz")
    return documents, count * batch


class _First:
    """The first few of some samples."""

    def __init__(self, samples: Samples, count: int) -> None:
        self._samples, self._count = samples, count
        self.source, self.digest = samples.source, samples.digest

    def __len__(self) -> int:
        return self._count

    def feed(self, i: int) -> dict[str, Any]:
        return self._samples.feed(i)

    def label(self, i: int) -> int | None:
        return self._samples.label(i)


def _statistics(model: Model, reference: Referenced) -> dict[str, Any]:
    """Counts of predicted classes and moments of inputs, from the evaluation data, for drift."""
    inputs: dict[str, Any] = {}
    if reference.samples is not None:
        count = min(reference.n, 256)
        for spec in model.signature.inputs:
            if not spec.dtype.startswith("float"):
                continue
            rows = [reference.samples.feed(i)[spec.name] for i in range(count)]
            inputs[spec.name] = {
                "n": count,
                "mean": float(np.mean([r.mean() for r in rows])),
                "std": float(np.sqrt(np.mean([r.var() for r in rows]))),
                "min": float(min(r.min() for r in rows)),
                "max": float(max(r.max() for r in rows)),
            }
    predictions: dict[str, Any] = {}
    for spec in model.signature.outputs:
        if len(spec.shape) != 2 or not spec.dtype.startswith("float"):
            continue
        arrays = load_arrays(reference.path / "outputs-fp32.npz")[spec.name]
        scores = arrays[: reference.n].reshape(-1, spec.shape[-1])
        classes = np.bincount(scores.argmax(1), minlength=spec.shape[-1])
        predictions[spec.name] = {"n": len(scores), "classes": classes.tolist()}
    return {"inputs": inputs, "predictions": predictions}


def _lineage(
    calib: Samples | None,
    evaluation: Samples | None,
    planned: Planned,
    names: Sequence[str],
    engine: str | None,
    source: Source | None,
) -> dict[str, Any]:
    def about(samples: Samples | None) -> dict[str, Any] | None:
        if samples is None:
            return None
        return {
            "source": Path(samples.source).name,
            "digest": samples.digest,
            "n": len(samples),
        }

    plans = {
        name: json.loads(planned.plan(name).read_text())["program_digest"]
        for name in names
        if planned.plan(name).exists()
    }
    return {
        "calibration": about(calib),
        "evaluation": about(evaluation),
        "programs": plans,
        "engine": None if engine is None else _engine(engine),
        "tools": versions("torch", "torchao", "litert-torch", "openvino", "onnx", "onnxruntime"),
        "parent": None if source is None else source.to_json(),
    }


def _engine(name: str) -> dict[str, Any]:
    engine = engines.find(name)
    return {"id": name, "settings": dict(engine.defaults), "packages": engines.installed(engine)}
