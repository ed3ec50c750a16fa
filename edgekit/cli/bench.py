"""`edgekit bench`: latency, load time and memory of artifacts on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli._output import emit, json_option, progress, table, verbosity_options

__all__ = ["command"]


@click.command()
@click.argument("subject", metavar="BUNDLE_OR_ARTIFACT", type=click.Path(path_type=Path))
@click.option(
    "--artifact",
    "ids",
    multiple=True,
    metavar="ID",
    help="Measure this artifact of the bundle; may be repeated. Without it: all of them.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads per call."
)
@click.option(
    "--runs",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Timed calls per artifact, over all rounds.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Timed seconds per artifact, over all rounds.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Fresh processes per artifact, taken in turn; under 6 nothing is compared.",
)
@json_option
@verbosity_options
def command(
    subject: Path,
    ids: tuple[str, ...],
    threads: int,
    runs: int,
    max_seconds: float,
    rounds: int,
    as_json: bool,
) -> None:
    """Measure latency, load time and memory of artifacts.

    Each block of calls runs in a fresh process, and the artifacts take turns, so that a quantized
    one may be compared with the float one of its runtime; the ratio comes with a 95 % interval.

    \b
    Exit codes: 0 measured, 3 a runtime is missing, 5 a runtime crashed or does not exist for this
    system, 6 a bundle is not what its manifest says.

    \b
    edgekit bench mobilenet.zip --threads 4
    edgekit bench mobilenet.zip --artifact tflite-fp32 --artifact tflite-w8a8 --json
    edgekit bench model.onnx --runs 1000
    """
    from contextlib import ExitStack

    from edgekit.bench import measure, subjects
    from edgekit.errors import UsageError
    from edgekit.runtime.bundle import Bundle

    with ExitStack() as stack:
        bare = subject.suffix.lower() in subjects.SUFFIXES
        if bare and not (subject / "manifest.json").is_file():
            if ids:
                raise UsageError(f"--artifact chooses from a bundle; {subject} is one artifact")
            requests = [subjects.file_request(subject)]
        else:
            requests = subjects.bundle_requests(stack.enter_context(Bundle.open(subject)), ids)
        advance = stack.enter_context(
            progress(f"measuring {len(requests)} artifacts", len(requests) * rounds)
        )
        document = measure.bench(
            requests,
            threads=threads,
            runs=runs,
            max_seconds=max_seconds,
            rounds=rounds,
            progress=advance,
        )
    emit(document, as_json, lambda: _text(document))


def _text(document: dict[str, Any]) -> str:
    facts = document["facts"]
    headers = [
        "artifact",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "n",
        "load ms",
        "first ms",
        "peak MiB",
        "added MiB",
        "KiB",
    ]
    rows = [_row(result) for result in document["results"]]
    lines = [
        f"{facts['cpu'] or 'unknown processor'}, {facts['usable_cores']} cores, "
        f"load {facts['load_average']}; {document['results'][0]['threads']} threads",
        "",
        table(headers, rows),
    ]
    if document["comparisons"]:
        lines += ["", *(_sentence(entry) for entry in document["comparisons"])]
    notes = [f"{r['artifact']}: {note}" for r in document["results"] for note in r["notes"]]
    return "\n".join([*lines, "", *notes])


def _row(result: dict[str, Any]) -> list[object]:
    latency = result["latency_ms"]
    size = result["bytes"]
    return [
        result["artifact"],
        *(_digits(latency[key]) for key in ("p50", "p90", "p99")),
        latency["n"],
        _digits(result["load_ms"]),
        _digits(result["first_ms"]),
        _digits(result["peak_memory_mib"]),
        _digits(result["added_memory_mib"]),
        None if size is None else round(size / 1024),
    ]


def _digits(value: float | None) -> float | None:
    """Three significant digits; whole numbers above 100."""
    return None if value is None else float(f"{value:.3g}") if value < 100 else round(value)


def _sentence(entry: dict[str, Any]) -> str:
    if entry["ratio"] is None:
        return f"{entry['b']} against {entry['a']}: too few rounds to compare"
    low, high = entry["ci95"]
    return (
        f"{entry['b']} against {entry['a']}: {entry['verdict']}, "
        f"{entry['ratio']:.3f} times its latency (95 % interval {low:.3f} to {high:.3f})"
    )
