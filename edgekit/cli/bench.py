"""`edgekit bench`: latency, load time and memory of artifacts on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from edgekit.cli._output import emit, json_option, progress, verbosity_options

__all__ = ["command"]


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A length of time: ``90``, ``90s``, ``10m``, ``1.5h``; in seconds."""

    name = "TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no time; write 90s, 10m or 1h", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


class Cpus(click.ParamType):  # type: ignore[type-arg]
    """CPUs: ``big``, ``little``, or numbers such as ``4-7`` and ``0,2``."""

    name = "CPUS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | tuple[int, ...]:
        if value in ("big", "little") or isinstance(value, tuple):
            return value  # type: ignore[no-any-return]
        numbers: set[int] = set()
        for part in str(value).split(","):
            found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
            if found is None or int(found[2] or found[1]) < int(found[1]):
                self.fail(f"{value!r} names no CPUs; write big, little, 4-7 or 0,2", param, ctx)
            numbers |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
        return tuple(sorted(numbers))


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
@click.option(
    "--cpus",
    type=Cpus(),
    default=None,
    help="Stay on these CPUs: big or little (the fastest or the slowest kind), 4-7, 0,2.",
)
@click.option(
    "--sustained",
    type=Seconds(),
    default=0.0,
    metavar="TIME",
    help="Then call each artifact back to back for so long (10m): what a hot chip gives.",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Time the layers too, by the runtime's own profiler, in a pass of its own.",
)
@click.option(
    "--max-temperature",
    type=click.FloatRange(0, 150),
    default=None,
    metavar="C",
    help="Begin a round at or below this; by default 10 degrees under the point of throttling.",
)
@click.option(
    "--cool-down",
    type=Seconds(),
    default=60.0,
    show_default="60s",
    metavar="TIME",
    help="Wait for that, all rounds together, at most so long; then measure, and say so.",
)
@click.option(
    "--force", is_flag=True, help="Compare what was measured under unlike conditions, too."
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
    cpus: str | tuple[int, ...] | None,
    sustained: float,
    profile: bool,
    max_temperature: float | None,
    cool_down: float,
    force: bool,
    as_json: bool,
) -> None:
    """Measure latency, load time and memory of artifacts.

    Each block of calls runs in a fresh process, and the artifacts take turns, so that a quantized
    one may be compared with the float one of its runtime; the ratio comes with a 95 % interval.
    A figure of too few calls, or of a clock that can't be right, is told in a note, not in the
    table. A hot chip is let cool down first.

    \b
    Exit codes: 0 measured, 3 a runtime is missing, 5 a runtime crashed or does not exist for this
    system, 6 a bundle is not what its manifest says.

    \b
    edgekit bench mobilenet.zip --threads 4
    edgekit bench mobilenet.zip --artifact tflite-fp32 --artifact tflite-w8a8 --json
    edgekit bench model.onnx --runs 1000
    edgekit bench model.tflite --profile --cpus big --sustained 10m
    """
    from contextlib import ExitStack

    from edgekit.bench import measure, subjects
    from edgekit.cli._bench_text import text
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
        steps = len(requests) * (rounds + bool(sustained) + profile)
        advance = stack.enter_context(progress(f"measuring {len(requests)} artifacts", steps))
        document = measure.bench(
            requests,
            threads=threads,
            runs=runs,
            max_seconds=max_seconds,
            rounds=rounds,
            cpus=cpus,
            sustained_s=sustained,
            profile=profile,
            max_temperature_c=max_temperature,
            cool_down_s=cool_down,
            force=force,
            progress=advance,
        )
    emit(document, as_json, lambda: text(document))
