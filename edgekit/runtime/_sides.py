"""The two that a router may ask: the session on the device, and the cloud."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from edgekit.runtime.cloud import Cloud, CloudAnswer
from edgekit.runtime.guards import Breaker, Latencies
from edgekit.runtime.lanes import Job, Lane
from edgekit.runtime.session import Session
from edgekit.signature import Signature

__all__ = ["CloudSide", "DeviceSide"]

Arrays = Mapping[str, np.ndarray[Any, Any]]
Inbox = queue.SimpleQueue[Job]

_STUCK_S: Final = 1.0
_STUCK_TIMES: Final = 4.0
_MOST_WAITING: Final = 8


class DeviceSide:
    """A session in a thread of its own, as sessions are no business of several threads.

    Args:
        open: gives the session; called in that thread, again after it failed. None: there is none.
        signature: what the outputs are held to.
    """

    name = "device"

    def __init__(self, open: Callable[[], Session] | None, signature: Signature) -> None:
        self._open = open
        self._signature = signature
        self._session: Session | None = None
        # A session that fails does so at once, and mostly for good: few tries tell.
        self.breaker = Breaker(window=10, least=3, open_s=30.0, longest_s=300.0)
        self.latencies = Latencies()
        self.waits = Latencies()  # from being asked to the answer
        self._lane = Lane("edgekit-device", 1, _MOST_WAITING, self._leave)
        if open is not None:
            self._lane.submit(Job("device", self._opened, queue.SimpleQueue(), math.inf))

    def unfit(self, left_s: float) -> str | None:
        """Why it is no use to ask it now, out of `REASONS`; None where it is."""
        if self._open is None:
            return "device-missing"
        if self.breaker.wait_s > 0:
            return "device-failing"
        return "device-slow" if self._expected() > left_s or self._lane.full() else None

    def _expected(self) -> float:
        """Seconds until an answer, were it asked now."""
        usual, waiting, running = self.latencies.median, *self._lane.ahead()
        if running > max(_STUCK_S, _STUCK_TIMES * (self.latencies.p95 or 0.0)):
            return math.inf  # it hangs
        if usual is None:
            return 0.0
        return usual * (1 + waiting) + (max(0.0, usual - running) if running else 0.0)

    def ask(self, feeds: Arrays, inbox: Inbox, deadline: float) -> bool:
        """Hands it a request; False where it cannot take one."""
        if self._open is None:
            return False
        ticket = self.breaker.admit()
        if ticket is None:
            return False
        asked = time.monotonic()

        def work() -> dict[str, np.ndarray[Any, Any]]:
            ok = False
            try:
                found = self._run(feeds)
                ok = True
                self.waits.add(time.monotonic() - asked)
            finally:
                self.breaker.settle(ticket, ok)
            return found

        def dropped() -> None:
            self.breaker.settle(ticket, None)

        if not self._lane.submit(Job(self.name, work, inbox, deadline, dropped)):
            dropped()
            return False
        return True

    def _opened(self) -> Session:
        if self._session is None:
            assert self._open is not None
            self._session = self._open()
        return self._session

    def _run(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        session = self._opened()
        started = time.monotonic()
        outputs = session.run(feeds)
        self.latencies.add(time.monotonic() - started)
        for spec in self._signature.outputs:
            spec.check(outputs[spec.name], what=f"{session.target} session")
        return outputs

    def _leave(self) -> None:
        # In the session's own thread: nobody else may touch it.
        if self._session is not None:
            self._session.close()
            self._session = None

    def close(self, seconds: float) -> None:
        """Closes the session, unless it hangs longer than so."""
        self._lane.close()
        self._lane.join(seconds)


class CloudSide:
    """A `Cloud` behind a few threads.

    Args:
        cloud: the client; None: there is none.
        signature: its outputs are what is asked for.
        threads: requests that may be under way at a time.
        online: says whether there is a network; None where that is not known.
    """

    name = "cloud"

    def __init__(
        self,
        cloud: Cloud | None,
        signature: Signature,
        threads: int,
        online: Callable[[], bool | None],
    ) -> None:
        self._cloud = cloud
        self._signature = signature
        self._online = online
        self._lane = Lane("edgekit-cloud", threads, 4 * threads)
        self.latencies = Latencies() if cloud is None else cloud.latencies

    @property
    def breaker_state(self) -> str | None:
        """Of its circuit breaker; None without a cloud."""
        return None if self._cloud is None else self._cloud.breaker.state

    def unfit(self, left_s: float) -> str | None:
        """Why it is no use to ask it now; None where it is."""
        if self._cloud is None:
            return "no-cloud"
        if self._online() is False:
            return "offline"
        reason = self._cloud.unavailable()
        if reason is not None:
            return reason
        if self._lane.full():
            return "busy-here"
        usual = self.latencies.median
        return "slow" if usual is not None and usual > left_s else None

    def ask(self, feeds: Arrays | Callable[[], Arrays], inbox: Inbox, deadline: float) -> bool:
        """Hands it a request; False where it cannot take one."""
        cloud = self._cloud
        if cloud is None:
            return False

        def work() -> CloudAnswer:
            given = feeds() if callable(feeds) else feeds
            left = max(1e-3, deadline - time.monotonic())
            return cloud.infer(given, self._signature.outputs, timeout_ms=1000 * left)

        return self._lane.submit(Job(self.name, work, inbox, deadline))

    def close(self, seconds: float) -> None:
        """Lets its threads go; the client is its owner's to close."""
        self._lane.close()
        self._lane.join(seconds)
