"""The server in one process: uvicorn, the handler, and how both begin and end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from edgekit.errors import EdgekitError
from edgekit.serve.asgi import Application
from edgekit.serve.handler import Handler
from edgekit.serve.hosted import Hosted
from edgekit.serve.listening import ServerSettings, configuration, listen
from edgekit.serve.openapi import description
from edgekit.serve.security import read_keys

__all__ = ["Server", "ServerSettings", "serve"]

log = logging.getLogger("edgekit.serve")


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT, then lets finish what is going on.

    From the signal on it is not ready and refuses inferences with 503, but listens and answers:
    for ``linger_s`` at least, so that a load balancer sees it, and until all is answered. A second
    signal, or the end of ``grace_s``, refuses what is left with 503 too. SIGHUP reads the bundles
    and the keys again.

    Args:
        handler: answers.
        settings: see there.
        started: is called when it listens, with its port.
        loaded: is called when every model has been tried, with the first error if there was one.
    """

    def __init__(
        self,
        handler: Handler,
        settings: ServerSettings,
        started: Callable[[int], None] = lambda _port: None,
        loaded: Callable[[EdgekitError | None], None] = lambda _error: None,
    ) -> None:
        self._handler = handler
        self._settings = settings
        self._on_started, self._on_loaded = started, loaded
        self._since: float | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self.forced = False
        self.error: EdgekitError | None = None
        application = Application(handler, description(handler), settings.max_body)
        super().__init__(configuration(application, settings))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets finish, the second ends."""
        if self._since is None:
            self._since = time.monotonic()
            self._handler.draining = True
        else:
            self.forced = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end; asked every tenth of a second."""
        await super().on_tick(counter)
        if self.should_exit or self._since is None:
            return self.should_exit
        waited = time.monotonic() - self._since
        if waited > self._settings.grace_s:
            self.forced = True
        idle = self._handler.current == 0
        return self.forced or (idle and waited >= self._settings.linger_s)

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listens first and loads then, so that health can be asked from the beginning."""
        await super().startup(sockets)
        if not self.started:
            return
        self._on_started(int(self.servers[0].sockets[0].getsockname()[1]))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._begin(self._reload()))
        self._begin(self._load())

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Ends the models, which refuses what they have not answered, and then the connections."""
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*(model.close() for model in self._handler.models.values()))
        await super().shutdown(sockets)

    def _begin(self, job: Any) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _load(self) -> None:
        first: EdgekitError | None = None
        models = list(self._handler.models.values())
        for model in models:
            # One after the other: each measures how it runs best.
            first = await _try(model) or first
        if first is not None and not any(model.ready for model in models):
            self.error = first
            self.should_exit = True
        # What is there now stays: it need not be looked through for garbage again and again.
        gc.collect()
        gc.freeze()
        self._on_loaded(first)

    async def _reload(self) -> None:
        if self._settings.keys is not None:
            try:
                self._handler.keys = read_keys(self._settings.keys)
            except EdgekitError as error:
                log.error("the keys stay as they were", extra={"reason": str(error)})
        for model in list(self._handler.models.values()):
            await _try(model)


async def _try(model: Hosted) -> EdgekitError | None:
    try:
        await model.load()
    except EdgekitError as error:
        return error
    return None


def serve(handler: Handler, settings: ServerSettings, **tell: Any) -> Server:
    """Runs a server until it ends, and gives it back for how it ended.

    Raises:
        StorageError: the port is taken, or may not be listened on.
    """
    server = Server(handler, settings, **tell)
    listen(server, settings)
    return server
