"""The ``edgekit.export/1`` document: one row per artifact, and the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.artifact import Artifact
from edgekit.device import Job
from edgekit.export.proving import Proof
from edgekit.export.request import ExportRequest
from edgekit.model import Model
from edgekit.names import NO_VNNI
from edgekit.structure import only_by_structure
from edgekit.targets import find

SCHEMA = "edgekit.export/1"

_PLACED = (
    "ops_by_dtype",
    "ops_by_delegate",
    "ops_by_unit",
    "first_undelegated",
    "macs",
    "bytes_by_delegate",
)


@dataclass(frozen=True)
class Row:
    """One artifact's way through the export.

    Attributes:
        job: what was asked for.
        artifact: what was made; None where the target refused.
        twin: the float artifact of the same target; None where nobody asks for more than that
            what was made is smaller than the float model's numbers alone, which it is.
        least_float: what these numbers take, in bytes.
        status: ``ok`` or ``failed``.
        reason: why it failed.
        placement: operators and bytes, as the target's `inspect` gives them.
        proof: its verification.
        bench: the ``edgekit.bench/1`` document it is part of.
        value: accuracy in percent.
        drop: percentage points lost against the float model.
        drop_ci: 95 % interval of the drop.
    """

    job: Job
    artifact: Artifact | None = None
    twin: Artifact | None = None
    least_float: int | None = None
    status: str = "ok"
    reason: str | None = None
    placement: Mapping[str, Any] | None = None
    proof: Proof | None = None
    bench: Mapping[str, Any] | None = None
    value: float | None = None
    drop: float | None = None
    drop_ci: tuple[float, float] | None = None

    @property
    def id(self) -> str:
        """The artifact's id."""
        return self.job.id

    @property
    def verification(self) -> str:
        """``runtime`` once its real runtime gave the right answers, ``emulated`` if an emulation of
        it did, ``structural`` if nothing here could run it and its file is as it should be."""
        if self.proof is None or not self.proof.document["passed"]:
            return "none"
        if self.proof.structural:
            return "structural"
        return "emulated" if self.proof.emulated else "runtime"

    @property
    def against(self) -> str:
        """What its answers were held against: the plan, or ``float`` where an engine made it."""
        stated = "plan" if self.proof is None else self.proof.document["against"]
        return "float" if stated == "float" else "plan"

    def measured(self) -> Mapping[str, Any] | None:
        """Its own entry of the bench document."""
        return _result(self.bench, self.id)

    def compared(self) -> Mapping[str, Any] | None:
        """Its comparison with the float twin in the bench document: times of the same rounds."""
        if self.bench is None or self.twin is None:
            return None
        pair = (self.twin.id, self.id)
        return next((c for c in self.bench["comparisons"] if (c["a"], c["b"]) == pair), None)

    def to_json(self) -> dict[str, Any]:
        """The export document's artifact entry."""
        made, mine = self.artifact, self.measured()
        ok = self.status == "ok" and made is not None
        return {
            "id": self.id,
            "target": self.job.target,
            "delegate": self.job.delegate,
            "scheme": self.job.scheme,
            "io": self.job.io,
            "variant": self.job.variant,
            "devices": list(self.job.devices),
            "path": f"artifacts/{made.id}/{made.path.name}" if ok and made else None,
            "bytes": None if made is None else made.bytes,
            "status": self.status,
            "reason": self.reason,
            "verification": self.verification,
            "value": self.value,
            "drop_points": self.drop,
            "drop_ci95": None if self.drop_ci is None else list(self.drop_ci),
            "parity": self._parity(),
            "placement": self._placement(),
            "latency_ms": _latency(mine),
            "load_ms": None if mine is None else mine["load_ms"],
            "peak_memory_mib": None if mine is None else mine["peak_memory_mib"],
            "float": self._float(),
        }

    def _parity(self) -> dict[str, Any] | None:
        if self.proof is None or self.proof.structural:
            return None
        outputs = self.proof.document["outputs"]
        return {
            "against": self.against,
            "sqnr_db": _least(o["sqnr_db"] for o in outputs),
            "agreement": _least(o["agreement"] for o in outputs),
            "worst_sample_db": _least(o["worst_sample_db"] for o in outputs),
            "n": outputs[0]["n"] if outputs else 0,
            "identical": all(o["identical"] for o in outputs),
        }

    def _placement(self) -> dict[str, Any] | None:
        if self.placement is None:
            return None
        return {
            "ops": sum(self.placement["ops"].values()),
            "float_ops": self.placement["float_ops"],
            "undelegated_ops": self.placement["undelegated_ops"],
            "first_fallback": self.placement["first_fallback"],
            "bytes_by_dtype": dict(self.placement["bytes_by_dtype"]),
            # Added by `edgekit.export.counting.placed`; a target may not tell all of them.
            **{key: self.placement[key] for key in _PLACED if key in self.placement},
        }

    def _float(self) -> dict[str, Any] | None:
        if self.twin is None:
            return None
        beside = _result(self.bench, self.twin.id)
        figures = None if beside is None else beside["latency_ms"]
        p50 = None if figures is None else figures["p50"]
        return {"latency_p50_ms": p50, "bytes": self.twin.bytes}


def gate(
    artifact: str | None,
    name: str,
    limit: Any,
    value: Any,
    passed: bool | None,
    detail: str | None = None,
) -> dict[str, Any]:
    """One entry of the document's gates."""
    entry = {"artifact": artifact, "name": name, "limit": limit, "value": value, "passed": passed}
    return entry if detail is None else {**entry, "detail": detail}


