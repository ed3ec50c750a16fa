"""The server in one process: uvicorn, the handler, and how both begin and end."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.serve.asgi import Application
from edgekit.serve.handler import Handler
from edgekit.serve.hosted import Hosted
from edgekit.serve.listening import Draining, ServerSettings, listen
from edgekit.serve.openapi import description

__all__ = ["Server", "ServerSettings", "serve"]


class Server(Draining):
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
        self._on_started, self._on_loaded = started, loaded
        self._jobs: set[asyncio.Task[None]] = set()
        self.error: EdgekitError | None = None
        application = Application(handler, description(handler), settings.max_body)
        super().__init__(handler, application, settings)

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Listens first and loads then, so that health can be asked from the beginning."""
        await super().startup(sockets)
        if not self.started:
            return
        self._on_started(self.port)
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
        self.read_keys_again()
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
