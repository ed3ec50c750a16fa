"""Where a server listens, how uvicorn is set up for it, and how it is run."""

from __future__ import annotations

import resource
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from edgekit.errors import BadData, StorageError, UsageError
from edgekit.serve.asgi import Application
from edgekit.serve.protocol import Limits, protocol

__all__ = ["ServerSettings", "configuration", "listen"]


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
