"""`edgekit inspect`: what is in a bundle, an artifact or a plan, and where it would run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli._metadata import metadata_lines, metadata_of, told_by_lines
from edgekit.cli._output import emit, json_option, progress, table, verbosity_options
from edgekit.cli._sensitivity import sensitivity_lines, sensitivity_of
from edgekit.errors import BadData, StorageError, UnsupportedError, UsageError
from edgekit.names import NHWC_IO, PICTURE_IO

if TYPE_CHECKING:
    from edgekit.compress.plan import Edge
    from edgekit.runtime.bundle import Bundle, BundleArtifact
    from edgekit.signature import Signature

__all__ = ["command"]

SCHEMA = "edgekit.inspect/1"

PLAN_FILE = "plan.json"

_FALLBACK = "first left in float"
_COUNTED_LATER = ("undelegated", "ops_by_dtype", "layers", "ops_by_unit")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
@verbosity_options
def command(path: Path, as_json: bool) -> None:
    """Show what is in a bundle, a model file or a plan, and where it would run.

    PATH is a bundle (a directory or a .zip), an artifact (.tflite, .xml, .onnx, .pte, .ptl,
    .mlpackage), a plan (.json) or a folder of 'edgekit quantize'. An artifact is read by its own
    runtime, in a process of its own. Where a plan's sensitivity was measured, a table shows what
    each part costs.

    \b
    Exit codes: 0 shown, 3 the runtime is missing, 5 the runtime crashed over it, 6 a bundle is not
    what its manifest says, 7 the file can't be read.

    \b
    edgekit inspect mobilenet.zip
    edgekit inspect mobilenet/artifacts/tflite-w8a8/model.tflite --json
    edgekit inspect mobilenet/plan.json
    """
    if not path.exists():
        raise UsageError(f"there is nothing at {path}")
    if (path / PLAN_FILE).is_file() and not (path / "manifest.json").exists():
        path = path / PLAN_FILE  # what `edgekit quantize` writes
    package = path.suffix.lower() == ".mlpackage" and not (path / "manifest.json").is_file()
    if (path.is_dir() and not package) or path.suffix.lower() == ".zip":
        document = _bundle(path)
        emit(document, as_json, lambda: _bundle_text(document))
    elif path.suffix.lower() == ".json":
        document = _plan(path)
        emit(document, as_json, lambda: _plan_text(document))
    else:
        document = _artifact(path)
        emit(document, as_json, lambda: _artifact_text(document))


# -- a bundle -------------------------------------------------------------------------------------


def _bundle(path: Path) -> dict[str, Any]:
    from edgekit.runtime.bundle import Bundle

    with Bundle.open(path) as bundle:
        golden, preprocess = bundle.manifest.get("golden"), bundle.manifest.get("preprocess")
        return {
            "schema": SCHEMA,
            "kind": "bundle",
            "path": str(path),
            "bytes": sum(entry["bytes"] for entry in bundle.manifest["files"]),
            "digest": bundle.digest,
            "name": bundle.name,
            "version": bundle.version,
            "licence": bundle.manifest.get("licence"),
            "files": len(bundle.manifest["files"]),
            "golden_n": golden.get("n", 0) if golden else 0,
            "preprocess": None if not preprocess else str(preprocess.get("kind", "yes")),
            **_tensors(bundle.signature),
            "artifacts": [_entry(artifact) for artifact in bundle.artifacts],
            **_stated_sensitivity(bundle),
        }


def _stated_sensitivity(bundle: Bundle) -> dict[str, Any]:
    """The sensitivity in a bundle's plan; nothing where there is none, or the plan is not sound."""
    name = bundle.manifest.get("plan")
    try:
        plan = json.loads(bundle.read(name)) if isinstance(name, str) else {}
        table_ = sensitivity_of(plan.get("sensitivity"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {"sensitivity": table_} if table_ else {}


def _entry(artifact: BundleArtifact) -> dict[str, Any]:
    return {
        "id": artifact.id,
        "target": artifact.target,
        "delegate": artifact.delegate,
        "scheme": artifact.scheme,
        "io": artifact.io,
        "variant": artifact.variant,
        "devices": list(artifact.devices),
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "files": [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in artifact.files],
        **({} if artifact.border is None else {"inputs": _tensors(artifact.signature)["inputs"]}),
        "verification": artifact.verification,
        "metadata": metadata_of(artifact.evidence.get("metadata")),
        "placement": _stated_placement(artifact.evidence.get("placement")),
    }


def _stated_placement(stated: object) -> dict[str, Any] | None:
    """The placement that a manifest states, if it is one: a manifest may hold anything there."""
    from edgekit.targets import Placement

    if not isinstance(stated, Mapping):
        return None
    ours = {key: stated.get(key) for key in Placement.__dataclass_fields__}
    for key in _COUNTED_LATER:
        ours[key] = ours[key] or {}  # bundles of before these were written have none
    counts = [ours[k] for k in ("ops", "bytes_by_dtype", "waste", *_COUNTED_LATER)]
    known = all(
        isinstance(part, Mapping) and all(isinstance(n, int) and n >= 0 for n in part.values())
        for part in counts
    )
    numbers = (ours["float_ops"], ours["boundary_ops"], ours["undelegated_ops"] or 0)
    known = known and all(isinstance(n, int) and n >= 0 for n in numbers)
    # Bundles of before it was written have none.
    ours["reasons"] = [] if ours["reasons"] is None else ours["reasons"]
    known = known and isinstance(ours["reasons"], list) and all(map(_is_reason, ours["reasons"]))
    firsts = (ours["first_fallback"], ours["first_undelegated"])
    return ours if known and all(isinstance(first, str | None) for first in firsts) else None


def _is_reason(stated: object) -> bool:
    if not isinstance(stated, Mapping) or set(stated) != {"operator", "count", "why"}:
        return False
    texts = isinstance(stated["operator"], str) and isinstance(stated["why"], str)
    return texts and isinstance(stated["count"], int) and stated["count"] > 0


def _bundle_text(document: Mapping[str, Any]) -> str:
    headers = [
        "artifact", "KiB", "verified", "ops", "float", _FALLBACK, "devices", "sha256",
    ]  # fmt: skip
    rows = []
    for entry in document["artifacts"]:
        placement = entry["placement"]
        where: list[object] = [None, None, None]
        if placement is not None:
            where = [
                sum(placement["ops"].values()),
                placement["float_ops"],
                placement["first_fallback"],
            ]
        rows.append(
            [
                entry["id"],
                round(entry["bytes"] / 1024),
                entry["verification"],
                *where,
                " ".join(entry["devices"]) or "any",
                entry["sha256"][:12],
            ]
        )
    lines = [
        f"bundle {document['name']}, version {document['version']}: {document['files']} files, "
        f"{_kib(document['bytes'])}, each as its manifest states",
        f"digest {document['digest']}",
        *_tensor_lines(document),
        *_pixel_lines(document["artifacts"]),
        *told_by_lines(document["artifacts"]),
        f"preprocessing: {document['preprocess'] or 'none'}; "
        f"golden samples: {document['golden_n']}; licence: {document['licence'] or 'not stated'}",
        "",
        table(headers, rows),
        *sensitivity_lines(document.get("sensitivity")),
    ]
    return "\n".join(lines)


def _pixel_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What artifacts take that have a picture border; nothing where there is none."""
    said = {
        PICTURE_IO: "take pixels",
        NHWC_IO: "take the model's tensor as a picture in RGB or grey",
    }
    lines = []
    for io, what in said.items():
        taking = [e for e in entries if "inputs" in e and e["io"] == io]
        if taking:
            lines.append(f"{', '.join(e['id'] for e in taking)} {what}:")
            lines += _tensor_lines({"inputs": taking[0]["inputs"], "outputs": []})
    return lines


# -- an artifact ----------------------------------------------------------------------------------


def _artifact(path: Path) -> dict[str, Any]:
    from edgekit.artifact import sha256_of
    from edgekit.bench.measure import stated_signature
    from edgekit.bench.request import parts
    from edgekit.bench.subjects import SUFFIXES
    from edgekit.runtime.bundle import directory_digest
    from edgekit.targets import find, installed, require_installed, worker

    name = SUFFIXES.get(path.suffix.lower())
    if name is None:
        raise UsageError(
            f"{path} is no bundle, artifact or plan",
            hint=f"a bundle is a directory or .zip, artifacts end in {', '.join(SUFFIXES)}, "
            "plans in .json",
        )
    target = find(name)
    require_installed(target)
    files = parts(name, path)
    notes = []
    with progress(f"reading {path.name} in {name}"):
        try:
            tensors = _tensors(stated_signature(name, path))
        except UnsupportedError as error:
            # Its shapes are free, say. It can be looked into all the same.
            tensors = {"inputs": [], "outputs": []}
            notes.append(error.message)
        tasks = [{"op": op, "artifact": str(path.absolute())} for op in ("inspect", "metadata")]
        seen, told = worker.run(name, tasks)
    for answer in (seen, told):
        if "error" in answer:
            raise answer["error"]
    hashes = [(part.relative_to(path.parent).as_posix(), sha256_of(part)) for part in files]
    runtime = target.packages[-1]
    return {
        "schema": SCHEMA,
        "kind": "artifact",
        "path": str(path),
        "target": name,
        "bytes": sum(part.stat().st_size for part in files),
        "sha256": hashes[0][1] if len(hashes) == 1 else directory_digest(hashes),
        "runtime": f"{runtime} {installed(target)[runtime]}",
        **tensors,
        "metadata": told["metadata"],
        "placement": seen["placement"],
        "notes": notes,
    }


def _artifact_text(document: Mapping[str, Any]) -> str:
    placement = document["placement"]
    ops, waste = placement["ops"], placement["waste"]
    types = sorted(ops, key=lambda kind: (-ops[kind], kind))
    lines = [
        f"{document['path']}: {_kib(document['bytes'])}, read by {document['runtime']}",
        f"sha256 {document['sha256']}",
        *_tensor_lines(document),
        *metadata_lines(document["metadata"]),
        *(f"note: {note}" for note in document["notes"]),
        "",
        table(["operator", "count", "only moves data"], [[k, ops[k], waste.get(k)] for k in types]),
        "",
        table(["constants", "bytes"], sorted(placement["bytes_by_dtype"].items())),
        "",
        *_reason_lines(placement["reasons"]),
        f"{sum(ops.values())} operators: {placement['float_ops']} compute in float, "
        f"{placement['boundary_ops']} quantize or dequantize at the border, "
        f"{sum(waste.values())} only move or convert data",
    ]
    if placement["undelegated_ops"] is not None:
        first = placement["first_undelegated"]
        tail = f", the first: {first}" if first else ""
        lines.append(f"outside the delegate: {placement['undelegated_ops']}{tail}")
    if placement["ops_by_unit"]:
        said = [f"{count} on {unit}" for unit, count in placement["ops_by_unit"].items()]
        lines.append(f"the runtime would run {', '.join(said)}")
    lines.append(f"{_FALLBACK}: {placement['first_fallback'] or 'none'}")
    return "\n".join(lines)


def _reason_lines(reasons: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of what does not compute on integers, and why; nothing for a float model."""
    if not reasons:
        return []
    rows = [[r["operator"], r["count"], r["why"]] for r in reasons]
    return [table(["not on integers", "count", "why"], rows), ""]


# -- a plan ---------------------------------------------------------------------------------------


def _plan(path: Path) -> dict[str, Any]:
    from edgekit.artifact import sha256_of
    from edgekit.compress.plan import SCHEMA as PLAN
    from edgekit.compress.plan import QuantPlan

    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadData(f"{path} is not JSON: {error}") from error
    stated = data.get("schema") if isinstance(data, dict) else None
    if stated != PLAN:
        hint = "inspect the directory it lies in" if path.name == "manifest.json" else ""
        raise BadData(
            f"{path} is no plan: its schema is {str(stated)[:80]!r}, not {PLAN}", hint=hint
        )
    try:
        plan = QuantPlan.from_json(data)
        edges = [_edge(edge) for edge in plan.edges]
        kept = [{"node": str(node), "reason": str(why)} for node, why in plan.kept_float]
        measured = sensitivity_of(plan.sensitivity)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadData(f"{path} is no sound plan: {error!r}") from error
    return {
        "schema": SCHEMA,
        "kind": "plan",
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "plan": {
            "scheme": str(plan.scheme),
            "program_digest": str(plan.program_digest),
            "digest": plan.digest(),
            "calibration_n": plan.calibration.get("n"),
            "edges": edges,
            "kept_float": kept,
            **({"sensitivity": measured} if measured else {}),
        },
    }


def _edge(edge: Edge) -> dict[str, Any]:
    steps = list(zip(edge.scale, edge.zero_point, strict=True))
    return {
        "edge": edge.edge,
        "kind": edge.kind,
        "dtype": edge.dtype,
        "channels": None if edge.axis is None else len(steps),
        "scale": [min(edge.scale), max(edge.scale)],
        "zero_point": [min(edge.zero_point), max(edge.zero_point)],
        "range": [
            min(s * (edge.quant_min - z) for s, z in steps),
            max(s * (edge.quant_max - z) for s, z in steps),
        ],
        "group": edge.group,
    }


def _plan_text(document: Mapping[str, Any]) -> str:
    plan = document["plan"]
    kinds = [edge["kind"] for edge in plan["edges"]]
    counts = ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in ("activation", "weight", "bias") if kind in kinds
    )
    headers = ["edge", "kind", "dtype", "channels", "scale", "zero point", "range", "group"]
    rows = [
        [
            edge["edge"],
            edge["kind"],
            edge["dtype"],
            edge["channels"],
            _span(edge["scale"]),
            _span(edge["zero_point"]),
            f"{edge['range'][0]:.4g} .. {edge['range'][1]:.4g}",
            edge["group"],
        ]
        for edge in plan["edges"]
    ]
    lines = [
        f"plan {plan['scheme']}: {counts or 'nothing'} quantized; "
        f"calibrated on {plan['calibration_n'] or 'no'} samples",
        f"digest {plan['digest']}",
    ]
    lines += ["", table(headers, rows)] if rows else []
    lines += [f"kept in float: {kept['node']}: {kept['reason']}" for kept in plan["kept_float"]]
    lines += sensitivity_lines(plan.get("sensitivity"))
    return "\n".join(lines)


def _span(pair: Sequence[float]) -> str:
    low, high = pair
    return f"{low:.4g}" if low == high else f"{low:.4g} .. {high:.4g}"


# -- what they share ------------------------------------------------------------------------------


def _tensors(signature: Signature) -> dict[str, Any]:
    stated = signature.to_json()
    return {"inputs": stated["inputs"], "outputs": stated["outputs"]}


def _tensor_lines(document: Mapping[str, Any]) -> list[str]:
    return [
        f"{side[:-1]} {tensor['name']}: {tensor['dtype']} {tensor['shape']}"
        + (f" {tensor['layout']}" if tensor.get("layout") else "")
        + (f", {len(tensor['labels'])} labels" if tensor.get("labels") else "")
        for side in ("inputs", "outputs")
        for tensor in document[side]
    ]


def _kib(size: int) -> str:
    return f"{size / 1024:.1f} KiB"
