"""Times calls, and looks at the machine between them."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.bench import _state

__all__ = ["ROOM", "Clocks", "Series", "repeat", "series"]

ROOM = 1 << 18
"""Samples that are kept of a series: 2 MiB. Of more calls every second one is, or every third..."""

_SELDOM = 2.0  # seconds between two looks from which on a look may take its time


def repeat(call: Callable[[], object], runs: int, seconds: float, *, keep: int = 1) -> array[int]:
    """Times calls until ``runs`` are made or ``seconds`` have passed, at least one; in ns.

    Of each ``keep`` of them the last is kept; one, at least.
    """
    samples: array[int] = array("q")
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    made = 0
    while made < runs:
        start = clock()
        call()
        stop = clock()
        made += 1
        if made % keep == 0:
            samples.append(stop - start)
        if stop >= end:
            break
    if not samples:
        samples.append(stop - start)
    return samples


class Series:
    """Timed calls, with looks at the machine between them.

    Attributes:
        samples: ns of each timed call, in order.
        looks: `edgekit.bench._state.look` with ``at_s`` (seconds since the first call) and ``n``
            (calls timed before it).
        seconds: wall time from the first call to the end of the last.
        every: how many calls each sample stands for.
        cpu_seconds: CPU time of all threads of this process meanwhile, without the looks.
        wall_seconds: wall time of the same stretches.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.samples: array[int] = array("q")
        self.looks: list[dict[str, Any]] = []
        self.seconds = self.cpu_seconds = self.wall_seconds = 0.0


def series(
    call: Callable[[], object],
    *,
    runs: int,
    seconds: float,
    every: float,
    keep: int = 1,
    root: Path = Path("/"),
) -> Series:
    """Times calls, and looks at the machine every so often, between two calls.

    After a look one call is made untimed: it reads files, which takes room in the caches.

    Args:
        call: one inference.
        runs: samples, at most.
        seconds: of timed calls, at most.
        every: seconds from one look to the next.
        keep: of so many calls one is kept.
        root: where the looks read.
    """
    found = Series(keep)
    begun = time.perf_counter()
    while True:
        cpu, wall = time.process_time(), time.perf_counter()
        left = seconds - found.wall_seconds
        wanted = keep * (runs - len(found.samples))
        part = repeat(call, wanted, min(every, left), keep=keep)
        now = time.perf_counter()
        found.samples.extend(part)
        found.cpu_seconds += time.process_time() - cpu
        found.wall_seconds += now - wall
        found.seconds = now - begun
        if len(found.samples) >= runs or found.wall_seconds >= seconds:
            return found
        look = {"at_s": round(found.seconds, 3), "n": len(found.samples)}
        found.looks.append(look | _state.look(root, full=every >= _SELDOM))
        call()


class Clocks:
    """Holds the clock that times the calls against the one that goes on while a machine sleeps."""

    def __init__(self) -> None:
        self._start = _both()

    def stop(self) -> dict[str, Any]:
        """Seconds by both since it was made, None where there is no such clock; and the steps.

        Returns:
            ``timed_s``, ``boottime_s``, ``resolution_ns`` (of the clock that times the calls),
            ``clock`` (its name).
        """
        timed, boot = _both()
        since = None if boot is None or self._start[1] is None else boot - self._start[1]
        info = time.get_clock_info("perf_counter")
        return {
            "timed_s": timed - self._start[0],
            "boottime_s": since,
            "resolution_ns": info.resolution * 1e9,
            "clock": info.implementation,
        }


def _both() -> tuple[float, float | None]:
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.perf_counter(), None if boot is None else time.clock_gettime(boot)
