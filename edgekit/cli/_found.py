"""What `edgekit verify` found of each artifact, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.cli._output import table
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.parity import Check, ParityReport
    from edgekit.runtime.bundle import BundleArtifact

__all__ = ["Found", "document_of", "failed", "text_of"]


@dataclass(frozen=True)
class Found:
    """What was found on one artifact.

    Attributes:
        artifact: as the manifest states it.
        checks: every check made.
        against: what the answers were compared with.
        runtime: name and version of the runtime; None where it did not come to that.
        n: golden samples replayed.
        report: parity; None where only the float model's answers are there.
        outputs: as the verify document has them.
        emulated: whether something else than the runtime itself gave the answers.
        structural: whether nothing here could run it, so that its file alone was checked.
    """

    artifact: BundleArtifact
    checks: tuple[Check, ...]
    against: str | None = None
    runtime: str | None = None
    n: int = 0
    report: ParityReport | None = None
    outputs: tuple[Mapping[str, Any], ...] = ()
    emulated: bool = False
    structural: bool = False

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed is not False for check in self.checks)

    @property
    def verification(self) -> str:
        """How it was verified, out of `edgekit.names.VERIFICATIONS`."""
        if not self.passed:
            return "none"
        if self.structural:
            return "structural"
        return "emulated" if self.emulated else "runtime"

    @property
    def reason(self) -> str | None:
        """The first failed check in one line; None if there is none."""
        broken = [check for check in self.checks if check.passed is False]
        if not broken:
            return None
        first, more = broken[0], f" (and {len(broken) - 1} more)" if broken[1:] else ""
        if first.value is None:
            return f"{first.name}: {first.detail}{more}"
        limit = "" if first.limit is None else f", limit {first.limit:g}"
        return f"{first.name} is {first.value:.6g}{limit}: {first.detail}{more}"


def failed(artifact: BundleArtifact, what: str, error: EdgekitError) -> Found:
    from edgekit.parity import Check

    detail = f"{error.message}; {error.hint}" if error.hint else error.message
    return Found(artifact, (Check(what, False, None, None, detail),))


def document_of(path: Path, found: Sequence[Found]) -> dict[str, Any]:
    tests = {f.artifact.id: c.passed for f in found for c in f.checks if c.name == "self-test"}
    return {
        "schema": "edgekit.verify/1",
        "bundle": str(path),
        "against": "the bundle's golden vectors",
        "artifacts": [_entry(f) for f in found],
        "checks": [
            {**c.to_json(), "name": f"{f.artifact.id}/{c.name}"} for f in found for c in f.checks
        ],
        "outputs": [
            {**o, "name": f"{f.artifact.id}/{o['name']}"} for f in found for o in f.outputs
        ],
        "first_bad_layer": None,
        "self_test": tests,
        "passed": all(f.passed for f in found),
    }


def _entry(found: Found) -> dict[str, Any]:
    return {
        "id": found.artifact.id,
        "target": found.artifact.target,
        "scheme": found.artifact.scheme,
        "runtime": found.runtime,
        "against": found.against,
        "n": found.n,
        "parity": None if found.report is None else found.report.summary(),
        "verification": found.verification,
        "passed": found.passed,
        "reason": found.reason,
    }


def text_of(document: Mapping[str, Any]) -> str:
    headers = ["artifact", "runtime", "against", "n", "parity", "agreement", "worst dB", "verified"]
    rows = [_row(entry) for entry in document["artifacts"]]
    failed = [f"{e['id']} failed: {e['reason']}" for e in document["artifacts"] if e["reason"]]
    verdict = "every file is what the manifest says; " + (
        f"{len(failed)} of {len(rows)} artifacts failed" if failed else "every artifact passed"
    )
    kinds = [e["verification"] for e in document["artifacts"]]
    said = {"emulated": "by an emulation", "structural": "by its structure alone: nothing ran it"}
    less = [f"{kinds.count(kind)} {how}" for kind, how in said.items() if kind in kinds]
    verdict += f" ({'; '.join(less)})" if less else ""
    return "\n".join([table(headers, rows), *([""] if failed else []), *failed, "", verdict])


def _row(entry: Mapping[str, Any]) -> list[object]:
    parity = entry["parity"]
    shown: list[object] = [None, None, None]
    if parity is not None:
        ratio, agreement, worst = (parity[k] for k in ("sqnr_db", "agreement", "worst_sample_db"))
        equal = "identical" if parity["identical"] else None
        shown = [
            equal if ratio is None else f"{ratio:.1f} dB",
            agreement,
            None if worst is None else round(worst, 1),
        ]
    return [
        entry["id"],
        entry["runtime"],
        entry["against"],
        entry["n"],
        *shown,
        entry["verification"] if entry["passed"] else "FAILED",
    ]
