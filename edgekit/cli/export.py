"""`edgekit export`: one model to every runtime of some devices, proven, measured and packed."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli import _output
from edgekit.cli._export_text import text
from edgekit.cli._libraries import subdued
from edgekit.cli._output import emit, json_option, note, table, verbosity_options
from edgekit.errors import EdgekitError, UsageError
from edgekit.names import CALIBRATED, ENGINES, IOS, METHODS, TARGETS, WAIVABLE, unknown

if TYPE_CHECKING:
    from edgekit.device import Job
    from edgekit.export import ExportRequest, ExportResult

__all__ = ["command"]


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="ID|PATH",
    help="Export for this device; may be repeated. An id of 'edgekit devices', or a .toml.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="ID",
    help="Only this target; may be repeated. Without --device: for this machine. "
    "TARGET:DELEGATE takes another delegate than the usual one, as in executorch:vulkan.",
)
@click.option(
    "--scheme",
    "schemes",
    multiple=True,
    metavar="ID",
    help="Quantization scheme; may be repeated. Without it: each target's preferred one.",
)
@click.option(
    "--io",
    "ios",
    multiple=True,
    type=click.Choice(IOS),
    help="What the artifacts take; may be repeated. float32, the default: the model's own tensors. "
    "uint8: the picture itself, [1, H, W, C] in RGB or grey, with scale, mean, std, the model's "
    "order of colours and its layout in the artifact. float32-nhwc, tflite alone: the picture in "
    "that shape and order, normalized by the app, which TFLite Metadata tell how.",
)
@click.option(
    "--calib",
    metavar="DATA",
    help="Calibration data, which quantized schemes need: a .npz, a folder or .zip of pictures "
    "or WAV files, a .tsv, .csv or .jsonl of texts, or FILE.py:FUNCTION.",
)
@click.option(
    "--engine",
    metavar="ID",
    help="Let a vendor's quantizer make the int8 artifacts, in place of edgekit's own: "
    f"{', '.join(ENGINES)}.",
)
@click.option(
    "--without",
    multiple=True,
    metavar="METHOD",
    help=f"Leave a method of the quantizer out; may be repeated: {', '.join(METHODS)}. Without "
    "rounding, which takes most of the time, a plan is made several times sooner.",
)
@click.option(
    "--plan",
    "plans",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="A finished plan of this model to render, as 'edgekit quantize -o' or a recipe wrote it, "
    "for its scheme; may be repeated.",
)
@click.option("--eval", "evaluation", metavar="DATA", help="Labelled data that accuracy is from.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .safetensors to put into a model that is built by code.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Gate: percentage points of accuracy lost against the float model, at most. Where the "
    "plan loses more, the fewest, cheapest layers that make it hold stay in float.",
)
@click.option(
    "--require-verified",
    is_flag=True,
    help="Gate: every artifact ran in its real runtime, and every gate could be judged.",
)
@click.option(
    "--max-float-ops",
    type=click.IntRange(0),
    metavar="N",
    help="Gate: operators left in float per quantized artifact, at most.",
)
@click.option(
    "--require-delegate",
    is_flag=True,
    help="Gate: no operator runs outside of its delegate; fails where a runtime doesn't tell.",
)
@click.option(
    "--pruned-from",
    metavar="MODEL|N",
    help="Gate: fewer parameters are stored than MODEL has, or than N.",
)
@click.option(
    "--waive",
    type=click.Choice(WAIVABLE),
    multiple=True,
    help="Judge and tell this gate, and go on where it doesn't hold; may be repeated.",
)
@click.option(
    "--keep-going", is_flag=True, help="Pack what passes; what fails makes the exit code 1."
)
@click.option("--no-clients", is_flag=True, help="Leave the client code out of the bundle.")
@click.option("--no-bench", is_flag=True, help="Do not measure latency and memory.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="CPU threads to measure with. Without it: the device's figure, within this machine's.",
)
@click.option(
    "--junit",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Write the gates as JUnit XML too, for a CI: a suite per artifact, a case per gate.",
)
@click.option(
    "--calib-limit",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Calibration samples, at most.",
)
@click.option(
    "--eval-limit",
    type=click.IntRange(1),
    default=2000,
    show_default=True,
    help="Evaluation samples, at most.",
)
@click.option("--name", help="The bundle's name. Without it: the model's.")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be made, open no model and write nothing."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="The bundle: a directory, or a file ending in .zip.",
)
@json_option
@verbosity_options
def command(
    model: str,
    devices: tuple[str, ...],
    targets: tuple[str, ...],
    schemes: tuple[str, ...],
    ios: tuple[str, ...],
    calib: str | None,
    engine: str | None,
    without: tuple[str, ...],
    plans: tuple[Path, ...],
    evaluation: str | None,
    weights: Path | None,
    max_drop: float | None,
    require_verified: bool,
    max_float_ops: int | None,
    require_delegate: bool,
    pruned_from: str | None,
    waive: tuple[str, ...],
    keep_going: bool,
    no_clients: bool,
    no_bench: bool,
    threads: int | None,
    junit: Path | None,
    calib_limit: int,
    eval_limit: int,
    name: str | None,
    dry_run: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Quantize a model once and export it for devices, each artifact verified.

    MODEL is a PROGRAM.pt2, FILE.py:FUNCTION, MODULE:FUNCTION or torchvision:NAME[@WEIGHTS].

    The bundle is written when every artifact was made and every gate held; OUT is left as it was
    otherwise. With --keep-going it holds the artifacts that passed.

    \b
    Exit codes: 0 exported, 1 a gate failed, 3 a target's packages are missing, 5 a target or the
    model is not supported, 7 the data do not fit, 8 no space, 9 another export writes to OUT.

    \b
    edgekit export net.py:build --device pixel-8 --calib pictures.zip -o net
    edgekit export net.pt2 --target tflite --scheme fp32 -o net.zip
    edgekit export net.py:build --target openvino --engine nncf --calib pictures.zip -o net
    edgekit export torchvision:mobilenet_v2@IMAGENET1K_V2 --device pixel-8 --device x86-server \\
        --calib train.npz --eval test.npz --max-drop 1 -o mobilenet --json
    """
    from edgekit.device import load as load_device
    from edgekit.device import plan_targets

    if not devices and not targets:
        raise UsageError(
            "nothing says what to export for: give --device ID or --target ID",
            hint=f"devices: see 'edgekit devices'; targets: {', '.join(TARGETS)}, for this machine",
        )
    if max_drop is not None and math.isnan(max_drop):
        raise UsageError("--max-drop is no number")
    if engine is not None and engine not in ENGINES:
        raise UsageError(unknown("engine", engine, ENGINES))
    for method in without:
        if method not in METHODS:
            raise UsageError(unknown("method", method, METHODS))
    if engine is not None and without:
        raise UsageError("--without is for edgekit's own quantizer, not for an --engine")
    devices = devices or ("host",)
    # Before the model is opened, which may take long: most mistakes are in these names.
    jobs = plan_targets([load_device(d) for d in devices], targets, schemes, ios)
    if dry_run:
        _tell_plan(model, jobs, calib, as_json)
        return 0
    if out is None:
        raise UsageError("nothing says where the bundle goes", hint="give -o OUT")

    from edgekit.clients import LANGUAGES
    from edgekit.export import ExportRequest

    request = ExportRequest(
        devices=devices,
        targets=targets,
        schemes=schemes,
        ios=tuple(dict.fromkeys(ios)),
        calib=calib,
        engine=engine,
        without=without,
        plans=plans,
        evaluation=evaluation,
        out=out,
        name=name,
        max_drop=max_drop,
        max_float_ops=max_float_ops,
        require_verified=require_verified,
        require_delegate=require_delegate,
        waive=waive,
        keep_going=keep_going,
        bench=not no_bench,
        clients=() if no_clients else LANGUAGES,
        calib_limit=calib_limit,
        eval_limit=eval_limit,
        threads=threads,
        listener=Terminal(),
    )
    return _export(model, weights, pruned_from, request, junit, as_json)


