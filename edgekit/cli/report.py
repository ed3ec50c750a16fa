"""`edgekit report`: one page of HTML about a run, an export or a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgekit.cli._output import emit, json_option, note, verbosity_options

__all__ = ["command"]


@click.command()
@click.argument(
    "sources", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    metavar="PAGE",
    help="Where the page goes; one that is there is replaced.",
)
@json_option
@verbosity_options
def command(sources: tuple[Path, ...], out: Path, as_json: bool) -> int:
    """Make one page of HTML about each RUN: open it in a browser, send it, print it.

    RUN is the folder that `edgekit run -o` wrote, the document of `edgekit export --json`, or a
    bundle (folder or zip). Several are compared. The page shows accuracy against latency against
    size, gates, training curves, sensitivity and size by layer, confusions, the worst samples,
    lineage, settings, versions and the machine; what a RUN has not, the page says how to get. It is
    one file, without scripts, and loads nothing.

    \b
    Exit codes: 0 written, whatever the gates say; 2 RUN is not there; 3 jinja2 or jsonschema is
    missing; 6 a file is not what the run or the bundle says; 7 RUN is none of the three; 8 the page
    can't be written.

    \b
    edgekit report out/digits -o report.html
    edgekit report out/first out/second -o compared.html
    edgekit report released.zip
    """
    from edgekit.report.page import build, write

    page = build(sources)
    for source in page.sources:
        for what in source.missing:
            note(f"{source.path}: {what}; the page does without it")
    write(page, out)
    document = page.to_json(out)
    emit(document, as_json, lambda: _text(document))
    return 0


def _text(document: Mapping[str, Any]) -> str:
    gates = document["gates"]
    shown = [s["title"] for s in document["sections"] if s["shown"]]
    lines = [f"{document['page']}: {document['bytes'] / 1024:.0f} KiB", f"shows {', '.join(shown)}"]
    lines += [f"lacks {s['title']}: {s['reason']}" for s in document["sections"] if not s["shown"]]
    if any(gates.values()):
        lines.append(
            f"gates: {gates['held']} held, {gates['failed']} failed, "
            f"{gates['not_judged']} not judged"
        )
    return "\n".join(lines)
