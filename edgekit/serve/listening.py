"""Where a server listens, how uvicorn is set up for it, and how it is run."""

from __future__ import annotations

import logging
import resource
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

import uvicorn

from edgekit.errors import BadData, EdgekitError, StorageError, UsageError
from edgekit.serve.asgi import Application
from edgekit.serve.protocol import Limits, protocol
from edgekit.serve.security import Keys, read_keys

__all__ = ["Draining", "Drains", "ServerSettings", "configuration", "listen"]

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


def configuration(application: Application, settings: ServerSettings) -> uvicorn.Config:
    """How uvicorn is to run an application.

    Raises:
        BadData: the certificate and its key are none.
        StorageError: one of them cannot be read.
        UsageError: one of them is missing.
    """
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


class Drains(Protocol):
    """What a server has in front of it: an answerer that can be told to end.

    Attributes:
        draining: nothing new is let in any more.
        keys: who may ask.
    """

    draining: bool
    keys: Keys

    @property
    def current(self) -> int:
        """What is going on, in requests."""
        ...


class Draining(uvicorn.Server):
    """Listens until SIGTERM or SIGINT, then lets finish what is going on.

    From the signal on nothing new is let in, but it listens and answers: for ``linger_s`` at least,
    and until all is answered. A second signal, or the end of ``grace_s``, ends it.

    Args:
        answers: is told to end, and asked what goes on.
        application: what uvicorn runs.
        settings: see there.

    Attributes:
        forced: it ended before all was answered.
    """

    def __init__(self, answers: Drains, application: Application, settings: ServerSettings) -> None:
        self._answers, self._settings = answers, settings
        self._since: float | None = None
        self.forced = False
        super().__init__(configuration(application, settings))

    @property
    def port(self) -> int:
        """Where it listens, once it does."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets finish, the second ends."""
        if self._since is None:
            self._since = time.monotonic()
            self._answers.draining = True
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
        idle = self._answers.current == 0
        return self.forced or (idle and waited >= self._settings.linger_s)

    def read_keys_again(self) -> None:
        """Takes the keys that the file has now; what cannot be read leaves them as they are."""
        if self._settings.keys is not None:
            try:
                self._answers.keys = read_keys(self._settings.keys)
            except EdgekitError as error:
                log.error("the keys stay as they were", extra={"reason": str(error)})


def listen(server: uvicorn.Server, settings: ServerSettings) -> None:
    """Runs a server until it ends.

    Raises:
        StorageError: the port is taken, or may not be listened on.
    """
    try:
        server.run()
    except SystemExit as error:
        where = f"{settings.host}:{settings.port}"
        raise StorageError(
            f"cannot listen on {where}",
            hint="--host is an address of this machine; choose another --port, or 0 for a free one",
        ) from error
