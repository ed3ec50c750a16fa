"""Time as the recorder sees it, so that tests and simulations can give it another."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """Three clocks and a way to wait."""

    def monotonic(self) -> float:
        """Seconds since the machine started; never goes back, goes on while it sleeps."""

    def wall(self) -> float:
        """Seconds since 1970, or whatever the user or a dead battery set it to."""

    def boot(self) -> str:
        """Another text after each start of the machine."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Waits until the event is set or the time is over; whether it is set."""


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        self._clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        try:
            text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            # Where nothing tells one start from another, the hour of the start has to do.
            text = str(int((time.time() - time.clock_gettime(self._clock)) // 3600))
        self._boot = text

    def monotonic(self) -> float:
        return time.clock_gettime(self._clock)

    def wall(self) -> float:
        return time.time()

    def boot(self) -> str:
        return self._boot

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds)
