"""Every gate with its verdict: held, FAILED or not judged, in words as well as in colour."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.report.artifacts import Gate, Group
from edgekit.report.blocks import Block, Cell, Heading, Section, Table
from edgekit.report.figures import NONE
from edgekit.report.found import Source

__all__ = ["gates", "stage_gates", "verdict"]

_LACKING = (
    "no gate was judged: there is no export, and no stage told of one. `edgekit export --max-drop "
    "POINTS` and the like set gates."
)


def stage_gates(source: Source, groups: Sequence[Group]) -> list[Gate]:
    """What the stages of a run checked by themselves.

    The gates of an export, which its stage tells of too, are left to the export's own table.
    """
    if source.run is None:
        return []
    told = {
        (group.stage, f"{gate.name} {gate.artifact}")
        for group in groups
        if group.source is source
        for gate in group.gates
    }
    return [
        Gate(g["name"], stage["name"], "", g["text"], g["passed"])
        for stage in source.run["stages"]
        for g in stage.get("gates", [])
        if (stage["name"], g["name"]) not in told
    ]


def verdict(gate: Gate) -> tuple[str, str]:
    """The verdict in words, and the kind of its cell."""
    if gate.passed is None:
        return "not judged", "unknown"
    if gate.passed:
        return "held", "held"
    return ("FAILED, waived" if gate.waived else "FAILED"), "failed"


def gates(groups: Sequence[Group], sources: Sequence[Source]) -> Section:
    """The section: a table for each export, and one for what stages checked."""
    lead = "What had to hold. A gate that could not be judged has not held."
    blocks: list[Block] = []
    for group in groups:
        blocks += _part(group.title, group.gates, "artifact", len(groups) > 1)
    for source in sources:
        blocks += _part(f"{source.title}, stages", stage_gates(source, groups), "stage", True)
    if not blocks:
        return Section("gates", "Gates", lead, (), _LACKING)
    return Section("gates", "Gates", lead, blocks)


def _part(title: str, found: Sequence[Gate], of: str, named: bool) -> list[Block]:
    if not found:
        return []
    order = {False: 0, None: 1, True: 2}
    rows = []
    for gate in sorted(found, key=lambda g: order[g.passed]):
        said, kind = verdict(gate)
        rows.append(
            [
                Cell(said, kind),
                Cell(gate.name, head=True),
                Cell(gate.artifact or "the whole", "mono"),
                Cell(gate.limit or NONE, "number"),
                Cell(gate.found or NONE, "number"),
                Cell(gate.detail, "wide"),
            ]
        )
    headers = ["verdict", "gate", of, "limit", "found", ""]
    if not any(gate.detail for gate in found):
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    failed = sum(g.passed is False for g in found)
    unknown = sum(g.passed is None for g in found)
    caption = f"{len(found) - failed - unknown} held, {failed} failed, {unknown} not judged."
    # Those that held alone may be folded away; the others are what the reader came for.
    bad = [r for r in rows if r[0].kind != "held"]
    good = [r for r in rows if r[0].kind == "held"]
    tables: list[Block] = [Heading(title)] if named else []
    if bad:
        tables.append(Table(headers, bad, caption))
        if good:
            tables.append(Table(headers, good, f"{len(good)} gates that held", folded=True))
    else:
        tables.append(Table(headers, good, caption, folded=len(good) > 12))
    return tables
