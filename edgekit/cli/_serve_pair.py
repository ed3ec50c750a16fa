"""`edgekit serve pair`: a bundle that names its teacher, for a server to answer from."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli._output import emit, json_option, verbosity_options

__all__ = ["command"]

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("student", type=_PATH)
@click.argument("teacher", type=_PATH)
@click.option("-o", "--out", type=_PATH, required=True, metavar="OUT", help="A directory or .zip.")
@json_option
@verbosity_options
def command(student: Path, teacher: Path, out: Path, as_json: bool) -> int:
    """Write the bundle STUDENT anew so that it names the bundle TEACHER, and that beside it.

    The teacher, mostly a float model that is too large for devices, is named by its digest. Devices
    get OUT alone; `edgekit serve OUT` serves both, the teacher's float artifact under its own name.

    \b
    Exit codes: 0 written; 2 the two do not answer the same question; 5 the teacher has no artifact
    for a server; 6 a bundle is not what its manifest says, 7 there is no bundle.

    \b
    edgekit serve pair small.zip large.zip -o pair.zip
    edgekit serve pair.zip
    """
    from edgekit.serve.teacher import join

    written = join(student, teacher, out)
    document = {
        "schema": "edgekit.pair/1",
        "student": str(written[0]),
        "teacher": str(written[1]),
    }
    emit(document, as_json, lambda: "\n".join(map(str, written)))
    return 0
