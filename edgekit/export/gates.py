"""Gates on what was really made: smaller, faster, pruned, on integers, in its delegate, in budget.

They hold an artifact against its float twin, its plan, the model that it was pruned from and the
budgets of its devices. ``passed`` is None where that can't be judged here.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.device import Device
from edgekit.export import converting
from edgekit.export.counting import Source
from edgekit.export.document import Row, gate
from edgekit.export.request import ExportRequest

__all__ = ["Context", "truth"]

SMALL = 2**16
"""Bytes of constants in the float twin under which sizes of files are not judged: they are the
formats' own then, names and scales, which say nothing of the weights."""

FAST = ("w8a8", "w8a8-dyn")
"""Schemes that are for speed; the others are for size, or for processors without float."""

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_INTEGERS = {"int8": ("int8", "uint8"), "int4": ("int4", "uint4"), "float16": ("float16",)}
_HOST = "host"
_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True)
class Context:
    """What artifacts are held against.

    Attributes:
        request: what was asked for.
        devices: profiles by id.
        counted: by artifact, of `edgekit.export.counting.count`.
        source: what the model was pruned from, if it is said to be.
        parameters: the model's own.
    """

    request: ExportRequest
    devices: Mapping[str, Device]
    counted: Mapping[str, Mapping[str, Any]]
    source: Source | None
    parameters: int


def truth(rows: Sequence[Row], context: Context) -> list[dict[str, Any]]:
    """The gates of this module, for every artifact that was made."""
    request, found = context.request, []
    for row in rows:
        if row.artifact is None or row.placement is None:
            continue
        found += [g for g in (_smaller(row), _faster(row, context)) if g is not None]
        found += [g for g in (_weights(row, context), _parameters(row, context)) if g is not None]
        if request.require_delegate:
            found.append(_delegate(row))
        found += _budgets(row, context)
    for entry in found:
        if entry["name"] in request.waive and entry["passed"] is False:
            entry["waived"] = True
    return found


def _smaller(row: Row) -> dict[str, Any] | None:
    """Whether a quantized file is smaller than the float one of the same target."""
    if row.job.scheme == "fp32" or row.artifact is None:
        return None
    mine = row.artifact.bytes
    if row.twin is None:
        least = row.least_float
        if least is None or mine >= least:
            return gate(row.id, "smaller", None, mine, None, "there is no float file beside it")
        said = f"{mine:,} bytes; the float model's numbers alone take {least:,}"
        return gate(row.id, "smaller", least, mine, True, said)
    beside = row.twin.bytes
    constants = sum(converting.placement(row.twin)["bytes_by_dtype"].values())
    said = f"{mine:,} bytes, {beside:,} in float"
    passed: bool | None = mine < beside
    if not passed and constants < SMALL:
        said += f"; not judged, as only {constants:,} of those are constants"
        passed = None
    return gate(row.id, "smaller", beside, mine, passed, said)


def _faster(row: Row, context: Context) -> dict[str, Any] | None:
    """Whether a scheme that is for speed is faster than float, by the paired measurement."""
    if row.job.scheme not in FAST:
        return None
    found = row.compared()
    if found is None or found["ratio"] is None:
        return gate(row.id, "faster", 1, None, None, "it was not measured beside float")
    low, high = found["ci95"]
    said = f"{found['ratio']:.2f} times float's time, 95 % interval {low:.2f} to {high:.2f}"
    here = _MACHINES.get(platform.machine().lower(), platform.machine())
    there = {context.devices[d].isa.arch for d in row.job.devices}
    passed = {"faster": True, "slower": False}.get(found["verdict"])
    if here not in there:
        said += f"; not judged, as this machine is {here} and its devices are {', '.join(there)}"
        passed = None
    return gate(row.id, "faster", 1, found["ratio"], passed, said)


