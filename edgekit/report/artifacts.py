"""The artifacts of a source, out of export documents, or out of a bundle's own evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edgekit.names import TARGETS
from edgekit.report.charts.tradeoff import Point, fronted
from edgekit.report.found import BUNDLE, EXPORT, Document, Source

__all__ = ["Gate", "Group", "Item", "group_of_target", "groups_of"]

HERE: Final = "this machine"


@dataclass(frozen=True)
class Item:
    """One artifact; a figure is None where nobody has it.

    Attributes:
        entry: as the ``edgekit.export/1`` document has it (of a bundle, in that form).
        sha256: of its files, where a manifest tells.
        front: whether it is on the Pareto front of its group.
        float_front: whether its float twin is.
    """

    entry: Mapping[str, Any]
    sha256: str | None = None
    front: bool = False
    float_front: bool = False

    @property
    def id(self) -> str:
        """The artifact's id."""
        return str(self.entry["id"])

    @property
    def group(self) -> int:
        """Its target's colour and shape."""
        return group_of_target(self.entry["target"])

    def ms(self) -> float | None:
        """Median latency in milliseconds."""
        latency = self.entry["latency_ms"]
        return None if latency is None else float(latency["p50"])

    def float_ms(self) -> float | None:
        """The same of the float model in the same runtime."""
        twin = self.entry["float"]
        return None if twin is None else twin["latency_p50_ms"]

    def float_bytes(self) -> int | None:
        """Size of the float model in the same runtime's format."""
        twin = self.entry["float"]
        return None if twin is None else twin["bytes"]


@dataclass(frozen=True)
class Gate:
    """A condition: ``passed`` is None where it could not be judged."""

    name: str
    artifact: str | None
    limit: str
    found: str
    passed: bool | None
    detail: str = ""
    waived: bool = False


@dataclass(frozen=True)
class Group:
    """The artifacts of one export.

    Attributes:
        title: which export that is, where there are several.
        source: the argument that it is out of.
        model: the model's name.
        metric: what accuracy is measured by; None without evaluation data.
        reference: the float model's accuracy in percent, and on how many samples; or None.
        devices: that it was made for.
        items: its artifacts.
        gates: its gates.
        points: its artifacts and their float twins, those on the Pareto front marked.
        where: where latencies were measured; None where they were not.
        stage: the stage of the run that made them; None outside of a run.
    """

    title: str
    source: Source
    model: str
    metric: str | None
    reference: tuple[float, int] | None
    devices: tuple[str, ...]
    items: tuple[Item, ...]
    gates: tuple[Gate, ...]
    points: tuple[Point, ...] = field(default=())
    where: str | None = None
    stage: str | None = None


def group_of_target(target: str) -> int:
    """The target's place in the table of targets; the one for tests comes last."""
    return list(TARGETS).index(target) if target in TARGETS else len(TARGETS)


def groups_of(source: Source) -> list[Group]:
    """One group for each export, and one for each bundle that no export document tells of."""
    exports, bundles = source.of(EXPORT), source.of(BUNDLE)
    told: set[int] = set()
    groups: list[Group] = []
    for document in exports:
        mine = next(
            (b for b in bundles if id(b) not in told and _same(document.data, b.data)), None
        )
        if mine is not None:
            told.add(id(mine))
        groups.append(_exported(source, document, None if mine is None else mine.data))
    groups += [_packed(source, b) for b in bundles if id(b) not in told]
    if len(groups) == 1:
        return [_titled(groups[0], source.title)]
    return [_titled(g, f"{source.title}: {g.title}") for g in groups]


def _titled(group: Group, title: str) -> Group:
    return Group(**{**vars(group), "title": title})


