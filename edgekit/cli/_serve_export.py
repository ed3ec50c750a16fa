"""`edgekit serve export`: what another server, or another way to run ours, needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from edgekit.cli._output import emit, json_option, verbosity_options

__all__ = ["command"]

# `edgekit.serve.deploy.KINDS`, which --help does not import.
_KINDS = ("kserve", "triton", "ovms", "ray", "docker", "systemd")


@click.command()
@click.argument("bundle", metavar="[NAME=]BUNDLE")
@click.option(
    "--for", "kind", type=click.Choice(_KINDS), required=True, help="What is to serve it."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="A directory that is not there yet.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace DIR.")
@click.option("--artifact", metavar="ID", help="Serve this artifact, not the one chosen.")
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on, for ray and systemd.")  # fmt: skip
@click.option("--port", default=8000, show_default=True, help="Port of our server.")
@click.option("--image", help="Image with edgekit in it, for kserve; its tag, for docker.")
@click.option("--storage-uri", metavar="URI",
              help="Where KServe finds the bundle; without, the image holds it.")  # fmt: skip
@click.option("--min-replicas", type=click.IntRange(1), default=1, show_default=True,
              help="For kserve and ray.")  # fmt: skip
@click.option("--max-replicas", type=click.IntRange(1), help="As many as the least, without.")
@json_option
@verbosity_options
def command(bundle: str, kind: str, out: Path, force: bool, as_json: bool, **options: Any) -> int:
    """Write what serves BUNDLE elsewhere into the directory DIR.

    \b
    kserve   a ServingRuntime with our container and an InferenceService (YAML)
    triton   a model repository: config.pbtxt and the ONNX or OpenVINO model
    ovms     a model repository of OpenVINO Model Server: config.json and the model
    ray      a Serve config file, for serve run and serve deploy
    docker   a Dockerfile with the bundle in the image, and a compose file; not built here
    systemd  a hardened unit, and the bundle beside it

    Triton and OpenVINO Model Server take tensors alone: no pictures, texts or labels.

    \b
    Exit codes: 0 written; 2 DIR is there, or an option does not fit; 5 no artifact is for that
    server; 6 the bundle is not what its manifest says, 7 there is none; 8 DIR cannot be written.

    \b
    edgekit serve export model.zip --for docker -o deploy
    edgekit serve export model.zip --for triton --artifact onnxruntime-w8a8 -o models
    edgekit serve export model.zip --for kserve --image registry/edgekit:1 -o kserve
    """
    from edgekit.serve.deploy import Wishes, export

    found = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.+)", bundle)
    name, path = (found[1], found[2]) if found else (None, bundle)
    most = options.pop("max_replicas") or options["min_replicas"]
    wishes = Wishes(name=name, max_replicas=most, **options)
    made = export(Path(path), kind, out, wishes, force=force)
    files = sorted(made.files)
    document = {
        "schema": "edgekit.serve-export/1",
        "for": kind,
        "out": str(out),
        "files": files,
        "notes": made.notes,
    }

    def text() -> str:
        return "\n".join([*(f"{out / name}" for name in files), *made.notes])

    emit(document, as_json, text)
    return 0
