"""Station: what a recorder has once the user has agreed, from the spool to the server's door."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.runtime._journal import Journal
from edgekit.runtime._spool_files import SPOOL, private_folder
from edgekit.runtime._upkeep import Upkeep
from edgekit.runtime.attributes import Value
from edgekit.runtime.clocks import Clock
from edgekit.runtime.schedule import Conditions, Pace, Schedule
from edgekit.runtime.spool import Spool
from edgekit.runtime.uploader import Transport, Uploader

__all__ = ["Setup", "Station", "forget"]


@dataclass(frozen=True)
class Setup:
    """How it is to be run; the fields are the recorder's arguments."""

    transport: Callable[[], Transport] | None
    interval_s: float
    pace: Pace | None
    conditions: Callable[[], Conditions] | None
    quota_bytes: int
    rotate_s: float
    hold_on_auth: bool
    clock: Clock
    background: bool


class Station:
    """A spool, what writes to it, what sends from it, and the threads of both.

    Args:
        folder: the recorder's, made where it is missing.
        setup: how it is run.
        resource: what all records say of the device.
        flush: brings what was counted to the journal.

    Raises:
        Locked, TrustError, StorageError: as `Spool`.
    """

    def __init__(
        self,
        folder: Path,
        setup: Setup,
        resource: Mapping[str, Value],
        flush: Callable[[], bool],
    ) -> None:
        os.close(private_folder(folder))
        clock = setup.clock
        self.spool = Spool(folder / SPOOL, quota_bytes=setup.quota_bytes, clock=clock)
        self.journal = Journal(self.spool, resource, setup.rotate_s, clock)
        self.uploader: Uploader | None = None
        transport = None if setup.transport is None else setup.transport()
        if transport is not None:
            self.uploader = Uploader(
                self.spool,
                transport,
                schedule=Schedule(setup.pace),
                clock=clock,
                conditions=setup.conditions,
                hold_on_auth=setup.hold_on_auth,
            )
        self._background = setup.background
        self._upkeep = Upkeep(flush, setup.interval_s, self.uploader, transport, clock)

    def start(self) -> None:
        """Starts the threads, where there are to be any."""
        if self._background:
            self._upkeep.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the threads and the request that is under way, and refuses all later ones."""
        self._upkeep.stop(timeout_s)

    def erase(self) -> None:
        """Removes all that was kept.

        Raises:
            StorageError: something could not be removed.
        """
        try:
            self.spool.erase()
        finally:
            self.spool.close(keep=False)


def forget(folder: Path, setup: Setup) -> None:
    """Erases what is in the folder of a recorder that has no station: it was closed, or its
    withdrawal was cut short.

    Raises:
        Locked, TrustError, StorageError: as `Spool`.
    """
    left = folder / SPOOL
    if left.is_symlink() or left.exists():
        spool = Spool(left, quota_bytes=setup.quota_bytes, clock=setup.clock)
        try:
            spool.erase()
        finally:
            spool.close(keep=False)
