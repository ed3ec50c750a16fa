"""Where it all comes from: lineage, settings, versions and the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from edgekit.report.artifacts import Group
from edgekit.report.blocks import Block, Cell, Chart, Heading, Note, Section, Table
from edgekit.report.charts.lineage import Node, graph
from edgekit.report.charts.svg import columns
from edgekit.report.figures import NONE, counted, digest, duration, plain, size
from edgekit.report.found import BUNDLE, Source

__all__ = ["facts", "lineage", "settings"]

_NO_LINEAGE = (
    "an export's document alone doesn't say where it comes from: name the run's folder, or the "
    "bundle, whose manifest keeps it."
)
_NO_SETTINGS = "only a run of a recipe has settings: `edgekit run RECIPE -o DIR`, and name DIR."


def lineage(sources: Sequence[Source], groups: Sequence[Group]) -> Section:
    """The section: from the digest of the data to the hash of every artifact."""
    lead = "From the digest of the data to the hash of every artifact."
    blocks: list[Block] = []
    for source in sources:
        mine = [g for g in groups if g.source is source]
        nodes = _stages(source, mine) if source.run is not None else _packed(source, mine)
        if not nodes:
            continue
        if len(sources) > 1:
            blocks.append(Heading(source.title))
        blocks.append(_drawn(source.title, nodes))
        if source.run is not None:
            blocks += _stage_tables(source.run)
    return Section("lineage", "Lineage", lead, blocks, None if blocks else _NO_LINEAGE)


def _drawn(source: str, nodes: Sequence[Node]) -> Chart:
    title = f"Lineage of {source}"
    desc = "; ".join(f"{n.name} ({n.kind}) {n.facts}" for n in nodes)
    drawing = columns(lambda w: graph(nodes, width=w, title=title, desc=desc))
    caption = "Squares: data and artifacts. Circles: stages. Hashes are SHA-256, shortened."
    return Chart("Lineage", drawing, caption)


def _stages(source: Source, groups: Sequence[Group]) -> list[Node]:
    run = source.run or {}
    stages = run["stages"]
    names = {s["name"] for s in stages}
    nodes: list[Node] = []
    if run["data"] is not None:
        data = run["data"]
        nodes.append(Node("data:", PurePath(data["source"]).name or data["source"], "data",
                          "what --data named", digest(data["digest"])))  # fmt: skip
    for stage in stages:
        kind = "stage" if stage["status"] == "ok" else stage["status"]
        parents = tuple(p for p in stage["inputs"] if p in names)
        # A stage that takes the data says so; without a stage before it, it begins with them.
        if run["data"] is not None and ("data" in stage["inputs"] or not parents):
            parents = ("data:", *parents)
        nodes.append(Node(stage["name"], stage["name"], kind, _said(stage),
                          digest(stage["result"]), parents))  # fmt: skip
    for group in groups:
        nodes += _artifacts(group, () if group.stage is None else (group.stage,))
    return nodes


def _said(stage: Mapping[str, Any]) -> str:
    if stage["status"] != "ok":
        return f"{stage['status']}: {stage['reason']}"
    took = "from the cache" if stage["cached"] else duration(stage["wall_s"])
    parts = [took]
    if stage["files"]:
        total = sum(f["bytes"] for f in stage["files"])
        parts.append(f"{counted(len(stage['files']), 'file')}, {size(total)}")
    if stage["attempts"] > 1:
        parts.append(f"{stage['attempts']} attempts")
    return "; ".join(parts)


def _artifacts(group: Group, parents: tuple[str, ...]) -> list[Node]:
    return [
        Node(f"artifact:{group.title}:{i.id}", i.id, "file",
             f"{size(i.entry['bytes'])}, {i.entry['verification']}", digest(i.sha256), parents)
        for i in group.items
        if i.sha256 is not None
    ]  # fmt: skip


def _packed(source: Source, groups: Sequence[Group]) -> list[Node]:
    """What a bundle's manifest says of its own lineage."""
    nodes: list[Node] = []
    for document in source.of(BUNDLE):
        manifest = document.data
        known = manifest.get("lineage") or {}
        model = manifest.get("model") or {}
        above: list[str] = []
        for role in ("calibration", "evaluation"):
            about = known.get(role)
            if about:
                above.append(role)
                facts = f"{role}, {counted(int(about['n']), 'sample')}"
                nodes.append(Node(role, str(about["source"]), "data", facts,
                                  digest(about["digest"])))  # fmt: skip
        count = model.get("parameters")
        held = "" if count is None else f"{count:,} parameters".replace(",", "\u202f")
        nodes.append(Node("model", str(model.get("name", manifest["name"])), "stage",
                          f"the float model; {held}" if held else "the float model",
                          digest(model.get("digest"))))  # fmt: skip
        last = ("model", *above)
        for name, value in sorted((known.get("programs") or {}).items()):
            nodes.append(Node(f"plan:{name}", f"plan {name}", "stage", "the quantization plan",
                              digest(str(value)), last))  # fmt: skip
        plans = tuple(n.id for n in nodes if n.id.startswith("plan:")) or last
        for group in groups:
            nodes += _artifacts(group, plans)
    return nodes


