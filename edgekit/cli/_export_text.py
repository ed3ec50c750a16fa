"""What `edgekit export` shows of its document on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.cli._output import table
from edgekit.names import FLOAT_IO, through_target

__all__ = ["text"]


def text(document: Mapping[str, Any], out: Path | None) -> str:
    lines = [_headline(document), "", table(_HEADERS, [_row(a) for a in document["artifacts"]])]
    reasons = {a["id"]: a["reason"] for a in document["artifacts"] if a["reason"]}
    failed = [f"{id} failed: {reason}" for id, reason in reasons.items()]
    # Of those that were asked for; what nobody asked for is in the line of gates below.
    unjudged = [
        g
        for g in document["gates"]
        if g["passed"] is None and (g["name"] in _ASKED or "detail" not in g)
    ]
    failed += [_unjudged(g) for g in unjudged if g["artifact"] not in reasons]
    lines += ["", *failed] if failed else []
    placed = [_placed(a) for a in document["artifacts"] if a["placement"] is not None]
    lines += ["", table(_PLACED, placed)] if placed else []
    judged = [_judged(a["id"], document["gates"]) for a in document["artifacts"]]
    lines += ["", *filter(None, judged)] if any(judged) else []
    kept = [_kept(entry) for entry in document.get("kept_for_accuracy", [])]
    lines += ["", *kept] if kept else []
    if document["bundle"] is not None:
        return "\n".join([*lines, "", f"bundle: {document['bundle']}"])
    return "\n".join([*lines, "", f"no bundle was written; {out} is as it was"])


_ASKED = ("max-drop",)

_PLACED = [
    "artifact",
    "ops",
    "float",
    "off delegate",
    "kMAC",
    "on integers",
    "constants KiB",
    "first left in float",
]


def _placed(artifact: Mapping[str, Any]) -> list[object]:
    """Where an artifact's operators, work and constants are."""
    placement = artifact["placement"]
    macs, share = placement.get("macs"), None
    if macs is not None and macs["by_dtype"] is not None and macs["total"]:
        share = f"{100 * macs['by_dtype'].get('integer', 0) / macs['total']:.1f} %"
    sizes = sorted(placement["bytes_by_dtype"].items(), key=lambda item: -item[1])
    return [
        artifact["id"],
        placement["ops"],
        placement["float_ops"],
        placement["undelegated_ops"],
        None if macs is None else round(macs["total"] / 1000),
        share,
        ", ".join(f"{name} {size / 1024:.1f}" for name, size in sizes[:2]),
        placement["first_fallback"],
    ]


def _judged(artifact: str, gates: Sequence[Mapping[str, Any]]) -> str | None:
    """One line about an artifact's gates: which held, and what is to be said of the others."""
    mine = [g for g in gates if g["artifact"] == artifact]
    held = [g["name"] for g in mine if g["passed"]]
    parts = [f"{', '.join(held)} held"] if held else []
    for gate in (g for g in mine if not g["passed"]):
        if gate["passed"] is None:
            verdict = "not judged"
        else:
            verdict = "waived" if gate.get("waived") else "failed"
        why = f" ({gate['detail']})" if "detail" in gate else ""
        parts.append(f"{gate['name']} {verdict}{why}")
    return f"gates of {artifact}: {'; '.join(parts)}" if parts else None


def _kept(entry: Mapping[str, Any]) -> str:
    plan = "@".join(filter(None, (entry["scheme"], entry.get("variant"))))
    return (
        f"{plan}: the plan lost {entry['drop_before']:.2f} points; with "
        f"{entry['layers']} layers in float ({100 * entry['macs_share']:.1f} % of the MACs) "
        f"{entry['drop_after']:.2f}: {', '.join(entry['units'])}"
    )


def _headline(document: Mapping[str, Any]) -> str:
    score = document["reference"]
    accuracy = "" if score is None else f"; float {_score(document)} on {score['n']} samples"
    return f"{document['model']} for {', '.join(document['devices'])}{accuracy}"


def _score(document: Mapping[str, Any]) -> str:
    return f"{document['metric']} {document['reference']['value']:.2f} %"


_HEADERS = [
    "target",
    "scheme",
    "KiB",
    "accuracy %",
    "drop [95 %]",
    "p50 ms",
    "float ms",
    "peak MiB",
    "parity",
    "verified",
    "status",
]


def _row(artifact: Mapping[str, Any]) -> list[object]:
    size, latency, beside = artifact["bytes"], artifact["latency_ms"], artifact["float"]
    return [
        through_target(artifact["target"], artifact["delegate"]),
        _scheme(artifact),
        None if size is None else round(size / 1024),
        _rounded(artifact["value"]),
        _drop(artifact),
        None if latency is None else _digits(latency["p50"]),
        None if beside is None else _digits(beside["latency_p50_ms"]),
        _rounded(artifact["peak_memory_mib"]),
        _parity(artifact["parity"]),
        artifact["verification"],
        artifact["status"],
    ]


def _scheme(artifact: Mapping[str, Any]) -> str:
    """With the variant, and with what it takes where that is not the model's tensors."""
    name = "@".join(filter(None, (artifact["scheme"], artifact["variant"])))
    return name if artifact["io"] in (None, FLOAT_IO) else f"{name} {artifact['io']}"


def _drop(artifact: Mapping[str, Any]) -> str | None:
    if artifact["drop_points"] is None:
        return None
    if artifact["drop_ci95"] is None:
        return f"{artifact['drop_points']:.2f}"
    low, high = artifact["drop_ci95"]
    return f"{artifact['drop_points']:.2f} [{low:.2f}, {high:.2f}]"


def _parity(parity: Mapping[str, Any] | None) -> str | None:
    if parity is None:
        return None
    if parity["identical"]:
        return "identical"
    return None if parity["sqnr_db"] is None else f"{parity['sqnr_db']:.1f} dB"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _digits(value: float | None) -> float | None:
    """Three significant digits."""
    return None if value is None else float(f"{value:.3g}")


def _unjudged(gate: Mapping[str, Any]) -> str:
    who = f"{gate['artifact']}: " if gate["artifact"] else ""
    why = f": {gate['detail']}" if "detail" in gate else ""
    return f"{who}gate {gate['name']}, limit {gate['limit']}, could not be judged here{why}"
