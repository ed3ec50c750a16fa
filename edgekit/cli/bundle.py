"""`edgekit bundle`: what changed from one bundle to another, and client code for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgekit.cli._output import emit, json_option, table, verbosity_options

__all__ = ["command"]

_REASONS = ("regressed", "removed", "contract")


@click.group()
def command() -> None:
    """Compare bundles, and write client code for one."""


@command.command()
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--fail-on",
    type=click.Choice(_REASONS),
    multiple=True,
    help="Exit with 1 where a figure got worse beyond its interval, an artifact of OLD is gone, or "
    "signature, labels or preprocessing changed; may be repeated.",
)
@json_option
@verbosity_options
def diff(old: Path, new: Path, fail_on: tuple[str, ...], as_json: bool) -> int:
    """Show what changed from the bundle OLD to the bundle NEW.

    Artifacts added, removed and changed: bytes, scheme, accuracy, speed, memory, operators in float
    and outside the delegate, parity, requirements; and the bundle's signature, labels,
    preprocessing and golden answers. Every file is hashed first; none is loaded by a runtime.

    \b
    Exit codes: 0 shown, whether or not they differ; 1 something that --fail-on names was found; 6 a
    bundle is not what its manifest says, 7 there is no bundle.

    \b
    edgekit bundle diff released.zip candidate.zip
    edgekit bundle diff released candidate --fail-on regressed --fail-on contract --json
    """
    from edgekit.bundle_diff import diff as compare
    from edgekit.runtime.bundle import Bundle

    with Bundle.open(old) as before, Bundle.open(new) as after:
        document = compare(before, after)
    emit(document, as_json, lambda: _text(document, fail_on))
    return int(any(document[reason] for reason in fail_on))


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--lang",
    "languages",
    multiple=True,
    metavar="LANGUAGE",
    help="Only this language; may be repeated: python, cpp, kotlin, swift.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Where they go: an empty or a new directory.",
)
@json_option
@verbosity_options
def client(bundle: Path, languages: tuple[str, ...], out: Path, as_json: bool) -> int:
    """Write client code for every artifact of BUNDLE, and a README.

    Each client loads one artifact with its runtime's own API and prepares the input as the manifest
    tells; none needs edgekit. An export puts them into the bundle by itself.

    \b
    Exit codes: 0 written; 2 DIR holds something, or there is no such language; 6 the bundle is not
    what its manifest says, 7 there is no bundle.

    \b
    edgekit bundle client released.zip -o clients
    edgekit bundle client released -o clients --lang kotlin --lang swift
    """
    from edgekit.clients import LANGUAGES
    from edgekit.pack import write_clients
    from edgekit.runtime.bundle import Bundle

    with Bundle.open(bundle) as opened:
        names = write_clients(opened.manifest, out, languages or LANGUAGES)
        document = {
            "schema": "edgekit.clients/1",
            "bundle": {
                "name": opened.name, "version": opened.version, "digest": opened.digest,
            },
            "out": str(out),
            "files": names,
        }  # fmt: skip
    emit(document, as_json, lambda: "\n".join(str(out / name) for name in names))
    return 0


def _text(document: Mapping[str, Any], fail_on: Sequence[str]) -> str:
    sides = [document[side] for side in ("old", "new")]
    lines = [" -> ".join(f"{s['name']} {s['version']} ({s['digest'][:12]})" for s in sides)]
    if document["identical"]:
        return f"{lines[0]}: identical"
    if document["bundle"]:
        lines += ["", table(_HEADERS, [_row("bundle", c) for c in document["bundle"]])]
    rows = [_row(_title(a), c) for a in document["artifacts"] for c in a["changes"]]
    lines += ["", table(_HEADERS, rows)] if rows else []
    for kind in ("added", "removed", "same"):
        ids = [a["id"] for a in document["artifacts"] if a["change"] == kind]
        lines += [f"{kind}: {', '.join(ids)}"] if ids else []
    for reason in _REASONS:
        found = document[reason]
        mark = " (--fail-on)" if reason in fail_on and found else ""
        lines += [f"{reason}{mark}: {', '.join(found)}"] if found and reason != "removed" else []
    if "removed" in fail_on and document["removed"]:
        lines.append(f"removed (--fail-on): {', '.join(document['removed'])}")
    return "\n".join(lines)


_HEADERS = ["", "what", "old", "new", "change [95 %]", "verdict", ""]


def _title(artifact: Mapping[str, Any]) -> str:
    return f"{artifact['was']} -> {artifact['id']}" if "was" in artifact else str(artifact["id"])


def _row(title: str, change: Mapping[str, Any]) -> list[object]:
    interval = change.get("ci95")
    span = None if interval is None else f"{interval[0]:+.3g} to {interval[1]:+.3g}"
    return [
        title,
        change["what"],
        _shown(change["old"]),
        _shown(change["new"]),
        span,
        change["verdict"] or "not judged",
        change.get("detail"),
    ]


def _shown(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    text = "-" if value is None else str(value)
    return text if len(text) <= 48 else f"{text[:20]}...{text[-20:]}"
