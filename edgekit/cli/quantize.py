"""`edgekit quantize`: the quantization plan of a model, and what each layer of it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from edgekit.cli._libraries import subdued
from edgekit.cli._output import emit, json_option, note, verbosity_options
from edgekit.cli._sensitivity import sensitivity_lines, sensitivity_of
from edgekit.errors import UsageError
from edgekit.names import METHODS, scheme_id, unknown

__all__ = ["command"]


@click.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--calib",
    metavar="DATA",
    help="Calibration data; see export. Schemes of weights alone do without, but not --sensitivity "
    "and --max-drop.",
)
@click.option("--eval", "evaluation", metavar="DATA", help="Labelled data that accuracy is from.")
@click.option("--scheme", default="w8a8", show_default=True, metavar="ID", help="What to make.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .safetensors to put into a model that is built by code.",
)
@click.option(
    "--sensitivity",
    is_flag=True,
    help="Measure what quantizing each layer costs; the plan keeps the table.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Keep the fewest, cheapest layers in float that make the plan lose no more accuracy than "
    "this on --eval.",
)
@click.option(
    "--without",
    multiple=True,
    metavar="METHOD",
    help=f"Leave a method of the quantizer out; may be repeated: {', '.join(METHODS)}.",
)
@click.option("--calib-limit", type=click.IntRange(1), default=512, show_default=True)
@click.option("--eval-limit", type=click.IntRange(1), default=2000, show_default=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FOLDER", required=True,
    help="Gets plan.json and program.pt2, the program that the plan belongs to.",
)  # fmt: skip
@json_option
@verbosity_options
def command(
    model: str,
    calib: str | None,
    evaluation: str | None,
    scheme: str,
    weights: Path | None,
    sensitivity: bool,
    max_drop: float | None,
    without: tuple[str, ...],
    calib_limit: int,
    eval_limit: int,
    out: Path,
    as_json: bool,
) -> int:
    """Make the quantization plan of a model, without converting it.

    MODEL is a PROGRAM.pt2, FILE.py:FUNCTION, MODULE:FUNCTION or torchvision:NAME[@WEIGHTS].

    With --sensitivity or --max-drop, a table shows what each layer costs: the outputs' signal to
    noise ratio where only this layer is quantized, what is gained where only this one stays in
    float, and what that costs. Accuracy is that of the plan's own evaluation in torch.

    \b
    Exit codes: 0 made, 1 --max-drop can't be held, 5 the model is not supported, 7 the data do not
    fit, 8 no space.

    \b
    edgekit quantize net.py:build --calib pictures.zip --sensitivity -o plan
    edgekit quantize net.py:build --calib train.npz --eval test.npz --max-drop 0.5 -o plan
    edgekit inspect plan
    """
    if max_drop is not None and math.isnan(max_drop):
        raise UsageError("--max-drop is no number")
    if max_drop is not None and evaluation is None:
        raise UsageError("--max-drop needs labelled data to judge by", hint="give --eval DATA")
    for method in without:
        if method not in METHODS:
            raise UsageError(unknown("method", method, METHODS))
    try:
        scheme = scheme_id(scheme)
    except ValueError as error:
        raise UsageError(str(error)) from error

    with subdued():
        from edgekit import sources
        from edgekit.cli.export import Terminal
        from edgekit.export import ExportRequest
        from edgekit.export.quantizing import quantize_model

        request = ExportRequest(
            schemes=(scheme,),
            calib=calib,
            evaluation=evaluation,
            out=out,
            max_drop=max_drop,
            without=without,
            calib_limit=calib_limit,
            eval_limit=eval_limit,
            listener=Terminal(),
        )
        note(f"opening {model}")
        document = quantize_model(
            sources.load(model, weights=weights), request, sensitivity=sensitivity
        )
    emit(document, as_json, lambda: _text(document))
    return 0


def _text(document: Mapping[str, Any]) -> str:
    plan = document["plan"]
    lines = [
        f"{document['model']}, {document['scheme']}: {plan['edges']} tensors quantized",
        f"digest {plan['digest']}",
    ]
    if document["metric"] is not None:
        low, high = document["drop_ci95"]
        reference = document["reference"]
        lines.append(
            f"{document['metric']} {document['value']:.2f} %, float {reference['value']:.2f} % on "
            f"{reference['n']} samples; drop {document['drop_points']:.2f} [{low:.2f}, {high:.2f}]"
        )
    lines += [f"kept in float: {kept['node']}: {kept['reason']}" for kept in plan["kept_float"]]
    lines += sensitivity_lines(sensitivity_of(document["sensitivity"]))
    return "\n".join([*lines, "", f"plan: {document['folder']}"])
