"""`edgekit serve load`: sends a server requests, and tells how it answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from edgekit.cli._bench_lab import Seconds
from edgekit.cli._output import emit, json_option, note, table, verbosity_options
from edgekit.errors import BadData, CloudError, GateFailed, MissingDependency, UsageError
from edgekit.names import install_command

__all__ = ["command"]

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_KEY = "EDGEKIT_API_KEY"


@click.command()
@click.argument("url")
@click.option("--rate", type=click.FloatRange(0.01, 1_000_000), metavar="R",
              help="Open loop: requests per second, answered or not.")  # fmt: skip
@click.option("--concurrency", type=click.IntRange(1, 10_000), metavar="N",
              help="Closed loop: N clients that ask again once answered. With --rate: connections.",
              )  # fmt: skip
@click.option("--for", "seconds", type=Seconds(), default=10.0, show_default="10s",
              help="How long: 30s, 5m.")  # fmt: skip
@click.option("--model", metavar="NAME", help="Its name; the first that the server lists without.")
@click.option("--inputs", type=_FILE, metavar="FILE.npz", help="Inputs by name; drawn without.")
@click.option("--text-tensors", is_flag=True, help="Tensors as JSON, not as raw bytes.")
@click.option("--body", type=_FILE, metavar="FILE", help="Send this file to URL's path as it is.")
@click.option("--content-type", default="application/octet-stream", show_default=True,
              help="Of --body.")  # fmt: skip
@click.option("--objective-ms", type=click.FloatRange(0.001),
              help="Only answers within it are good.")  # fmt: skip
@click.option("--ca", type=_FILE, metavar="FILE", help="Trust these certificates, in PEM.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the times of --rate.")
@json_option
@verbosity_options
def command(
    url: str,
    rate: float | None,
    concurrency: int | None,
    seconds: float,
    objective_ms: float | None,
    seed: int,
    as_json: bool,
    **options: Any,
) -> int:
    """Send the server at URL requests, and tell its percentiles, rates and statuses.

    With --rate the times of requests are drawn before and do not wait for answers, and a latency
    counts from when its request was due: a server that stalls shows it. Any server of the Open
    Inference Protocol v2 will do. The generator takes a core of its own, and says how much of it,
    and how late it was: where that is much, the figures are the generator's. An API key is taken
    from EDGEKIT_API_KEY.

    \b
    Exit codes: 0 measured; 1 nothing was answered with 200; 2 neither or both of --rate and
    --concurrency alone; 3 the extra 'serve' is missing, 4 the server does not answer.

    \b
    edgekit serve load http://127.0.0.1:8000 --rate 200 --for 30s
    edgekit serve load http://127.0.0.1:8000 --concurrency 16 --for 10s --json
    edgekit serve load http://127.0.0.1:8000/v1/predict --rate 50 --body cat.jpg \\
        --content-type image/jpeg
    """
    try:
        from edgekit.serve import load
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("edgekit"):
            raise
        message = f"{error.name} is not installed"
        raise MissingDependency(message, hint=install_command("serve")) from error
    if rate is None and concurrency is None:
        raise UsageError("name how much to send: --rate R, or --concurrency N")
    if seconds <= 0:
        raise UsageError("--for is a time longer than 0")
    request = _request(url, options)
    plan = load.Plan(seconds, rate, concurrency or load.CONNECTIONS, seed)
    note(f"sending {request.what} requests for {seconds:g} s")
    try:
        loaded = load.run(request.address, request.content, plan)
    except OSError as error:
        where = f"{request.address.host}:{request.address.port}"
        raise CloudError(f"{where} takes no connections: {error}", kind="connect") from error
    document = {
        "schema": "edgekit.serve-load/1",
        "url": url,
        "request": request.what,
        "rate": rate,
        "concurrency": plan.concurrency,
        "objective_ms": objective_ms,
        **load.summary(loaded, objective_ms),
    }
    emit(document, as_json, lambda: _text(document))
    if "200" not in loaded.latency_ms:
        raise GateFailed("nothing was answered with 200")
    return 0


def _request(url: str, options: dict[str, Any]) -> Any:
    import numpy as np

    from edgekit.serve.load_request import tensors, whole

    key, ca = os.environ.get(_KEY), options["ca"]
    if options["body"] is not None:
        if options["inputs"] is not None or options["model"] is not None:
            raise UsageError("--body goes as it is: no --inputs or --model beside it")
        return whole(url, options["body"].read_bytes(), options["content_type"], key=key, ca=ca)
    feeds = None
    if options["inputs"] is not None:
        try:
            with np.load(options["inputs"], allow_pickle=False) as stored:
                feeds = {name: stored[name] for name in stored.files}
        except (OSError, ValueError) as error:
            raise BadData(f"{options['inputs']} is no .npz: {error}") from error
    binary = not options["text_tensors"]
    return tensors(url, options["model"], feeds, binary=binary, key=key, ca=ca)


def _text(document: dict[str, Any]) -> str:
    rows = [
        [status if status != "0" else "broken", document["statuses"][status],
         *(round(value, 2) for value in found.values())]
        for status, found in document["latency_ms"].items()
    ]  # fmt: skip
    generator = document["generator"]
    within = "" if document["objective_ms"] is None else f" within {document['objective_ms']:g} ms"
    lines = [
        table(["status", "n", "p50 ms", "p90 ms", "p99 ms", "max ms"], rows),
        f"sent {document['sent']} ({document['offered_per_s']:.1f}/s), answered "
        f"{document['answered_per_s']:.1f}/s, good{within} {document['good_per_s']:.1f}/s, "
        f"without an answer {document['unanswered']}",
        f"generator: {generator['cpu_s']:.2f} s of processor time in {document['seconds']:g} s, "
        f"late by {generator['late_ms_p99']:.2f} ms (p99)",
    ]
    return "\n".join(lines)