def gates_of(rows: Sequence[Row], request: ExportRequest) -> list[dict[str, Any]]:
    """Every gate with its verdict; None where it could not be judged here."""
    gates: list[dict[str, Any]] = []
    for row in rows:
        passed = None if row.proof is None else bool(row.proof.document["passed"])
        told = None
        if row.proof is not None and row.proof.structural and passed:
            # The file is as it should be; what it answers, nobody knows.
            passed, told = None, only_by_structure(row.job.through) or "nothing here ran it"
        gates.append(gate(row.id, "parity", row.against, row.verification, passed, told))
        if request.require_verified:
            gates.append(
                gate(row.id, "verified", "runtime", row.verification, row.verification == "runtime")
            )
        if request.max_drop is not None:
            held = None if row.drop is None else row.drop <= request.max_drop
            if held is None and request.require_verified:
                held = False
            said = None if row.drop is not None else _without_drop(row)
            gates.append(gate(row.id, "max-drop", request.max_drop, row.drop, held, said))
        if request.max_float_ops is not None and row.job.scheme != "fp32":
            count = None if row.placement is None else row.placement["float_ops"]
            held = None if count is None else count <= request.max_float_ops
            first = None if row.placement is None else first_float(row.placement)
            told = None if first is None else f"the first: {first}"
            gates.append(gate(row.id, "max-float-ops", request.max_float_ops, count, held, told))
    return gates


def _without_drop(row: Row) -> str:
    """Why nobody knows how much accuracy an artifact loses."""
    if row.proof is None:
        return "it was not proven"
    if row.proof.structural:
        return "nothing here ran it"
    return "there is no --eval DATA with labels"


def first_float(placement: Mapping[str, Any]) -> str | None:
    """The first operator in float, with the reason where one is known; None where there is none."""
    first: str | None = placement["first_fallback"]
    if first is None:
        return None
    kind = first.split()[0]
    why = next((r["why"] for r in placement.get("reasons", ()) if r["operator"] == kind), None)
    return first if why is None else f"{first}: {why}"


def broken(gate: Mapping[str, Any]) -> bool:
    """Whether a gate fails the export: it does not hold, and nobody waived it."""
    return gate["passed"] is False and not gate.get("waived", False)


def judged(row: Row, gates: Sequence[Mapping[str, Any]]) -> Row:
    """The row, failed if a gate on it did not hold; what was wrong before comes first."""
    mine = [g for g in gates if g["artifact"] == row.id and broken(g)]
    if row.status != "ok":
        mine = [g for g in mine if g["name"] not in ("parity", "verified")]
    said = [
        f"gate {g['name']}: {_shown(g['value'])}, limit {_shown(g['limit'])}"
        + (f" ({g['detail']})" if g.get("detail") else "")
        for g in mine
    ]
    if not said:
        return row
    before = [row.reason] if row.status != "ok" and row.reason else []
    return replace(row, status="failed", reason="; ".join([*before, *said]))


def _shown(value: Any) -> str:
    if value is None:
        return "could not be judged"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def build(
    model: Model,
    request: ExportRequest,
    rows: Sequence[Row],
    gates: Sequence[Mapping[str, Any]],
    bundle: Path | None,
    score: tuple[float, int] | None,
    wall_s: float,
) -> dict[str, Any]:
    """The whole document."""
    devices = list(dict.fromkeys(d for r in rows for d in r.job.devices))
    return {
        "schema": SCHEMA,
        "model": model.name,
        "bundle": None if bundle is None else str(bundle),
        "devices": devices,
        "metric": None if score is None else "top1",
        "reference": None if score is None else {"kind": "float", "value": score[0], "n": score[1]},
        "artifacts": [row.to_json() for row in rows],
        "gates": list(gates),
        "wall_s": round(wall_s, 3),
    }


def requirements(row: Row, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a device must have to run an artifact.

    Its runtime, at the version it was proven in, or the system that brings it; and the instructions
    without which it needs the variant of an override.

    Args:
        row: the artifact's.
        overrides: of the plan that it was rendered from; empty where there is none.
    """
    target = find(row.job.through)
    runtime = {"tflite": "ai-edge-litert"}.get(target.id, target.id)
    ran = row.proof is not None and not row.proof.structural
    proven = _version(row.proof.runtime) if row.proof is not None and ran else None
    needs: dict[str, Any] = {"runtime": runtime, "min_version": proven}
    systems = getattr(target, "systems", {}).get(row.job.scheme)
    if systems is not None:
        # The runtime is the system's: which one the file was made for counts, not where it was run.
        needs = {"runtime": runtime, "min_version": None, "os": list(systems)}
    found = overrides.get(NO_VNNI)
    if row.job.variant is None and found is not None and target.id in found["targets"]:
        if "weight_limit" in found["targets"][target.id]:
            needs["isa"] = list(found["isa"])
        else:
            # edgekit's own session sees to it (`edgekit.runtime.session_onnxruntime`).
            needs["without_vnni"] = {"session.x64quantprecision": "1"}
    return needs


def _version(runtime: str) -> str:
    """Of ``NAME VERSION``, which may be followed by what was done without."""
    return runtime.partition(" without ")[0].rpartition(" ")[2]


def _latency(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if result is None or result["latency_ms"] is None:
        return None
    figures = result["latency_ms"]
    return {
        "p50": figures["p50"],
        "p90": figures["p90"],
        "p99": figures["p99"],
        "n": figures["n"],
        "threads": result["threads"],
        "where": "this machine",
    }


def _result(document: Mapping[str, Any] | None, artifact: str) -> Mapping[str, Any] | None:
    if document is None:
        return None
    return next((r for r in document["results"] if r["artifact"] == artifact), None)


def _least(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return min(known, default=None)
