"""Bars: what int8 gained, what bytes are, and what each layer costs. Two lines to a row, so that
names have the whole width and the figures stand beside them on a phone too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgekit.report.charts.svg import drawing, shorten, tag, text, width_of

__all__ = ["Bar", "Part", "bars", "gains", "stacks"]

_ROW = 44.0


@dataclass(frozen=True)
class Bar:
    """One row.

    Attributes:
        label: what it is of.
        value: how long the bar is, not negative; None where it is not known.
        said: the figure as text.
        group: its colour.
        before: the float model's value, drawn as a thin bar above; None without one.
    """

    label: str
    value: float | None
    said: str
    group: int = 0
    before: float | None = None


@dataclass(frozen=True)
class Part:
    """A part of a stacked bar: its length, name, and colour (0 to 5)."""

    value: float
    name: str
    group: int


def bars(rows: Sequence[Bar], *, width: float, title: str, desc: str) -> Markup:
    """A bar for each row; rows of thirty pixels, the longest bar as long as the chart is wide."""
    step = 34.0
    longest = max((r.value or 0 for r in rows), default=0) or 1
    parts: list[Markup] = []
    for i, row in enumerate(rows):
        top = i * step
        parts += _head(row.label, row.said, width, top)
        parts.append(tag("rect", x=0.0, y=top + 19, width=width, height=6.0, class_="track"))
        wide = (row.value or 0) / longest * width
        parts.append(
            tag("rect", tag("title", f"{row.label}: {row.said}"), x=0.0, y=top + 19, rx=2,
                width=max(wide, 1.0), height=6.0, class_=f"bar c{row.group}")
        )  # fmt: skip
    return drawing(width, len(rows) * step, parts, title=title, desc=desc, kind="bars")


def gains(rows: Sequence[Bar], *, width: float, title: str, desc: str) -> Markup:
    """For each row the float model's bar, hollow, above the bar of what was made of it."""
    longest = max((max(r.value or 0, r.before or 0) for r in rows), default=0) or 1
    parts: list[Markup] = []
    for i, row in enumerate(rows):
        top = i * _ROW
        parts += _head(row.label, row.said, width, top)
        if row.before is not None:
            wide = row.before / longest * (width - 2)
            parts.append(tag("rect", tag("title", f"{row.label}: float"), x=1.0, y=top + 20,
                             width=max(wide, 1.0), height=5.0, class_="bar float"))  # fmt: skip
        if row.value is not None:
            wide = row.value / longest * (width - 2)
            parts.append(
                tag("rect", tag("title", f"{row.label}: {row.said}"), x=1.0, y=top + 26, rx=1.5,
                    width=max(wide, 1.0), height=8.0, class_=f"bar c{row.group}")
            )  # fmt: skip
    return drawing(width, len(rows) * _ROW, parts, title=title, desc=desc, kind="bars")


def stacks(
    rows: Sequence[tuple[str, str, Sequence[Part]]], *, width: float, title: str, desc: str
) -> Markup:
    """For each row a bar of parts, with a part's name in it where that fits.

    Args:
        rows: label, the sum as text, and the parts.
        width, title, desc: see `bars`.
    """
    step = 46.0
    longest = max((sum(p.value for p in parts) for _, _, parts in rows), default=0) or 1
    drawn: list[Markup] = []
    for i, (label, said, parts) in enumerate(rows):
        top, x = i * step, 0.0
        drawn += _head(label, said, width, top)
        for part in parts:
            wide = part.value / longest * width
            name = tag("title", f"{label}: {part.name}")
            drawn.append(tag("rect", name, x=x, y=top + 19, width=max(wide - 1, 0.5), height=17.0,
                             class_=f"bar s{part.group}"))  # fmt: skip
            if width_of(part.name, 11) + 8 < wide:
                drawn.append(text(x + 5, top + 32, part.name, class_=f"in s{part.group}"))
            x += wide
    return drawing(width, len(rows) * step, drawn, title=title, desc=desc, kind="bars")


def _head(label: str, said: str, width: float, top: float) -> list[Markup]:
    room = width - width_of(said) - 12
    return [
        text(0, top + 13, shorten(label, room), class_="label"),
        text(width, top + 13, said, anchor="end", class_="figure"),
    ]
