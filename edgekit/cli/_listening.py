"""What every command that listens takes: `edgekit serve` and `edgekit telemetry serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli._output import note

if TYPE_CHECKING:
    from edgekit.serve.listening import ServerSettings

__all__ = ["listening_options", "server_settings", "url_of", "warn_open"]

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


def listening_options(port: int) -> Callable[[F], F]:
    """Adds where a server listens, to whom, and how it ends; ``port`` is the default."""
    options = (
        click.option("--host", default="127.0.0.1", show_default=True,
                     help="Address to listen on."),
        click.option("--port", type=click.IntRange(0, 65_535), default=port, show_default=True,
                     help="Port; 0 takes a free one."),
        click.option("--keys", type=_FILE, metavar="FILE",
                     help="API keys, one a line: NAME [admin] KEY."),
        click.option("--rate", type=click.FloatRange(0), default=0.0, metavar="N",
                     help="Requests per second for each key, or address."),
        click.option("--certificate", type=_FILE, metavar="FILE",
                     help="Serve TLS with this, in PEM."),
        click.option("--certificate-key", type=_FILE, metavar="FILE",
                     help="The certificate's key."),
        click.option("--client-ca", type=_FILE, metavar="FILE",
                     help="Take clients with a certificate of this authority only."),
        click.option("--body-timeout-s", type=click.FloatRange(0.1, 3600), default=30.0,
                     show_default=True, help="The longest that a body may take."),
        click.option("--connections", type=click.IntRange(1), default=20_000, show_default=True,
                     help="Connections at a time."),
        click.option("--grace-s", type=click.FloatRange(0, 3600), default=30.0, show_default=True,
                     help="After SIGTERM, the longest that requests may take to end."),
    )  # fmt: skip

    def added(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return added


def server_settings(options: Mapping[str, Any]) -> ServerSettings:
    """Of these options and ``max_body_mb``; ``header_timeout_s`` and ``linger_s`` where given."""
    from edgekit.serve.listening import ServerSettings
    from edgekit.serve.protocol import Limits

    body = int(options["max_body_mb"] * 2**20)
    headers = {"headers_s": options["header_timeout_s"]} if "header_timeout_s" in options else {}
    return ServerSettings(
        host=options["host"],
        port=options["port"],
        certificate=options["certificate"],
        key=options["certificate_key"],
        client_ca=options["client_ca"],
        keys=options["keys"],
        max_body=body,
        limits=Limits(
            body_s=options["body_timeout_s"],
            connections=options["connections"],
            body_bytes=body,
            **headers,
        ),
        linger_s=options.get("linger_s", 0.0),
        grace_s=options["grace_s"],
    )


def url_of(options: Mapping[str, Any], port: int) -> str:
    """Where it is reached."""
    scheme = "http" if options["certificate"] is None else "https"
    host = f"[{options['host']}]" if ":" in options["host"] else options["host"]
    return f"{scheme}://{host}:{port}"


def warn_open(options: Mapping[str, Any], doing: str) -> None:
    """Says it where other machines may ask without a key."""
    if options["host"] not in ("127.0.0.1", "localhost", "::1") and options["keys"] is None:
        note(f"{doing} other machines without keys; see --keys")
