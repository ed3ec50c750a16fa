"""The receiver in one process: the server of `edgekit serve`, with `Ingest` behind it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from edgekit.errors import EdgekitError
from edgekit.serve.asgi import Application
from edgekit.serve.listening import Draining, ServerSettings, listen
from edgekit.telemetry.ingest import Ingest
from edgekit.telemetry.rules import read_rules

__all__ = ["Receiver", "receive"]

log = logging.getLogger("edgekit.telemetry")

_TIDY_S: Final = 3600.0


class Receiver(Draining):
    """Receives until SIGTERM or SIGINT, then answers what has come. SIGHUP reads the keys and the
    rules again.

    Args:
        ingest: answers.
        settings: where it listens; ``max_body`` is of a body as it comes.
        max_inflated: bytes of a body, decompressed.
        keep_days: how long counts are kept.
        rules: the file of rules of the ingest's watch, or None.
        started: is called when it listens, with its port.
    """

    def __init__(
        self,
        ingest: Ingest,
        settings: ServerSettings,
        *,
        max_inflated: int = 8 * 2**20,
        keep_days: int = 400,
        rules: Path | None = None,
        started: Callable[[int], None] = lambda _port: None,
    ) -> None:
        self._ingest = ingest
        self._keep_days, self._rules = keep_days, rules
        self._on_started = started
        self._tasks: list[asyncio.Task[None]] = []
        application = Application(ingest, None, settings.max_body, max_inflated)
        super().__init__(ingest, application, settings)

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listens, and begins the store's upkeep."""
        await super().startup(sockets)
        if not self.started:
            return
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._read_again)
        self._tasks.append(loop.create_task(self._tidy()))
        if self._ingest.watch is not None:
            self._tasks.append(loop.create_task(self._ingest.watch.run()))
        self._on_started(self.port)

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Writes and answers what has come, and closes."""
        for task in self._tasks:
            task.cancel()
        await super().shutdown(sockets)
        await self._ingest.close()

    def _read_again(self) -> None:
        self.read_keys_again()
        if self._rules is not None and self._ingest.watch is not None:
            try:
                self._ingest.watch.rules = read_rules(self._rules)
            except EdgekitError as error:
                log.error("the rules stay as they were", extra={"reason": str(error)})

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_S)
            try:
                await self._ingest.tidy(self._keep_days)
            except EdgekitError as error:
                log.error("the store was not tidied", extra={"reason": str(error)})


def receive(ingest: Ingest, settings: ServerSettings, **more: Any) -> Receiver:
    """Runs a receiver until it ends, and gives it back for how it ended.

    Raises:
        StorageError: the port is taken, or may not be listened on.
    """
    receiver = Receiver(ingest, settings, **more)
    listen(receiver, settings)
    return receiver