def _same(export: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether a bundle is the one that an export wrote: the same artifacts of the same size."""
    made = {(a["id"], a["bytes"]) for a in export["artifacts"] if a["bytes"] is not None}
    return made == {(a["id"], a["bytes"]) for a in manifest["artifacts"]}


def _exported(source: Source, document: Document, manifest: Mapping[str, Any] | None) -> Group:
    data, hashes = document.data, {}
    if manifest is not None:
        hashes = {a["id"]: a["sha256"] for a in manifest["artifacts"]}
    reference = data["reference"]
    found = None
    if reference is not None and reference["value"] is not None:
        found = (float(reference["value"]), int(reference["n"]))
    gates = [
        Gate(
            g["name"],
            g["artifact"],
            _said(g["limit"]),
            _said(g["value"]),
            g["passed"],
            g.get("detail", ""),
            bool(g.get("waived")),
        )
        for g in data["gates"]
    ]
    items = [Item(a, hashes.get(a["id"])) for a in data["artifacts"]]
    return _group(source, document, data["model"], data["metric"], found, data["devices"], items,
                  gates)  # fmt: skip


def _packed(source: Source, document: Document) -> Group:
    """A bundle's artifacts with what its manifest keeps of the proof."""
    data = document.data
    items, gates, devices = [], [], []
    for artifact in data["artifacts"]:
        evidence = artifact.get("evidence") or {}
        items.append(Item(_entry(artifact, evidence), artifact["sha256"]))
        gates += _checks(artifact["id"], evidence)
        devices += artifact.get("devices", [])
    metrics = [(a.get("evidence") or {}).get("accuracy") or {} for a in data["artifacts"]]
    known = [m for m in metrics if m.get("value") is not None]
    reference = None
    counted = ((data.get("lineage") or {}).get("evaluation") or {}).get("n")
    # What is lost is counted from the float model's own accuracy.
    if known and known[0].get("drop_points") is not None and counted is not None:
        reference = (float(known[0]["value"]) + float(known[0]["drop_points"]), int(counted))
    metric = known[0].get("metric") if known else None
    return _group(source, document, data["name"], metric, reference, list(dict.fromkeys(devices)),
                  items, gates)  # fmt: skip


def _entry(artifact: Mapping[str, Any], evidence: Mapping[str, Any]) -> dict[str, Any]:
    bench, accuracy = evidence.get("bench") or {}, evidence.get("accuracy") or {}
    placement, latency = evidence.get("placement"), bench.get("latency_ms")
    return {
        "id": artifact["id"],
        "target": artifact["target"],
        "delegate": artifact.get("delegate") or NO_DELEGATE,
        "scheme": artifact["scheme"],
        "io": artifact.get("io"),
        "devices": list(artifact.get("devices", [])),
        "bytes": artifact["bytes"],
        "status": "ok",
        "reason": None,
        "verification": artifact.get("verification", "none"),
        "value": accuracy.get("value"),
        "drop_points": accuracy.get("drop_points"),
        "drop_ci95": accuracy.get("drop_ci95"),
        "placement": placement,
        "latency_ms": None
        if latency is None
        else {**latency, "threads": bench.get("threads", 1), "where": "where it was exported"},
        "load_ms": bench.get("load_ms"),
        "peak_memory_mib": bench.get("peak_memory_mib"),
        "float": None,
        "parity": None,
    }


NO_DELEGATE: Final = "cpu"


def _checks(artifact: str, evidence: Mapping[str, Any]) -> list[Gate]:
    """The proof as one gate, and each check of it that failed as another."""
    verify = evidence.get("verify")
    if not verify:
        return [Gate("verify", artifact, "", "", None, "the bundle keeps no proof of it")]
    checks = verify.get("checks", [])
    held = sum(c.get("passed") is True for c in checks)
    whole = Gate("verify", artifact, f"against the {verify.get('against', 'plan')}",
                 f"{held} of {len(checks)} checks", bool(verify.get("passed")))  # fmt: skip
    broken = [
        Gate(c["name"], artifact, _said(c.get("limit")), _said(c.get("value")), False,
             str(c.get("detail", "")))
        for c in checks
        if c.get("passed") is False
    ]  # fmt: skip
    return [whole, *broken]


def _group(
    source: Source,
    document: Document,
    model: str,
    metric: str | None,
    reference: tuple[float, int] | None,
    devices: Sequence[str],
    items: Sequence[Item],
    gates: Sequence[Gate],
) -> Group:
    accuracy = None if reference is None else reference[0]
    made: list[tuple[int, Point]] = []
    for i, item in enumerate(items):
        if item.entry["status"] == "ok":
            made += [(i, p) for p in _points(item, accuracy)]
    points = fronted([p for _, p in made])
    marks = [(i, p.float_, p.front) for (i, _), p in zip(made, points, strict=True)]
    ringed = {(i, twin) for i, twin, front in marks if front}
    found = tuple(
        Item(item.entry, item.sha256, (i, False) in ringed, (i, True) in ringed)
        for i, item in enumerate(items)
    )
    places = [i.entry["latency_ms"]["where"] for i in items if i.entry["latency_ms"] is not None]
    where = ", ".join(dict.fromkeys(places)) or None
    return Group(document.origin, source, model, metric, reference, tuple(devices), found,
                 tuple(gates), tuple(points), where, document.stage)  # fmt: skip


def _points(item: Item, reference: float | None) -> list[Point]:
    entry, group = item.entry, item.group
    low = high = None
    if reference is not None and entry["drop_ci95"] is not None and entry["value"] is not None:
        low, high = reference - entry["drop_ci95"][1], reference - entry["drop_ci95"][0]
    points = [Point(item.id, group, item.ms(), entry["bytes"], entry["value"], low, high)]
    if item.float_ms() is not None or item.float_bytes() is not None:
        name = f"{entry['target']} float"
        twin = Point(name, group, item.float_ms(), item.float_bytes(), reference, float_=True)
        points.append(twin)
    return points


def _said(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else str(value)
