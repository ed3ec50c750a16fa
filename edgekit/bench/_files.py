"""Reads the small files of /proc and /sys; whatever can't be read is None, never an error.

Every function takes the root directory, so that the tests read a board's files on any machine.
"""

from __future__ import annotations

import math
from pathlib import Path

__all__ = ["cpu_list", "entries", "fields", "number", "text"]

_MOST = 1 << 20


def text(root: Path, path: str) -> str | None:
    """What a file holds, stripped; None where it can't be read or is empty."""
    try:
        with (root / path).open("rb") as file:
            raw = file.read(_MOST)
    except (OSError, ValueError):
        return None
    return raw.decode("utf-8", "replace").strip("\0\n ") or None


def number(root: Path, path: str) -> float | None:
    """The number that a file holds; None where it holds none, or one that is not finite."""
    try:
        value = float(text(root, path) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def entries(root: Path, pattern: str) -> list[str]:
    """Paths below the root that fit a pattern, relative to it, as people would count them."""
    try:
        found = [path.relative_to(root).as_posix() for path in root.glob(pattern)]
    except (OSError, ValueError):
        return []
    return sorted(found, key=_counted)


def _counted(path: str) -> tuple[str, int, str]:
    """``policy10`` after ``policy4``."""
    stem = path.rstrip("0123456789")
    digits = path[len(stem) :]
    return stem, int(digits) if digits else -1, path


def fields(root: Path, path: str) -> dict[str, str]:
    """Lines ``key: value`` of a file; of a key that comes again the first."""
    found: dict[str, str] = {}
    for line in (text(root, path) or "").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            found.setdefault(key.strip(), value.strip())
    return found


def cpu_list(stated: str | None) -> list[int]:
    """Numbers in a kernel's list of CPUs, such as ``0-3,8`` or ``0 1 2 3``."""
    numbers: set[int] = set()
    for part in (stated or "").replace(",", " ").split():
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            numbers |= set(range(int(first), min(int(last or first), int(first) + 4096) + 1))
    return sorted(numbers)
