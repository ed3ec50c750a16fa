"""Drawing: elements that are escaped, scales, ticks, and labels that keep out of each other's way.

Charts are SVG written by hand, so that a page needs no script, no font and no picture file, follows
the reader's light or dark scheme through CSS classes, and has text that can be read out and copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = [
    "Box",
    "Placer",
    "Scale",
    "Shape",
    "columns",
    "drawing",
    "joined",
    "marker",
    "number",
    "path",
    "shorten",
    "tag",
    "text",
    "width_of",
]

SIZE = 12.0
"""Pixels of the charts' text."""

_PAIRED = frozenset(("div", "text", "title", "desc", "svg", "g"))
_NARROW = frozenset("iljtfrI.,:;'|!()[]{} -")
_WIDE = frozenset("mwMWQ@%")


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element; children and attribute values are escaped, numbers kept short.

    ``class_`` is written ``class``, other underscores become hyphens; None leaves one out.
    """
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    inner = "".join(str(escape(child)) for child in children)
    # The names are the code's own; all else is escaped.
    start = f"<{name}{''.join(parts)}"
    return Markup(f"{start}>{inner}</{name}>" if inner or name in _PAIRED else f"{start}/>")


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """A coordinate: two decimals at most, no trailing zeros, no minus zero."""
    found = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if found in ("-0", "") else found


def joined(parts: Iterable[object]) -> Markup:
    """Elements one after the other."""
    return Markup("").join(parts)  # type: ignore[arg-type]


def text(x: float, y: float, value: object, *, anchor: str = "start", class_: str = "") -> Markup:
    """A line of text whose baseline begins, ends or has its middle at ``x``."""
    return tag(
        "text", value, x=float(x), y=float(y), text_anchor=anchor, class_=class_ or None
    )  # fmt: skip


def path(points: Sequence[tuple[float, float]]) -> str:
    """Straight lines through points, as ``d`` of a path."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def drawing(
    width: float, height: float, parts: Iterable[object], *, title: str, desc: str, kind: str = ""
) -> Markup:
    """The whole picture, with a title and a description for those who cannot see it."""
    return tag(
        "svg",
        tag("title", title),
        tag("desc", desc),
        *parts,
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=float(width),
        height=float(height),
        role="img",
        aria_label=title,
        class_=f"chart {kind}".strip(),
    )


def width_of(value: str, size: float = SIZE) -> float:
    """Pixels that a text takes in a sans-serif font, rather too many than too few."""
    units = sum(0.34 if c in _NARROW else 0.9 if c in _WIDE else 0.62 for c in value)
    return units * size


def shorten(value: str, room: float, size: float = SIZE) -> str:
    """A text that fits into ``room`` pixels: its middle is left out where it has to be."""
    if width_of(value, size) <= room:
        return value
    for keep in range(len(value) - 1, 1, -1):
        head = (keep + 1) // 2
        short = f"{value[:head]}…{value[len(value) - (keep - head) :]}"
        if width_of(short, size) <= room:
            return short
    return "…"