def _weights(row: Row, context: Context) -> dict[str, Any] | None:
    """Whether the weights that the plan quantizes are stored in as few bits as it says."""
    if row.job.scheme == "fp32" or row.artifact is None or row.placement is None:
        return None
    held, counted = row.placement["bytes_by_dtype"], context.counted[row.id]
    if not held:
        return gate(row.id, "weights", None, None, None, "the bytes of its constants are not known")
    if not counted["planned"]:
        return _any_integers(row.id, held)
    wanted, got, short = 0, 0, []
    for dtype, names in _INTEGERS.items():
        expected = sum(w["bytes"] for w in counted["weights"] if w["dtype"] == dtype)
        stored = sum(held.get(name, 0) for name in names)
        wanted, got = wanted + expected, got + min(stored, expected)
        if stored < expected:
            short.append(dtype)
    said = None
    if short:
        there = {s["digest"] for s in converting.stored(row.artifact) if s["kind"] == "weight"}
        missing = [
            w for w in counted["weights"] if w["dtype"] in short and w["digest"] not in there
        ]
        said = _named(missing or [w for w in counted["weights"] if w["dtype"] in short], held)
    return gate(row.id, "weights", wanted, got, not short, said)


def _named(missing: Sequence[Mapping[str, Any]], held: Mapping[str, int]) -> str:
    names = ", ".join(w["name"] for w in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    dtypes = "/".join(dict.fromkeys(w["dtype"] for w in missing))
    floats = held.get("float32", 0)
    return (
        f"not stored as {dtypes}: {names}{more}; "
        f"{floats:,} of {sum(held.values()):,} bytes of its constants are float32"
    )


def _any_integers(artifact: str, held: Mapping[str, int]) -> dict[str, Any]:
    """An engine's file, of which no plan says which weights are quantized."""
    integers = sum(held.get(name, 0) for name in ("int8", "uint8"))
    said = "no plan says how many; there has to be some"
    if not integers:
        said = f"none of its weights is stored as int8: {held.get('float32', 0):,} bytes of float32"
    return gate(artifact, "weights", 1, integers, integers > 0, said)


def _parameters(row: Row, context: Context) -> dict[str, Any] | None:
    """Whether a model that is said to be pruned stores fewer parameters than its source.

    What counts is the float file of the same target, which holds each parameter once and no scales.
    A parameter that was set to zero is stored and multiplied like any other.
    """
    source, twin = context.source, row.twin
    if source is None:
        return None
    limit = source.parameters if source.stored is None else source.stored
    if twin is None:
        return gate(row.id, "parameters", limit, None, None, "there is no float file to count in")
    held = converting.placement(twin)["bytes_by_dtype"]
    stored = sum(held.get(name, 0) // size for name, size in _BYTES.items())
    if source.stored is None:
        # A bare number counts as its author's module does, where batch norms are not folded.
        stored = max(stored, context.parameters)
    removed = stored < limit and context.parameters < source.parameters
    if removed:
        said = f"{limit - stored:,} of {limit:,} parameters of {source.name} are gone"
    else:
        said = (
            f"no parameter was removed: it stores {stored:,}, and {source.name} {limit:,}; "
            "those set to zero are stored and multiplied as any other"
        )
    return gate(row.id, "parameters", limit, stored, removed, said)


def _delegate(row: Row) -> dict[str, Any]:
    """Whether all operators run in the delegate; what can't tell, fails."""
    assert row.placement is not None
    outside, delegate = row.placement["undelegated_ops"], row.job.delegate
    said = None
    if outside is None:
        said = f"{row.job.target} does not tell which operators run outside of {delegate}"
    elif outside:
        first = row.placement.get("first_undelegated") or row.placement["first_fallback"]
        ops = sum(row.placement["ops"].values())
        said = f"{outside} of {ops} operators run outside of {delegate}, the first: {first}"
    return gate(row.id, "delegate", 0, outside, outside == 0, said)


def _budgets(row: Row, context: Context) -> Iterator[dict[str, Any]]:
    """Budgets of the devices that an artifact is for; what is measured, on this machine only."""
    measured = row.measured()
    latency = None if measured is None else measured["latency_ms"]
    figures = {
        "max_bytes": None if row.artifact is None else row.artifact.bytes,
        "latency_p90_ms": None if latency is None else latency["p90"],
        "peak_memory_mib": None if measured is None else measured["peak_memory_mib"],
        "max_drop_points": row.drop,
    }
    for name in row.job.devices:
        for budget, limit in context.devices[name].budgets:
            if limit is None:
                continue
            value, said = figures[budget], None
            if budget in ("latency_p90_ms", "peak_memory_mib") and name != _HOST:
                value, said = None, f"it can only be measured on {name}"
            elif value is None:
                said = "it was not measured"
            passed = None if value is None else value <= limit
            if passed is None and context.request.require_verified:
                passed = False
            title = f"{budget.replace('_', '-')}@{name}"
            yield gate(row.id, title, limit, value, passed, said)
