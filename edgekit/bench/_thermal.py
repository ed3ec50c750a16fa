"""The thermal gate: a chip that is hot, or slowed down by heat, cools before it is measured.

The wait is bounded. Where it ends with the chip still hot, the measurement is made and says so; a
machine without sensors is not waited for at all, and says that nobody knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.bench import _files, _state

__all__ = ["cool_down", "limit_c", "reading"]

_MARGIN = 10.0  # degrees below the point at which the kernel starts to slow the chip down


def limit_c(root: Path = Path("/")) -> float | None:
    """A temperature to start below: 10 degrees under the lowest point where the kernel throttles.

    Those are the chip's ``passive`` trip points; None where it states none.
    """
    points = []
    for kind in _files.entries(root, "sys/class/thermal/thermal_zone[0-9]*/trip_point_*_type"):
        if _files.text(root, kind) == "passive":
            stated = _files.number(root, kind.removesuffix("_type") + "_temp")
            if stated is not None and 30_000 <= stated <= 130_000:
                points.append(stated / 1000)
    return min(points) - _MARGIN if points else None


def reading(root: Path = Path("/")) -> dict[str, Any]:
    """``temperature_c`` and ``throttling`` (a list of reasons), each None where nothing tells."""
    found = _state.look(root)
    return {key: found[key] for key in ("temperature_c", "throttling")}


def cool_down(
    root: Path = Path("/"),
    *,
    limit: float | None,
    budget: float,
    poll: float = 2.0,
    read: Callable[[Path], dict[str, Any]] = reading,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Waits until the chip is cool enough, at most ``budget`` seconds.

    Args:
        root: the directory that holds ``proc`` and ``sys``.
        limit: degrees Celsius to start at or below; None: only throttling is waited out.
        budget: seconds.
        poll: seconds between two looks.
        read, sleep, clock: the sensors and the time; the tests give traces.

    Returns:
        ``state``: ``ok`` (cool), ``cooled`` (after a wait), ``hot`` (still, when the budget was
        spent) or ``unknown`` (nothing tells; not waited for); ``waited_s``; ``limit_c``;
        ``temperature_c`` and ``throttling`` as last read; ``trace``, [seconds, degrees] of each
        look.
    """
    start, trace = clock(), []
    while True:
        now = read(root)
        celsius, reasons = now["temperature_c"], now["throttling"]
        waited = clock() - start
        trace.append([round(waited, 3), celsius])
        hot = bool(reasons) or (limit is not None and celsius is not None and celsius > limit)
        known = reasons is not None or celsius is not None
        left = budget - waited
        if not hot or left <= 0:
            break
        sleep(min(poll, left))
    state = "unknown" if not known else "hot" if hot else "ok" if len(trace) == 1 else "cooled"
    return {
        "state": state,
        "waited_s": round(waited, 3),
        "limit_c": limit,
        "temperature_c": celsius,
        "throttling": reasons,
        "trace": trace,
    }
