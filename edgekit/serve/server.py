"""The server in one process: uvicorn, the handler, and how both begin and end."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from edgekit.errors import BadData, EdgekitError, StorageError, UsageError
from edgekit.serve.asgi import Application
from edgekit.serve.handler import Handler
from edgekit.serve.hosted import Hosted
from edgekit.serve.openapi import description
from edgekit.serve.protocol import Limits, protocol
from edgekit.serve.security import read_keys

__all__ = ["Server", "ServerSettings", "serve"]

log = logging.getLogger("edgekit.serve")


@dataclass(frozen=True)
class ServerSettings:
    """Where and how the server listens, and how it ends.

    Attributes:
        host, port: port 0 takes a free one.
        certificate, key: PEM files for TLS, or None.
        client_ca: PEM file with the authority that clients' certificates must be from, or None.
        keys: file of API keys, or None.
        max_body: bytes of a body.
        limits: of connections.
        linger_s: how long it goes on to say that it ends, at least, after SIGTERM.
        grace_s: how long what is going on may take after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    keys: Path | None = None
    max_body: int = 32 * 2**20
    limits: Limits = field(default_factory=Limits)
    linger_s: float = 1.0
    grace_s: float = 30.0


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
        super().__init__(_config(application, settings))

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


def _config(application: Application, settings: ServerSettings) -> uvicorn.Config:
    if (settings.certificate is None) != (settings.key is None):
        raise UsageError("a certificate and its key go together")
    if settings.client_ca is not None and settings.certificate is None:
        raise UsageError("clients' certificates are asked for over TLS only; name a certificate")
    _raise_file_limit(settings.limits.connections)
    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=protocol(settings.limits),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_keep_alive=settings.limits.keep_alive_s,
        timeout_graceful_shutdown=5,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        ssl_ca_certs=None if settings.client_ca is None else str(settings.client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if settings.client_ca is None else ssl.CERT_REQUIRED,
    )
    try:
        config.load()
    except ssl.SSLError as error:
        files = (settings.certificate, settings.key, settings.client_ca)
        named = ", ".join(str(path) for path in files if path is not None)
        raise BadData(
            f"{named} are no certificate and its key: {error.reason or error}",
            hint="PEM files: the certificate with its chain, and the private key that it is for",
        ) from error
    except OSError as error:
        raise StorageError(f"the certificate or its key cannot be read: {error}") from error
    return config


def _raise_file_limit(connections: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, connections + 1024)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(handler: Handler, settings: ServerSettings, **tell: Any) -> Server:
    """Runs a server until it ends, and gives it back for how it ended.

    Raises:
        StorageError: the port is taken, or may not be listened on.
    """
    server = Server(handler, settings, **tell)
    try:
        server.run()
    except SystemExit as error:
        where = f"{settings.host}:{settings.port}"
        raise StorageError(
            f"cannot listen on {where}",
            hint="--host is an address of this machine; choose another --port, or 0 for a free one",
        ) from error
    return server
