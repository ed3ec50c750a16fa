"""`edgekit serve`: serve bundles over the Open Inference Protocol; subcommands beside it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli._listening import listening_options, server_settings, url_of, warn_open
from edgekit.cli._output import emit, json_option, verbosity_options
from edgekit.cli._subcommands import WithSubcommands
from edgekit.errors import EdgekitError, MissingDependency, UsageError
from edgekit.names import install_command

if TYPE_CHECKING:
    from edgekit.serve.engine import EngineSettings
    from edgekit.serve.handler import Handler
    from edgekit.serve.teacher import Listed

__all__ = ["SUBCOMMANDS", "command"]

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "tune": ("edgekit.cli._serve_tune:command", "Choose when a device asks the cloud."),
    "pair": ("edgekit.cli._serve_pair:command", "Name a bundle's teacher, to serve both."),
    "export": ("edgekit.cli._serve_export:command", "Write what serves a bundle elsewhere."),
    "load": ("edgekit.cli._serve_load:command", "Send a server requests, and tell how it answers."),
}
"""Every subcommand: where its command is, as ``module:attribute``, and its one line of help."""

_INTERRUPTED = 130


class _Serve(WithSubcommands):
    subcommands = SUBCOMMANDS


@click.command(cls=_Serve)
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@listening_options(port=8000)
@click.option("--engine", type=click.Choice(["process", "ray"]), default="process",
              show_default=True, help="One process, or replicas on Ray Serve.")  # fmt: skip
@click.option("--replicas", type=click.IntRange(1, 10_000), help="On Ray: so many; by the cores.")
@click.option("--min-replicas", type=click.IntRange(1, 10_000),
              help="On Ray: as many as the load asks for, at least so many.")  # fmt: skip
@click.option("--max-replicas", type=click.IntRange(1, 10_000), help="... and at most so many.")
@click.option("--artifact", metavar="ID", help="Serve this artifact, not the one chosen.")
@click.option("--teacher/--no-teacher", default=True, help="Serve teachers that bundles name, too.")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes per model; by the cores.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True,
              help="Threads of each worker.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 256), help="Largest batch; found out without.")
@click.option("--delay-ms", type=click.FloatRange(0, 1000), default=0.0, show_default=True,
              help="How long a request may wait for others to fill a batch.")  # fmt: skip
@click.option("--queue", type=click.IntRange(1, 100_000),
              help="Samples that may wait; follows the rate of answers without.")  # fmt: skip
@click.option("--objective-ms", type=click.FloatRange(1), default=100.0, show_default=True,
              help="What an answer may take: bounds batches and queue.")  # fmt: skip
@click.option("--timeout-ms", type=click.FloatRange(1, 3_600_000), default=30_000.0,
              show_default=True, help="The longest that a request waits.")  # fmt: skip
@click.option("--max-body-mb", type=click.FloatRange(0.001, 1024), default=32.0,
              show_default=True, help="The largest body, in MiB.")  # fmt: skip
@click.option("--header-timeout-s", type=click.FloatRange(0.1, 600), default=10.0,
              show_default=True, help="The longest that headers may take.")  # fmt: skip
@click.option("--linger-s", type=click.FloatRange(0, 600), default=1.0, show_default=True,
              help="After SIGTERM, say for so long at least that the server ends.")  # fmt: skip
@json_option
@verbosity_options
def command(bundles: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Serve every BUNDLE over the Open Inference Protocol (KServe, Triton), version 2.

    What runs is the bundle's OpenVINO artifact, else that for ONNX Runtime, int8 before float, in
    worker processes. Tensors go to /v2/models/NAME/infer as JSON or binary, pictures, texts and
    recordings to /v1/predict; /docs has the rest. Batches follow the load, and are used only where
    they give the same bits as one by one. A queue that is full refuses with 429.

    SIGTERM lets finish what is going on; SIGHUP reads bundles and keys again.

    With --engine ray every replica is such a server behind Ray Serve's proxy, and SIGHUP replaces
    them one after the other. Ray is started here, or RAY_ADDRESS says where it is; there, bundles
    and keys have the same path on every node. --rate then counts in each replica.

    \b
    Exit codes: 0 ended after SIGTERM with all answered, 130 ended before; 3 the extra 'serve' or
    'ray' is missing, 5 or 7 no model can be served here, 6 a bundle is not what its manifest says,
    8 the port is taken.

    \b
    edgekit serve model.zip
    edgekit serve small=a.zip large=b.zip --port 8080 --keys keys.txt --objective-ms 50
    edgekit serve model.zip --engine ray --min-replicas 1 --max-replicas 8
    """
    from edgekit.cli._serve_ray import RAY_ONLY, run_on_ray

    if options["engine"] == "process" and any(options[name] is not None for name in RAY_ONLY):
        raise UsageError("replicas are Ray Serve's: add --engine ray")
    try:
        import edgekit.serve.server as server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("edgekit"):
            raise
        message = f"{error.name} is not installed"
        raise MissingDependency(message, hint=install_command("serve")) from error
    from edgekit.serve.logs import set_up

    set_up(logging.INFO)
    if options["engine"] == "ray":
        warn_open(options, "serving to")
        return run_on_ray(_named(bundles, options), options, as_json)
    handler, settings = _handler(bundles, options), server_settings(options)
    warn_open(options, "serving to")
    port = 0

    def started(bound: int) -> None:
        nonlocal port
        port = bound

    def loaded(error: EdgekitError | None) -> None:
        if any(model.ready for model in handler.models.values()):
            document = _document(handler, options, port)
            emit(document, as_json, lambda: _text(document))

    ended = server.serve(handler, settings, started=started, loaded=loaded)
    if ended.error is not None:
        raise ended.error
    return _INTERRUPTED if ended.forced else 0