# -- scales ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Values to pixels.

    Attributes:
        low, high: the values at both ends.
        start, end: pixels of these.
        log: whether equal ratios, and not equal differences, are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(
        cls,
        values: Sequence[float],
        start: float,
        end: float,
        *,
        zero: bool = False,
        least: float = 0.0,
        bounds: tuple[float, float] = (-math.inf, math.inf),
        log: bool | None = None,
    ) -> Scale:
        """A scale over values, with some room at the ends.

        Args:
            values: at least one, finite.
            start, end: pixels.
            zero: begin at 0; where the largest is over 12 times the smallest (and not beyond
                all sense), be logarithmic.
            least: the least difference between the ends.
            bounds: the ends don't go beyond these.
            log: whether to be logarithmic, where that is not to be found out.
        """
        low, high = min(values), max(values)
        # Nearer values than this can't be told apart once they are added to something.
        least = max(least, 1e-9 * max(abs(low), abs(high)))
        if log is None:
            log = zero and low > high * 1e-9 and high > 12 * low
        if log:
            return cls(low / 1.25, high * 1.25, start, end, True)
        if zero:
            return cls(0.0, (high or 1.0) * 1.08, start, end)
        lack = max(least - (high - low), 0.0) / 2
        pad = 0.08 * max(high - low, least) or abs(high) * 0.1 or 1.0
        low, high = low - lack - pad, high + lack + pad
        return cls(max(low, bounds[0]), min(high, bounds[1]), start, end)

    def __call__(self, value: float) -> float:
        """Where ``value`` lies, in pixels."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the scale, about ``count`` of them."""
        if self.log:
            return self._log_ticks(count)
        rough = (self.high - self.low) / max(count, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _log_ticks(self, count: int) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = [f * 10.0**d for d in decades for f in factors]
            found = [v for v in found if self.low <= v <= self.high]
            if len(found) <= count + 2:
                break
        return found[:: math.ceil(len(found) / (count + 2))] if found else found


# -- marks ----------------------------------------------------------------------------------------


class Shape:
    """Corner points of the marks, so that no two targets differ by colour alone."""

    KINDS = ("circle", "square", "triangle", "diamond", "pentagon", "cross", "hexagon")

    @staticmethod
    def corners(kind: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
        """The corners of a polygon about (x, y)."""
        if kind == "cross":
            a, b = r * 1.05, r * 0.38
            turns: tuple[tuple[float, float], ...]
            turns = ((-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a))
            turns += ((-b, b), (-a, b), (-a, -b), (-b, -b))
            return [(x + dx, y + dy) for dx, dy in turns]
        count, turn = {
            "square": (4, 0.125), "triangle": (3, 0), "diamond": (4, 0), "pentagon": (5, 0),
            "hexagon": (6, 0.0833),
        }[kind]  # fmt: skip
        size = r * {3: 1.25, 4: 1.15}.get(count, 1.08)
        angles = [math.tau * (i / count + turn) - math.pi / 2 for i in range(count)]
        return [(x + size * math.cos(a), y + size * math.sin(a)) for a in angles]


def marker(kind: str, x: float, y: float, r: float, *children: object, class_: str) -> Markup:
    """One mark about (x, y)."""
    if kind == "circle":
        return tag("circle", *children, cx=float(x), cy=float(y), r=float(r), class_=class_)
    d = path(Shape.corners(kind, x, y, r)) + "Z"
    return tag("path", *children, d=d, class_=class_)


# -- labels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """Square pixels that both cover."""
        wide = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        high = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(wide, 0.0) * max(high, 0.0)


_FAR = 30.0
"""What it costs a label to be so far from its mark that a line has to lead to it."""


_TOUCH = 1e-3
"""Square pixels that two boxes may share by rounding."""


class Placer:
    """Puts labels beside marks so that they cover neither each other nor a mark."""

    def __init__(self, frame: Box) -> None:
        self._frame = frame
        self._taken: list[Box] = []

    def block(self, box: Box) -> None:
        """Keeps labels out of a place."""
        self._taken.append(box)

    def place(self, x: float, y: float, label: str, *, gap: float) -> tuple[Box, bool]:
        """The best place for a label of the mark at (x, y).

        Args:
            x, y: the mark's middle.
            label: the text.
            gap: from the middle to the nearest edge of the label.

        Returns:
            Where it goes, and whether it is so far off that a line has to lead to it.
        """
        # Names on the front are bold.
        width, height = width_of(label) * 1.12, SIZE * 1.25

        def cost(box: Box) -> float:
            inside = box.overlap(self._frame)
            covered = sum(box.overlap(other) for other in self._taken)
            # A place that covers nothing goes before any that does, however near.
            hidden = 1000.0 if covered > _TOUCH else 0.0
            return hidden + covered * 10 + (box.width * box.height - inside) * 20

        best = min(
            self._candidates(x, y, width, height, gap),
            key=lambda found: (cost(found[0]) + found[1], found[1]),
        )
        self._taken.append(best[0])
        return best[0], best[1] >= _FAR

    @staticmethod
    def _candidates(
        x: float, y: float, width: float, height: float, gap: float
    ) -> list[tuple[Box, float]]:
        """Places around the mark with what their distance costs."""
        found = []
        for ring, away in enumerate((gap, gap + 14, gap + 28, gap + 44, gap + 62, gap + 82)):
            penalty = 0.0 if ring == 0 else _FAR + ring * 8
            slant = away * 0.72
            corners = [
                (x + away, y - height / 2),
                (x - away - width, y - height / 2),
                (x - width / 2, y - away - height),
                (x - width / 2, y + away),
                (x + slant, y - slant - height),
                (x + slant, y + slant),
                (x - slant - width, y - slant - height),
                (x - slant - width, y + slant),
            ]
            found += [(Box(a, b, width, height), penalty + i) for i, (a, b) in enumerate(corners)]
        return found


WIDE, HALF, NARROW = 1190.0, 575.0, 340.0
"""Widths of drawings: across the page, half of it, and on a phone."""


def columns(draw: Callable[[float], Markup], *, half: bool = False) -> Markup:
    """A drawing in two widths, of which the page's style shows the one that fits the screen."""
    return joined(
        [
            tag("div", draw(HALF if half else WIDE), class_="wide"),
            tag("div", draw(NARROW), class_="narrow"),
        ]
    )
