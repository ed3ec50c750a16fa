"""Journal: windows and events on their way to the spool, and in memory while the disk refuses."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from edgekit.errors import StorageError
from edgekit.runtime._messages import event, window
from edgekit.runtime.aggregate import Aggregate, dropped_metric
from edgekit.runtime.attributes import Value
from edgekit.runtime.clocks import Clock
from edgekit.runtime.spool import Spool

__all__ = ["Journal"]

_MOST_WAITING: Final = 64

Drops = dict[tuple[str, str], int]


class Journal:
    """Writes to a spool what has to be written, once it can be. Its owner holds a lock.

    What the disk refuses keeps its id for the next try, as a part of it may be there already. At
    most one window and 64 events wait; of more events the oldest is counted as dropped.

    Args:
        spool: where to.
        resource: what all records say of the device.
        rotate_s: as `Spool.instance`.
        clock: the time.
    """

    def __init__(
        self, spool: Spool, resource: Mapping[str, Value], rotate_s: float, clock: Clock
    ) -> None:
        self._spool = spool
        self._resource = resource
        self._rotate_s = rotate_s
        self._clock = clock
        self._since_ns = self._now_ns()
        self._held: tuple[bytes, bytes, Drops] | None = None
        self._waiting: deque[tuple[bytes, bytes]] = deque()

    def keep(self, name: str, about: Mapping[str, object], *, failed: bool) -> bool:
        """Writes an event.

        Returns:
            whether it is on the disk; if not, it waits.
        """
        id = os.urandom(16)
        # In this order: a new name counts anew.
        named, now = self._named(), self._now_ns()
        sequence = self._spool.next_sequence("event") + len(self._waiting)
        self._waiting.append((id, event(named, name, about, id, sequence, now, failed=failed)))
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft()
            self._spool.refuse("event", "disk")
        return self._flush_events()

    def flush(self, swap: Callable[[], Aggregate | None]) -> bool:
        """Writes what waits, then the window that is over.

        Args:
            swap: gives that window, if anything was counted. It is asked only once there is room
                for it, so that otherwise one window goes on.

        Returns:
            whether all of it is on the disk.
        """
        if not (self._flush_events() and self._flush_held()):
            return False
        drops = self._spool.untold()
        done = swap()
        if done is None and not drops:
            return True
        now = self._now_ns()
        # A clock that was set back must not give a window that ends before it starts.
        start, self._since_ns = min(self._since_ns, now), now
        metrics = (done or Aggregate()).to_metrics(start, now) + dropped_metric(drops, start, now)
        id, named = os.urandom(16), self._named()
        sequence = self._spool.next_sequence("metric")
        self._held = id, window(named, metrics, id, sequence), drops
        return self._flush_held()

    def _flush_events(self) -> bool:
        while self._waiting:
            id, data = self._waiting[0]
            try:
                self._spool.append("event", data, id=id)
            except StorageError:
                return False
            self._waiting.popleft()
        return True

    def _flush_held(self) -> bool:
        if self._held is None:
            return True
        id, data, drops = self._held
        try:
            self._spool.append("metric", data, id=id)
        except StorageError:
            return False
        self._spool.tell(drops)
        self._held = None
        return True

    def _named(self) -> dict[str, Value]:
        return {**self._resource, "service.instance.id": self._spool.instance(self._rotate_s)}

    def _now_ns(self) -> int:
        # 1970 is as early as OTLP's times go. Whole seconds: a window begins when the one before it
        # ended, and to the nanosecond that would tell which names are one device's.
        return max(int(self._clock.wall()), 0) * 10**9
