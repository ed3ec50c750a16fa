"""A plan and its program in a folder, as `edgekit quantize` writes them."""

from __future__ import annotations

import json
from pathlib import Path

from edgekit.compress.graph import program_digest, save_program
from edgekit.compress.plan import SCHEMA, QuantPlan
from edgekit.compress.ptq import Quantized
from edgekit.errors import BadData
from edgekit.sources.pt2 import load_program

__all__ = ["PLAN", "PROGRAM", "load_quantized", "save_quantized"]

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
