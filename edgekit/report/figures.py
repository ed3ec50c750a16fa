"""Numbers as a reader wants them: bytes, milliseconds, percent, counts, digests."""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "NONE",
    "TIMES",
    "counted",
    "digest",
    "duration",
    "ms",
    "percent",
    "plain",
    "short",
    "size",
]

NONE = "\N{EN DASH}"
"""Stands where there is no figure."""

TIMES = "\N{MULTIPLICATION SIGN}"


def size(value: float | None) -> str:
    """Bytes in KiB or MiB, three figures."""
    if value is None:
        return NONE
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= scale:
            return f"{_figures(value / scale)} {unit}"
    return f"{value:.0f} B"


def ms(value: float | None) -> str:
    """Milliseconds, three figures."""
    return NONE if value is None else f"{_figures(value)} ms"


def percent(value: float | None, digits: int = 2) -> str:
    """A number that is in percent already."""
    return NONE if value is None else f"{value:.{digits}f} %"


def duration(value: float | None) -> str:
    """Seconds, as minutes and hours where there are many."""
    if value is None:
        return NONE
    if value < 60:
        return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def short(value: float | None, figures: int = 3) -> str:
    """Any number, in a few figures."""
    if value is None:
        return NONE
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.{figures}g}"


def counted(n: int, what: str, many: str | None = None) -> str:
    """``1 gate``, ``2 gates``."""
    return f"{short(n)} {what if n == 1 else many or what + 's'}"


def digest(value: str | None, length: int = 12) -> str:
    """The first characters of a hash."""
    return NONE if not value else value[:length]


def plain(value: Any) -> str:
    """A setting or a fact as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items()) or "none"
    return str(value)


def _figures(value: float) -> str:
    """Three figures, not more than three decimals, without an exponent."""
    if value == 0:
        return "0"
    places = max(0, min(3, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{places}f}"
