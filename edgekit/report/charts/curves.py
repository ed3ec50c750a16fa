"""Curves of metrics over epochs, several runs in one picture, each named at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgekit.report.charts.svg import (
    SIZE,
    Scale,
    drawing,
    joined,
    marker,
    path,
    shorten,
    tag,
    text,
    width_of,
)
from edgekit.report.figures import short

__all__ = ["Curve", "chart"]

_LINE = SIZE * 1.2


@dataclass(frozen=True)
class Curve:
    """One line: its name, its colour (0 to 5), its points (step, value), and its dash (0 to 3).

    A value of None, where the metric was not finite, leaves a gap.
    """

    name: str
    group: int
    points: tuple[tuple[float, float | None], ...]
    dash: int = 0

    @property
    def known(self) -> list[tuple[float, float]]:
        """The points with a value."""
        return [(s, v) for s, v in self.points if v is not None]


def chart(curves: Sequence[Curve], *, width: float, title: str, desc: str) -> Markup:
    """A picture of curves, at least one of which has a point."""
    height, top = 210.0, 14.0
    known = [c for c in curves if c.known]
    ends = [f"{c.name} {short(c.known[-1][1], 4)}".strip() for c in known]
    margin = min(max(map(width_of, ends)) + 10, width * 0.42)
    ends = [shorten(e, margin - 10) for e in ends]
    right, bottom = width - margin, height - 38
    values = [v for c in known for _, v in c.known]
    steps = [s for c in known for s, _ in c.known]
    ys = Scale.over(values, bottom, top)
    ticks = [(v, f"{v:g}") for v in ys.ticks(4)]
    left = max(width_of(label) for _, label in ticks) + 10
    xs = _steps(steps, left + 2, right)
    parts: list[Markup] = []
    for value, label in ticks:
        y = ys(value)
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(text(left - 6, y + 4, label, anchor="end", class_="tick"))
    parts.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="base"))
    for value in (v for v in xs.ticks(4) if float(v).is_integer()):
        parts.append(text(xs(value), bottom + 16, f"{value:g}", anchor="middle", class_="tick"))
    parts.append(text(right, bottom + 32, "epoch or step", anchor="end", class_="axis"))
    parts += [_line(c, xs, ys) for c in known]
    levels = _apart([ys(c.known[-1][1]) for c in known], top + 4, bottom)
    for curve, label, level in zip(known, ends, levels, strict=True):
        # All names stand beyond the last step, so that no line runs through one.
        x, y = (scale(v) for scale, v in zip((xs, ys), curve.known[-1], strict=True))
        if right - x > 8 or abs(level - y) > 8:
            parts.append(tag("line", x1=x, y1=y, x2=right + 5, y2=level, class_="leader"))
        parts.append(text(right + 7, level + 4, label, class_=f"label t{curve.group % 6}"))
    return drawing(width, height, parts, title=title, desc=desc, kind="curves")


def _steps(steps: Sequence[float], start: float, end: float) -> Scale:
    low, high = min(steps), max(steps)
    return Scale(low, high, start, end) if high > low else Scale(low - 1, low + 1, start, end)


def _line(curve: Curve, xs: Scale, ys: Scale) -> Markup:
    pieces: list[list[tuple[float, float]]] = [[]]
    for step, value in curve.points:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((xs(step), ys(value)))
    style = f"line c{curve.group % 6} d{curve.dash % 4}"
    drawn = [
        tag("path", tag("title", curve.name), d=path(p), class_=style) for p in pieces if len(p) > 1
    ]
    drawn += [marker("circle", *p[0], 2.5, class_=f"dot c{curve.group % 6}") for p in pieces if p]
    last = [p for p in pieces if p][-1][-1]
    return joined([*drawn, marker("circle", *last, 3.5, class_=f"dot c{curve.group % 6}")])


def _apart(levels: Sequence[float], top: float, bottom: float) -> list[float]:
    """Levels moved so far apart that lines of text at them don't touch, in the same order."""
    order = sorted(range(len(levels)), key=lambda i: (levels[i], i))
    found = [levels[i] for i in order]
    found[0] = max(found[0], top)
    for i in range(1, len(found)):
        found[i] = max(found[i], found[i - 1] + _LINE)
    # What was pushed out at the bottom goes up again, and takes those above along.
    found[-1] = min(found[-1], bottom)
    for i in reversed(range(len(found) - 1)):
        found[i] = min(found[i], found[i + 1] - _LINE)
    placed = [0.0] * len(found)
    for level, i in zip(found, order, strict=True):
        placed[i] = level
    return placed
