"""`edgekit serve`: serve bundles over the Open Inference Protocol; subcommands beside it."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli._output import json_option, verbosity_options
from edgekit.cli._subcommands import WithSubcommands
from edgekit.errors import UnsupportedError

__all__ = ["SUBCOMMANDS", "command"]

SUBCOMMANDS: dict[str, tuple[str, str]] = {}
"""Every subcommand: where its command is, as ``module:attribute``, and its one line of help."""


class _Serve(WithSubcommands):
    subcommands = SUBCOMMANDS


@click.command(cls=_Serve)
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True)
@json_option
@verbosity_options
def command(bundles: tuple[Path, ...], as_json: bool) -> None:
    """Serve every BUNDLE over the Open Inference Protocol."""
    raise UnsupportedError("serving is not there yet")