def _export(
    model: str,
    weights: Path | None,
    pruned_from: str | None,
    request: ExportRequest,
    report: Path | None,
    as_json: bool,
) -> int:
    from edgekit.export import junit

    if report is not None:
        junit.check_place(report)
    try:
        with subdued():
            result = _run(model, weights, pruned_from, request)
    except EdgekitError as error:
        if report is not None:
            junit.write_error(error, report)
        raise
    if report is not None:
        junit.write(result.document, report)
    if result.conversions == 0:
        note("nothing was converted anew: the store held every artifact")
    document = result.document
    emit(document, as_json, lambda: text(document, request.destination))
    return result.exit_code


def _run(
    model: str, weights: Path | None, pruned_from: str | None, request: ExportRequest
) -> ExportResult:
    from edgekit import sources
    from edgekit.export import export_bundle

    if pruned_from is not None:
        number = pruned_from.replace("_", "").replace(",", "")
        claimed = int(number) if number.isdecimal() else sources.load(pruned_from)
        request = replace(request, pruned_from=claimed)
    note(f"opening {model}")
    return export_bundle(sources.load(model, weights=weights), request)


class Terminal:
    """Shows what an export does on stderr; the pipeline calls it from several threads."""

    def __init__(self) -> None:
        self._bar = threading.Lock()

    def note(self, message: str) -> None:
        """See `edgekit.export.request.Listener.note`."""
        note(message)

    @contextlib.contextmanager
    def progress(
        self, description: str, total: int | None = None
    ) -> Iterator[Callable[[int], None]]:
        """A bar; a second one at the same time is one line, as two would overwrite each other."""
        if not self._bar.acquire(blocking=False):
            note(description)
            yield lambda _steps: None
            return
        try:
            with _output.progress(description, total) as advance:
                yield advance
        finally:
            self._bar.release()


def _tell_plan(model: str, jobs: Sequence[Job], calib: str | None, as_json: bool) -> None:
    """What would be made."""
    if calib is None and any(job.scheme in CALIBRATED for job in jobs):
        note("the export itself will need --calib DATA")
    entries: list[dict[str, Any]] = [
        {
            "artifact": job.id,
            "target": job.target,
            "scheme": job.scheme,
            "delegate": job.delegate,
            "io": job.io,
            "devices": list(job.devices),
            "threads": job.threads,
        }
        for job in jobs
    ]
    keys = ("artifact", "target", "scheme", "delegate", "threads")
    rows = [[*(entry[key] for key in keys), " ".join(entry["devices"])] for entry in entries]
    document = {"schema": "edgekit.jobs/1", "model": model, "jobs": entries}
    emit(document, as_json, lambda: table([*keys, "devices"], rows))
