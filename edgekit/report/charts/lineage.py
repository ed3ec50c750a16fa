"""Lineage: from data to files, a row for each step and a line from each to those that take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgekit.report.charts.svg import drawing, joined, shorten, tag, text

__all__ = ["Node", "graph"]

_LANE = 14.0
_FIRST = 12.0


@dataclass(frozen=True)
class Node:
    """One step.

    Attributes:
        id: unique.
        name: what it is called.
        kind: ``data``, ``stage`` or ``file``; ``failed`` or ``skipped`` for such a stage.
        facts: what is said of it, in a line.
        digest: of what it gives.
        parents: ids of the nodes that it takes, which stand above it.
    """

    id: str
    name: str
    kind: str
    facts: str
    digest: str
    parents: tuple[str, ...] = ()


def graph(nodes: Sequence[Node], *, width: float, title: str, desc: str) -> Markup:
    """The steps from top to bottom, as they stand in ``nodes``: parents before children."""
    # Hashes stand near the names that they belong to.
    width = min(width, 680.0)
    rows = {node.id: i for i, node in enumerate(nodes)}
    lanes = _lanes(nodes, rows)
    step = 50.0
    left = _FIRST + (max(lanes.values(), default=0) + 1) * _LANE + 12
    dot = left - 12
    parts: list[Markup] = []
    for node in nodes:
        if node.id in lanes:
            x = dot - (lanes[node.id] + 1) * _LANE
            children = [rows[c.id] for c in nodes if node.id in c.parents]
            parts.append(_line(x, dot, rows[node.id], children, step, lanes[node.id]))
    for i, node in enumerate(nodes):
        parts.append(_row(node, left, dot, i * step, width))
    return drawing(width, len(nodes) * step, parts, title=title, desc=desc, kind="lineage")


def _lanes(nodes: Sequence[Node], rows: Mapping[str, int]) -> dict[str, int]:
    """For each node with children, the lane that its line runs in: free from it to the last."""
    spans: list[list[tuple[int, int]]] = []
    found: dict[str, int] = {}
    for node in nodes:
        children = [rows[c.id] for c in nodes if node.id in c.parents]
        if not children:
            continue
        start, end = rows[node.id], max(children)
        for lane in range(len(spans) + 1):
            if lane == len(spans):
                spans.append([])
            if all(end <= s or e <= start for s, e in spans[lane]):
                spans[lane].append((start, end))
                found[node.id] = lane
                break
    return found


def _line(
    x: float, dot: float, start: int, children: Sequence[int], step: float, lane: int
) -> Markup:
    """From a node's dot into its lane, down, and out to each child's dot."""
    y = start * step + 17
    drawn = []
    for child in children:
        end = child * step + 17
        d = (
            f"M{dot:.1f} {y:.1f}C{x:.1f} {y:.1f} {x:.1f} {y + 6:.1f} {x:.1f} {y + 16:.1f}"
            f"V{end - 16:.1f}C{x:.1f} {end - 6:.1f} {x:.1f} {end:.1f} {dot:.1f} {end:.1f}"
        )
        drawn.append(tag("path", d=d, class_=f"flow c{lane % 6}"))
    return joined(drawn)


def _row(node: Node, left: float, dot: float, top: float, width: float) -> Markup:
    shape = (
        tag("rect", x=dot - 5, y=top + 12, width=10.0, height=10.0, class_=f"node {node.kind}")
        if node.kind in ("data", "file")
        else tag("circle", cx=dot, cy=top + 17, r=5.5, class_=f"node {node.kind}")
    )
    mono = 7.3 * len(node.digest)
    room = width - left - mono - 10
    return tag(
        "g",
        tag("title", f"{node.name}: {node.facts} {node.digest}"),
        shape,
        text(left, top + 21, shorten(node.name, room, 13), class_="name"),
        text(width, top + 21, node.digest, anchor="end", class_="digest"),
        text(left, top + 37, shorten(node.facts, width - left), class_="facts"),
    )
