"""`edgekit bench`: latency, load time and memory of artifacts, on this machine or a device."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import click

from edgekit.cli import _bench_lab
from edgekit.cli._output import emit, json_option, note, progress, verbosity_options
from edgekit.cli._subcommands import WithSubcommands

__all__ = ["command"]


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


class _Bench(WithSubcommands):
    subcommands: ClassVar = {
        "history": ("edgekit.cli._bench_kept:history", "List the measurements that were kept."),
        "compare": ("edgekit.cli._bench_kept:compare", "Say whether one is faster than another."),
    }


@click.command(cls=_Bench)
@click.argument(
    "subject", metavar="[BUNDLE_OR_ARTIFACT]", type=click.Path(path_type=Path), required=False
)
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
    type=_bench_lab.Seconds(),
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
    type=click.FloatRange(0, 150, min_open=True, max_open=True),
    default=None,
    metavar="C",
    help="Begin a round at or below this; by default 10 degrees under the point of throttling.",
)
@click.option(
    "--cool-down",
    type=_bench_lab.Seconds(),
    default=60.0,
    show_default="60s",
    metavar="TIME",
    help="Wait for that, all rounds together, at most so long; then measure, and say so.",
)
@click.option(
    "--probe",
    metavar="TARGET-SCHEME",
    help="Measure the three networks by which 'edgekit estimate --probe' knows a device.",
)
@click.option(
    "--force", is_flag=True, help="Compare what was measured under unlike conditions, too."
)
@_bench_lab.lab_options
@json_option
@verbosity_options
def command(
    subject: Path | None,
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
    probe: str | None,
    force: bool,
    as_json: bool,
    **lab: Any,
) -> int:
    """Measure latency, load time and memory of artifacts.

    Each block of calls runs in a fresh process, and the artifacts take turns, so that a quantized
    one may be compared with the float one of its runtime; the ratio comes with a 95 % interval.
    A figure of too few calls, or of a clock that can't be right, is told in a note, not in the
    table. A hot chip is let cool down first.

    With --on the same is measured on a device that ssh or adb reaches, by a worker that is one file
    and needs Python 3.11, numpy and the runtime's wheel there, or by the program that --tool names.
    Nothing is left behind. --matrix measures many artifacts on many devices and keeps the results,
    which 'edgekit bench history' lists and 'edgekit bench compare A B' holds against each other.

    \b
    Exit codes: 0 measured, 1 a budget of the --device is broken, 3 a runtime or a program is
    missing, 4 a device did not answer, 5 a runtime crashed or does not exist for this system, 6 a
    bundle is not what its manifest says, or a host key has changed, 9 another job has the device.

    \b
    edgekit bench mobilenet.zip --threads 4
    edgekit bench mobilenet.zip --artifact tflite-fp32 --artifact tflite-w8a8 --json
    edgekit bench model.onnx --runs 1000
    edgekit bench model.tflite --profile --cpus big --sustained 10m
    edgekit bench mobilenet.zip --on ssh://pi@bench-3 --device raspberry-pi-5
    edgekit bench model.tflite --on adb://29071FDH2004UX --tool benchmark_model=./benchmark_model
    edgekit bench --probe tflite-w8a8 --on ssh://pi@bench-3 --device raspberry-pi-5 --json
    edgekit bench --matrix matrix.toml

    \b
    A matrix.toml; of each table there may be several, and paths are relative to it:
      [[subjects]]
      path = "mobilenet.zip"           # a bundle or an artifact
      artifacts = ["tflite-w8a8"]      # of a bundle; without it all that the device runs
      [[devices]]
      url = "ssh://pi@bench-3?python=/srv/venv/bin/python"
      device = "raspberry-pi-5"        # its profile, if it has one
      [devices.tools.benchmark_model]  # for a device without Python
      path = "./benchmark_model"
      [[settings]]                     # threads, runs, max_seconds, rounds, cpus, profile,
      threads = 4                      # sustained_s, max_temperature_c, cool_down_s
    """
    settings = {
        "threads": threads,
        "runs": runs,
        "max_seconds": max_seconds,
        "rounds": rounds,
        "cpus": cpus,
        "sustained_s": sustained,
        "profile": profile,
        "max_temperature_c": max_temperature,
        "cool_down_s": cool_down,
    }
    ctx = click.get_current_context()
    if lab["matrix"] is not None:
        return _bench_lab.run_matrix(ctx, lab, as_json)
    if lab["again"]:
        raise click.UsageError("--again begins a --matrix anew, and none is given", ctx)
    if probe is not None and (subject is not None or ids):
        raise click.UsageError("--probe measures networks of its own; name no artifact beside it")
    if probe is None and subject is None:
        raise click.MissingParameter(
            ctx=ctx, param_type="argument", param_hint="BUNDLE_OR_ARTIFACT"
        )

    def measure(path: Path) -> dict[str, Any]:
        if _bench_lab.elsewhere(lab):
            return _bench_lab.measured_on(ctx, path, ids, settings, lab, force=force)
        from edgekit.bench.here import alone_here

        with alone_here(lab["wait"], waiting=note, unkept=partial(note, verbose=True)):
            return _measured_here(path, ids, settings, force=force)

    if subject is not None:
        measured = measure(subject)
    else:
        from edgekit.cli._bench_probe import probed

        _bench_lab.place(lab)  # making the probes takes half a minute
        measured = probed(str(probe), lab["profile_name"], measure)
    from edgekit.cli._bench_text import text

    gates = measured.get("gates", [])
    emit(measured, as_json, lambda: "\n".join([text(measured), *_bench_lab.gates_text(gates)]))
    return int(any(gate["passed"] is False for gate in gates))


def _measured_here(
    subject: Path, ids: tuple[str, ...], settings: Mapping[str, Any], *, force: bool
) -> dict[str, Any]:
    """Measures on this machine, in processes of it."""
    from edgekit.bench import measure
    from edgekit.bench.interrupts import ended_by_signals
    from edgekit.bench.subjects import open_requests

    with ended_by_signals(), open_requests(subject, ids, None) as requests:
        extras = bool(settings["sustained_s"]) + settings["profile"]
        steps = len(requests) * (settings["rounds"] + extras)
        with progress(f"measuring {len(requests)} artifacts", steps) as advance:
            return measure.bench(requests, **settings, force=force, progress=advance)
