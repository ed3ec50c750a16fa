"""The confusion matrix: which class was taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from markupsafe import Markup

from edgekit.report.charts.svg import drawing, shorten, tag, text, width_of

__all__ = ["LARGEST", "confusion"]

LARGEST: Final = 30
"""Classes that a matrix is drawn for, at most; with more, cells are too small to read."""


def confusion(
    counts: Mapping[tuple[int, int], int],
    names: Sequence[str],
    *,
    width: float,
    title: str,
    desc: str,
) -> Markup:
    """A cell for each pair of label (row) and prediction (column); the darker, the more of the row.

    Args:
        counts: by label and prediction; pairs that are left out did not occur.
        names: of the classes.
        width: in pixels, at most.
        title, desc: for those who cannot see it.
    """
    n = len(names)
    room = min(max(map(width_of, names), default=0), width * 0.28)
    short = [shorten(name, room) for name in names]
    left = room + 26
    cell = max(min(36.0, (width - left - 2) / n), 6.0)
    # Column names stand upright where they don't fit over their cells.
    turned = any(width_of(name) > cell - 2 for name in short)
    top = (max(map(width_of, short), default=0) if turned else 12) + 30
    totals = [sum(counts.get((i, j), 0) for j in range(n)) for i in range(n)]
    parts: list[Markup] = [
        text(left, 12, "predicted", class_="axis"),
        tag("text", "label", class_="axis", text_anchor="end",
            transform=f"translate(12 {top:.1f}) rotate(-90)"),
    ]  # fmt: skip
    for i, name in enumerate(short):
        middle = i * cell + cell / 2
        parts.append(text(left - 6, top + middle + 4, name, anchor="end", class_="tick"))
        x, y = left + middle, top - 6
        if turned:
            turn = f"translate({x + 4:.1f} {y:.1f}) rotate(-90)"
            parts.append(tag("text", name, class_="tick", transform=turn))
        else:
            parts.append(text(x, y, name, anchor="middle", class_="tick"))
    for i in range(n):
        for j in range(n):
            count = counts.get((i, j), 0)
            share = count / totals[i] if totals[i] else 0.0
            where = f"{names[i]} taken for {names[j]}: {count} of {totals[i]}"
            parts += _cell(left + j * cell, top + i * cell, cell, count, share, i == j, where)
    size = top + n * cell + 2
    return drawing(left + n * cell + 2, size, parts, title=title, desc=desc, kind="matrix")


def _cell(
    x: float, y: float, cell: float, count: int, share: float, right: bool, where: str
) -> list[Markup]:
    kind = "right" if right else "wrong"
    parts = [tag("rect", x=x, y=y, width=cell - 1, height=cell - 1, class_="cell")]
    if not count:
        return parts
    # A single mistake in a thousand has to be seen, too.
    depth = f"{0.14 + 0.86 * share:.2f}"
    parts.append(
        tag("rect", tag("title", where), x=x, y=y, width=cell - 1, height=cell - 1,
            class_=f"cell {kind}", fill_opacity=depth)
    )  # fmt: skip
    label = str(count)
    if width_of(label, 11) <= cell - 2:
        style = "count deep" if share > 0.5 else "count"
        parts.append(text(x + (cell - 1) / 2, y + cell / 2 + 3.5, label, anchor="middle",
                          class_=style))  # fmt: skip
    return parts
