"""Accuracy against latency against size: the points of an export, and who is on the Pareto front.

A point is on the front where no other is at least as accurate, as fast and as small, and better in
one of the three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from edgekit.report.charts.svg import (
    Box,
    Placer,
    Scale,
    Shape,
    drawing,
    joined,
    marker,
    tag,
    text,
)

__all__ = ["Axis", "Point", "fronted", "scatter"]


@dataclass(frozen=True)
class Point:
    """An artifact, or the float model in the same runtime.

    Attributes:
        label: what stands beside it.
        group: which colour and shape: the target's place in the table of targets.
        ms: median latency; None where nobody measured it.
        bytes: its size.
        value: accuracy in percent.
        low, high: what its 95 % interval against the float model leaves open; None without one.
        float_: whether it is the float twin.
        front: whether it is on the Pareto front.
    """

    label: str
    group: int
    ms: float | None
    bytes: int | None
    value: float | None
    low: float | None = None
    high: float | None = None
    float_: bool = False
    front: bool = False


@dataclass(frozen=True)
class Axis:
    """One of a chart's axes.

    Attributes:
        title: with the unit.
        scale: over the values; the pixels of it are not used.
        ticks: the labels by value.
    """

    title: str
    values: tuple[float, ...]
    zero: bool = False
    least: float = 0.0
    bounds: tuple[float, float] = (float("-inf"), float("inf"))

    def scale(self, start: float, end: float) -> Scale:
        """The scale between two pixels."""
        return Scale.over(
            self.values, start, end, zero=self.zero, least=self.least, bounds=self.bounds
        )


def fronted(points: Sequence[Point]) -> list[Point]:
    """The points, with those on the Pareto front marked.

    Compared are the quantities that every point has that has any: an export without evaluation
    data has no accuracy. A point that lacks one of them is not on the front.
    """
    names = [n for n in ("ms", "bytes", "value") if any(getattr(p, n) is not None for p in points)]

    def costs(point: Point) -> tuple[float, ...] | None:
        found = [(getattr(point, n), -1 if n == "value" else 1) for n in names]
        if any(v is None for v, _ in found):
            return None
        return tuple(v * sign for v, sign in found)

    known = [c for c in map(costs, points) if c is not None]

    def on_front(point: Point) -> bool:
        mine = costs(point)
        if mine is None or len(names) < 2:
            return False
        return not any(
            other != mine and all(o <= m for o, m in zip(other, mine, strict=True))
            for other in known
        )

    return [replace(p, front=on_front(p)) for p in points]


def scatter(
    points: Sequence[tuple[float, float, Point]],
    x_axis: Axis,
    y_axis: Axis,
    *,
    width: float,
    title: str,
    desc: str,
    reference: float | None = None,
    bubbles: bool = False,
) -> Markup:
    """A chart of points with a label at each.

    Args:
        points: x, y and the point, at least one.
        x_axis, y_axis: their values cover every point that is to be comparable with these.
        width: in pixels.
        title, desc: for those who cannot see it.
        reference: a level line: the float model's accuracy.
        bubbles: whether areas are the artifacts' sizes.
    """
    height = 320.0 if width < 400 else 360.0
    left, right, top, bottom = 48.0, width - 14, 34.0, height - 46
    xs, ys = x_axis.scale(left, right), y_axis.scale(bottom, top)
    placer = Placer(Box(left + 2, top - 4, right - left - 2, bottom - top + 2))
    parts: list[Markup] = [*_grid(xs, ys, x_axis, y_axis, left, right, top, bottom)]
    if reference is not None:
        parts.append(_reference(reference, ys, left, right, placer))
    largest = max((p.bytes or 0 for _, _, p in points), default=0) or 1
    drawn = [
        (xs(x), ys(y), 4 + 9 * ((p.bytes or 0) / largest) ** 0.5 if bubbles else 6.0, p)
        for x, y, p in points
    ]
    for x, y, r, point in drawn:
        out = r + 5 if point.front else r
        placer.block(Box(x - out, y - out, 2 * out, 2 * out))
    parts += _twins(drawn)
    parts += [_whisker(x, p, ys) for x, _, _, p in drawn if p.low is not None]
    parts += [_mark(x, y, r, p) for x, y, r, p in sorted(drawn, key=lambda d: -d[2])]
    # The front's labels find the best places.
    for x, y, r, point in sorted(drawn, key=lambda d: (not d[3].front, d[3].float_, d[0])):
        parts.append(_label(x, y, r, point, placer))
    return drawing(width, height, parts, title=title, desc=desc, kind="scatter")


def _grid(
    xs: Scale, ys: Scale, x_axis: Axis, y_axis: Axis, left: float, right: float, top: float,
    bottom: float,
) -> list[Markup]:  # fmt: skip
    parts = [text(left, top - 18, y_axis.title, class_="axis")]
    for value in ys.ticks(5):
        y = ys(value)
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(text(left - 7, y + 4, f"{value:g}", anchor="end", class_="tick"))
    for value in xs.ticks(4 if right - left < 350 else 6):
        x = xs(value)
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        parts.append(text(x, bottom + 17, f"{value:g}", anchor="middle", class_="tick"))
    name = f"{x_axis.title}, logarithmic" if xs.log else x_axis.title
    parts.append(text(right, bottom + 37, name, anchor="end", class_="axis"))
    parts.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="base"))
    return parts


def _reference(value: float, ys: Scale, left: float, right: float, placer: Placer) -> Markup:
    y = ys(value)
    placer.block(Box(left, y - 1, right - left, 2))
    return joined([tag("line", x1=left, x2=right, y1=y, y2=y, class_="reference")])


def _twins(drawn: Sequence[tuple[float, float, float, Point]]) -> list[Markup]:
    """A line from each float twin to what was made of it."""
    lines = []
    for x, y, _, twin in drawn:
        if not twin.float_:
            continue
        for other_x, other_y, _, point in drawn:
            if point.group == twin.group and not point.float_:
                lines.append(
                    tag("line", x1=x, y1=y, x2=other_x, y2=other_y, class_=f"twin c{twin.group}")
                )
    return lines


def _whisker(x: float, point: Point, ys: Scale) -> Markup:
    assert point.low is not None and point.high is not None
    low, high = ys(max(point.low, ys.low)), ys(min(point.high, ys.high))
    return tag("line", x1=x, x2=x, y1=low, y2=high, class_=f"whisker c{point.group}")


def _mark(x: float, y: float, r: float, point: Point) -> Markup:
    kind = Shape.KINDS[point.group % len(Shape.KINDS)]
    name = tag("title", point.label)
    style = f"mark c{point.group}{' hollow' if point.float_ else ''}"
    ring = [tag("circle", cx=x, cy=y, r=r + 4.5, class_="front")] if point.front else []
    return joined([*ring, marker(kind, x, y, r, name, class_=style)])


def _label(x: float, y: float, r: float, point: Point, placer: Placer) -> Markup:
    gap = r + (7 if point.front else 4)
    box, far = placer.place(x, y, point.label, gap=gap)
    parts = []
    if far:
        end = min(max(x, box.x), box.x + box.width)
        level = box.y if box.y > y else box.y + box.height
        parts.append(tag("line", x1=x, y1=y, x2=end, y2=level, class_="leader"))
    style = "label front-label" if point.front else "label"
    parts.append(text(box.x + box.width / 2, box.y + 11.5, point.label, anchor="middle",
                      class_=style))  # fmt: skip
    return joined(parts)
