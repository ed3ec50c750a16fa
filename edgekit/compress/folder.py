"""A plan and its program in a folder, as `edgekit quantize` writes them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import torch

from edgekit.compress.graph import program_digest, save_program, with_constants
from edgekit.compress.plan import SCHEMA, QuantPlan
from edgekit.compress.ptq import Quantized
from edgekit.errors import BadData, UsageError
from edgekit.sources.pt2 import load_program

__all__ = ["PLAN", "PROGRAM", "check_origin", "load_quantized", "on_program", "save_quantized"]

PLAN, PROGRAM = "plan.json", "program.pt2"


def save_quantized(quantized: Quantized, folder: Path) -> Path:
    """Writes ``plan.json`` and ``program.pt2``; variants are not kept.

    Args:
        quantized: what to write.
        folder: made where it is missing; given back.

    Raises:
        OSError: no space, or no permission.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_program(quantized.program, folder / PROGRAM)
    (folder / PLAN).write_text(json.dumps(quantized.plan.to_json(), indent=1) + "\n")
    return folder


def load_quantized(folder: Path) -> Quantized:
    """What `save_quantized` or `edgekit quantize` wrote.

    Raises:
        BadData: a file is missing or unreadable, or the two don't belong together.
        TrustError: the program's file holds more than a program (`edgekit.sources.pt2`).
    """
    hint = "name the folder that 'edgekit quantize -o' or 'save_quantized' wrote"
    for name in (PLAN, PROGRAM):
        if not (folder / name).is_file():
            raise BadData(f"{folder} holds no plan: {name} is missing", hint=hint)
    try:
        document = json.loads((folder / PLAN).read_text())
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']!r}, not {SCHEMA!r}")
        plan = QuantPlan.from_json(document)
    except (ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise BadData(f"{folder / PLAN} is no plan: {said}", hint=hint) from error
    program = load_program(folder / PROGRAM)
    if program_digest(program) != plan.program_digest:
        raise BadData(
            f"{folder}: {PLAN} was made from another program than the {PROGRAM} beside it",
            hint="take both from one folder",
        )
    return Quantized(program, plan)


def check_origin(
    quantized: Quantized, program: torch.export.ExportedProgram, model: str, what: str = "the plan"
) -> None:
    """Refuses a plan that was not made of a model.

    Args:
        quantized: program and plan.
        program: the model's own canonical program.
        model: its name, for messages.
        what: the plan's.

    Raises:
        UsageError: it was made of another model, or of this one with other weights.
    """
    plan = quantized.plan
    if (plan.origin or plan.program_digest) != program_digest(program):
        raise UsageError(
            f"{what} was not made from {model!r} as it is: it is another model's, or the weights "
            "are others now",
            hint="quantize this model: edgekit quantize, or edgekit.compress.ptq.post_training",
        )


def on_program(quantized: Quantized, program: torch.export.ExportedProgram) -> Quantized:
    """The same, with what a vetted file leaves out: example inputs and the layers' names.

    Args:
        quantized: program and plan.
        program: the model's own canonical program, whose graph it shares but for the weights, or
            for a few channels.
    """
    loaded = quantized.program
    if loaded.example_inputs is not None:
        return quantized
    values = {**loaded.state_dict, **loaded.constants}
    with contextlib.suppress(KeyError):
        whole = with_constants(program, values)
        if program_digest(whole) == quantized.plan.program_digest:
            return dataclasses.replace(quantized, program=whole)
    loaded.example_inputs = program.example_inputs
    return quantized