def _stage_tables(run: Mapping[str, Any]) -> list[Block]:
    rows, reads, files, notes = [], [], [], []
    for s in run["stages"]:
        kind = {"ok": "held", "failed": "failed", "skipped": "unknown"}[s["status"]]
        rows.append([
            Cell(s["name"], "mono", head=True), Cell(s["status"], kind),
            Cell("from the cache" if s["cached"] else s["why"] or NONE),
            Cell(duration(s["wall_s"]), "number"), Cell(str(s["attempts"]), "number"),
            Cell(", ".join(f"{k} {digest(v, 8)}" for k, v in s["inputs"].items()) or NONE, "mono"),
            Cell(digest(s["result"]), "mono"), Cell(_remarks(s)),
        ])  # fmt: skip
        reads += [[Cell(s["name"], "mono", head=True), Cell(k, "mono"), Cell(plain(v))]
                  for k, v in sorted(s["reads"].items())]  # fmt: skip
        files += [[Cell(f"{s['name']}/{f['path']}", "mono", head=True),
                   Cell(size(f["bytes"]), "number"), Cell(f["sha256"], "mono")]
                  for f in s["files"]]  # fmt: skip
        notes += [[Cell(s["name"], "mono", head=True), Cell(n)] for n in s.get("notes", [])]
    headers = ["stage", "status", "why it ran", "took", "attempts", "takes", "result", "remarks"]
    blocks: list[Block] = [Table(headers, rows, "Stages of the run")]
    if reads:
        blocks.append(Table(["stage", "setting", "value"], reads, "Settings that stages read",
                            folded=True))  # fmt: skip
    if notes:
        blocks.append(Table(["stage", "note"], notes, "What stages said", folded=True))
    if files:
        blocks.append(Table(["file", "size", "sha256"], files,
                            f"{counted(len(files), 'file')} with their hashes", True))  # fmt: skip
    return blocks


def _remarks(stage: Mapping[str, Any]) -> str:
    value = stage["value"]
    flat = isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values())
    gave = f"gave {plain(value)}" if flat or isinstance(value, int | float) else ""
    return "; ".join(filter(None, (stage["reason"], gave)))


# -- settings and versions ------------------------------------------------------------------------


def settings(sources: Sequence[Source]) -> Section:
    """The section: what the recipe was told; where runs differ, that is marked."""
    lead = "What the recipe was told, defaults included."
    runs = [s for s in sources if s.run is not None]
    if not runs:
        return Section("settings", "Settings", lead, (), _NO_SETTINGS)
    blocks: list[Block] = [_compared([(s.title, s.run["settings"]) for s in runs if s.run],
                                     "setting", "Settings")]  # fmt: skip
    about = [(s.title, _about(s.run)) for s in runs if s.run]
    blocks.append(_compared(about, "of the run", "The run itself"))
    return Section("settings", "Settings", lead, blocks)


def _about(run: Mapping[str, Any]) -> dict[str, Any]:
    data = run["data"]
    return {
        "recipe": run["recipe"]["name"],
        "recipe, sha256": run["recipe"]["sha256"],
        "data": NONE if data is None else data["source"],
        "data, digest": NONE if data is None else data["digest"],
        "devices": run["devices"],
        "took": duration(run["wall_s"]),
    }


def facts(sources: Sequence[Source]) -> Section:
    """The section: versions of libraries, and the machine."""
    lead = "With what, and on what, it was made."
    blocks: list[Block] = []
    runs = [s for s in sources if s.run is not None]
    if runs:
        versions = [(s.title, s.run["versions"]) for s in runs if s.run]
        blocks.append(_compared(versions, "library", "Versions"))
        machines = [(s.title, s.run["machine"]) for s in runs if s.run]
        blocks.append(_compared(machines, "fact", "Machine"))
    for source in sources:
        for document in source.of(BUNDLE) if source.run is None else []:
            tools = (document.data.get("lineage") or {}).get("tools") or {}
            known = {"edgekit": document.data.get("edgekit", NONE), **tools}
            blocks.append(_compared([(source.title, known)], "library", "Versions"))
            blocks.append(Note("A bundle doesn't say on what machine it was made.", "missing"))
    if not blocks:
        reason = "an export's document alone doesn't tell: name the run's folder, or the bundle."
        return Section("facts", "Versions and machine", lead, (), reason)
    return Section("facts", "Versions and machine", lead, blocks)


def _compared(columns_: Sequence[tuple[str, Mapping[str, Any]]], what: str, caption: str) -> Table:
    keys = list(dict.fromkeys(k for _, values in columns_ for k in values))
    rows = []
    for key in sorted(keys) if what in ("setting", "library") else keys:
        found = [plain(v[key]) if key in v else NONE for _, v in columns_]
        cells = [Cell(key, "mono", head=True), *(Cell(f) for f in found)]
        if len(columns_) > 1:
            cells.append(Cell("differs", "unknown") if len(set(found)) > 1 else Cell(""))
        rows.append(cells)
    headers = [what, *(title for title, _ in columns_)]
    return Table([*headers, *([""] if len(columns_) > 1 else [])], rows, caption)
