"""`edgekit estimate`: latency and peak memory on a device that is not here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli._libraries import subdued
from edgekit.cli._output import emit, json_option, note, progress, table, verbosity_options
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.bench.estimator import Probe
    from edgekit.bench.subject import Subject
    from edgekit.device import Device, Job

__all__ = ["command"]


@click.command()
@click.argument("subject", metavar="[MODEL_OR_BUNDLE]", required=False)
@click.option("--device", "device_id", metavar="ID", required=True, help="Id or file of a profile.")
@click.option("--target", metavar="T", help="Whose runtime; the device's first without it.")
@click.option("--scheme", metavar="ID", help="The one that the device prefers without it.")
@click.option("--threads", type=click.IntRange(1), help="The profile's own without it.")
@click.option(
    "--probe",
    "probe_files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="What 'edgekit bench --json' measured on the device, of probes or of the bundle itself; "
    "may be repeated.",
)
@click.option("--plan", is_flag=True, help="Rank schemes, threads and runtimes.")
@click.option(
    "--write-probes",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Make the probes to measure on the device, and estimate nothing.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .safetensors to put into a model that is built by code.",
)
@json_option
@verbosity_options
def command(
    subject: str | None,
    device_id: str,
    target: str | None,
    scheme: str | None,
    threads: int | None,
    probe_files: tuple[Path, ...],
    plan: bool,
    write_probes: Path | None,
    weights: Path | None,
    as_json: bool,
) -> None:
    """Estimate latency and peak memory on a device that is not here.

    It says first what would not run on an accelerator, then the figures, always with an interval,
    what they rest on, and the layers that take the time. Estimates are fitted to published
    latencies; one to three probes measured on the device narrow them.

    \b
    Exit codes: 0 estimated, 2 unknown device or target, 5 an operator, scheme or delegate of which
    nothing was measured, 7 a probe file that can't be read.

    \b
    edgekit estimate torchvision:mobilenet_v2 --device pixel-8 --target tflite
    edgekit estimate mobilenet.zip --device raspberry-pi-5 --plan
    edgekit bench --probe tflite-w8a8 --threads 4 --on ssh://pi@bench-3 --json > probe.json
    edgekit estimate mobilenet.zip --device raspberry-pi-5 --target tflite --probe probe.json
    """
    subdued()
    from edgekit.bench.estimate import estimate
    from edgekit.bench.processors import precision_of, setting_of
    from edgekit.device import load, plan_targets

    device = load(device_id)
    first = next((t.target for t in device.targets if not t.when_named), device.targets[0].target)
    (job, *_) = plan_targets([device], [target or first], [scheme] if scheme else [])
    if write_probes is not None:
        _write_probes(write_probes, device, job)
        return
    if subject is None:
        raise UsageError("name a model or a bundle to estimate")
    # What can't be estimated at all is said before a model is exported.
    setting_of(device, job.target, job.delegate, precision_of(job.scheme)[0], 1)
    with progress("counting layers"):
        counted = _subject(subject, weights)
    probes = _probes(probe_files, device, job.target, counted)
    document = estimate(counted, device, job, threads=threads, probes=probes)
    document["plan"] = None
    if plan:
        from edgekit.bench.planner import ranked

        document["plan"] = ranked(counted, device, [target] if target else [], probes=probes)
    emit(document, as_json, lambda: _text(document))


def _subject(spec: str, weights: Path | None) -> Subject:
    from edgekit.bench.subject import bundle_subject, subject_of
    from edgekit.sources import load

    path = Path(spec)
    if path.suffix.lower() == ".zip" or (path / "manifest.json").is_file():
        return bundle_subject(path)
    return subject_of(load(spec, weights=weights))


def _probes(files: Sequence[Path], device: Device, target: str, subject: Subject) -> list[Probe]:
    from edgekit.bench.probes import of_target, read_probes

    found = [probe for path in files for probe in read_probes(path, device, subject)]
    return of_target(found, target)


def _write_probes(folder: Path, device: Device, job: Job) -> None:
    from edgekit.bench.probes import NETWORKS, name_of
    from edgekit.export.probing import write_probe

    folder.mkdir(parents=True, exist_ok=True)
    for network in NETWORKS:
        with progress(f"making the probe {network}"):
            path = write_probe(network, job, folder, name_of(network, job.scheme))
        note(f"wrote {path}")
    note(f"measure them on {device.id}: edgekit bench FILE --json")


# -- text -----------------------------------------------------------------------------------------


def _text(document: Mapping[str, Any]) -> str:
    latency, memory = document["latency_ms"], document["peak_memory_mib"]
    share = round(100 * document["coverage"])
    lines = [
        *_fall_lines(document["falls_off"]),
        "",
        f"estimate for {document['model']} on {document['device']}: {document['target']} "
        f"({document['delegate']}), {document['scheme']}, {document['threads']} threads",
        f"latency p50 {latency['p50']:.3g} ms, {share} % interval {latency['low']:.3g} to "
        f"{latency['high']:.3g} ms; basis: {document['basis']}",
    ]
    if memory is None:
        lines.append("peak memory: nothing was measured of this runtime")
    else:
        lines.append(
            f"peak memory {memory['value']:.0f} MiB ({memory['low']:.0f} to {memory['high']:.0f}): "
            f"runtime {memory['runtime_mib']:.0f}, weights {memory['weights_mib']:.1f}, "
            f"tensors {memory['arena_mib']:.1f}; {memory['basis']}"
        )
    lines += [f"assumed: {text}" for text in document["assumed"]]
    rows = [
        [r["name"], r["kind"], f"{r['ms']:.3g}", f"{r['share']:.0%}"] for r in document["layers"]
    ]
    lines += ["", table(["layers that take the time", "kind", "ms", "share"], rows)]
    if document["plan"]:
        lines += ["", *_plan_lines(document["plan"])]
    return "\n".join(lines)


def _fall_lines(falls: Mapping[str, Any]) -> list[str]:
    slower, delegate = falls["slower"], falls["delegate"]
    lines = []
    for a in falls["accelerators"]:
        lines.append(f"not on {a['name']} ({a['kind']}): {a['reason']}")
    if lines:
        lines.append(
            f"what falls from an NPU to the CPU takes {slower['median']:g} times as long "
            f"(median of {slower['n']}; {slower['p10']:g} to {slower['p90']:g})"
        )
    count = delegate["undelegated_ops"]
    if count is None:
        lines.append(f"operators outside of {delegate['name']}: {delegate['why']}")
    else:
        tail = f", the first: {delegate['first']}" if delegate["first"] else ""
        lines.append(f"operators outside of {delegate['name']}: {count}{tail}")
    return lines


def _plan_lines(plan: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for r in plan:
        latency, times = r["latency_ms"], r["times_first"]
        rows.append(
            [
                f"{r['rank']}{' tie' if r['tied_with_first'] else ''}",
                f"{r['target']} {r['scheme']}",
                r["threads"],
                f"{latency['p50']:.3g} ({latency['low']:.3g} to {latency['high']:.3g})",
                f"{times['ratio']:.2f} ({times['low']:.2f} to {times['high']:.2f})",
                r["basis"],
                r["reason"],
            ]
        )
    headers = ["rank", "way", "threads", "ms", "times the first", "basis", "why"]
    note_ = "ties: the interval of the ratio to the first holds 1; estimates decide nothing there"
    return [table(headers, rows), note_]