def _handler(bundles: tuple[str, ...], options: dict[str, Any]) -> Handler:
    from edgekit.serve.handler import Handler
    from edgekit.serve.hosted import Hosted
    from edgekit.serve.security import Keys, Rates, read_keys

    named = _named(bundles, options)
    settings = _engine(options)
    models = [Hosted(m.path, m.artifact, settings, m.name, m.student) for m in named]
    names = [model.name for model in models]
    if len(set(names)) != len(names):
        raise UsageError(
            f"two models have one name: {', '.join(names)}", hint="give another: NAME=BUNDLE"
        )
    keys = Keys() if options["keys"] is None else read_keys(options["keys"])
    rates = Rates(options["rate"])
    return Handler(models, keys=keys, rates=rates, timeout_ms=options["timeout_ms"])


def _named(bundles: tuple[str, ...], options: dict[str, Any]) -> list[Listed]:
    """Every model, teachers among them."""
    from edgekit.serve.teacher import Listed, listed

    models = []
    for text in bundles:
        found = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})=(.+)", text)
        name, path = (found[1], found[2]) if found else (None, text)
        models.append(Listed(Path(path), name, options["artifact"]))
    return listed(models) if options["teacher"] else models


def _engine(options: dict[str, Any]) -> EngineSettings:
    from edgekit import cores
    from edgekit.serve.engine import EngineSettings

    threads = options["threads"]
    return EngineSettings(
        workers=options["workers"] or max(1, cores.usable() // threads),
        threads=threads,
        wide=max(threads, min(cores.usable(), 8)),
        batch=options["batch"],
        delay_ms=options["delay_ms"],
        queue=options["queue"],
        objective_ms=options["objective_ms"],
        raw_bytes=min(16 * 2**20, int(options["max_body_mb"] * 2**20)),
    )


def _document(handler: Handler, options: dict[str, Any], port: int) -> dict[str, Any]:
    models = []
    for model in handler.models.values():
        version = model.version
        entry: dict[str, Any] = {"name": model.name, "state": model.state, "reason": model.reason}
        if version is not None:
            entry |= {"version": version.version, "digest": version.digest}
            entry |= {"serving": version.engine.describe()}
        models.append(entry)
    return {"schema": "edgekit.serve/1", "url": url_of(options, port), "models": models}


def _text(document: dict[str, Any]) -> str:
    lines = [f"{document['url']}  (Ctrl-C ends)"]
    for model in document["models"]:
        serving = model.get("serving")
        if serving is None:
            lines.append(f"{model['name']}: {model['state']}: {model['reason']}")
            continue
        batches = ", ".join(map(str, serving["batches"])) or "none"
        lines.append(
            f"{model['name']} {model['version']}: {serving['artifact']} on {serving['runtime']}, "
            f"{serving['workers']} workers, batches: {batches}"
        )
        lines += [f"  {remark}" for remark in serving["notes"]]
    return "\n".join(lines)
