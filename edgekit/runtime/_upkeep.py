"""The recorder's two threads: one brings counts to the disk, one sends what is there."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from edgekit.errors import EdgekitError
from edgekit.runtime.clocks import Clock
from edgekit.runtime.uploader import Transport, Uploader

__all__ = ["Upkeep"]

_AGAIN_S = 60.0


class Upkeep:
    """Threads that end with the process, or with `stop`.

    Args:
        flush: brings counts to the disk.
        interval_s: how often, in seconds.
        uploader, transport: what sends, and what ends a request of it; None: nothing does.
        clock: the time.
    """

    def __init__(
        self,
        flush: Callable[[], bool],
        interval_s: float,
        uploader: Uploader | None,
        transport: Transport | None,
        clock: Clock,
    ) -> None:
        self._flush = flush
        self._interval_s = interval_s
        self._uploader = uploader
        self._transport = transport
        self._clock = clock
        self._stop = threading.Event()
        work = [self._keep] if uploader is None else [self._keep, self._send]
        self._threads = [
            threading.Thread(target=each, name=f"edgekit-telemetry{each.__name__}", daemon=True)
            for each in work
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the threads, and the request that is under way; waits so many seconds at most."""
        self._stop.set()
        if self._transport is not None:
            self._transport.abort()
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))

    def _keep(self) -> None:
        while not self._clock.wait(self._stop, self._interval_s):
            with contextlib.suppress(EdgekitError):
                self._flush()

    def _send(self) -> None:
        assert self._uploader is not None
        wait = self._uploader.schedule.first()
        while not self._clock.wait(self._stop, wait):
            try:
                wait = self._uploader.step()
            except Exception:
                # Also of the app's own transport or hook: what it raises must not end all sending.
                wait = _AGAIN_S
