"""`edgekit targets`: the runtimes edgekit makes artifacts for, and whether each is installed."""

from __future__ import annotations

from typing import Any

import click

from edgekit.cli._output import emit, json_option, table, verbosity_options

__all__ = ["command"]

_KEYS = ("id", "suffix", "extra", "schemes", "delegates", "ios", "installed", "version", "install")


@click.command()
@json_option
@verbosity_options
def command(as_json: bool) -> None:
    """List targets with their schemes, delegates and what their artifacts can take (--io), and
    what installs the missing ones.

    \b
    edgekit targets
    edgekit targets --json
    """
    from edgekit.targets import describe

    rows = [{key: row[key] for key in _KEYS} for row in describe()]
    emit({"schema": "edgekit.targets/1", "targets": rows}, as_json, lambda: _text(rows))


def _text(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["id"],
            row["suffix"],
            " ".join(row["schemes"]),
            " ".join(row["delegates"]),
            " ".join(row["ios"]),
            row["version"] if row["installed"] else f"missing: {row['install']}",
        ]
        for row in rows
    ]
    return table(["target", "suffix", "schemes", "delegates", "takes", "installed"], cells)
