"""A plan by itself: the quantization of a model, without converting anything."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from edgekit.artifact import Store, storage_error
from edgekit.compress.folder import PLAN, PROGRAM
from edgekit.data import Samples
from edgekit.errors import UnsupportedError, UsageError
from edgekit.export import accuracy
from edgekit.export.evaluators import labels_of
from edgekit.export.planning import Planned, make_plan
from edgekit.export.reference import load_arrays, refer
from edgekit.export.request import ExportRequest
from edgekit.export.run import samples_of
from edgekit.metrics import top1_correct
from edgekit.model import Model
from edgekit.paired import paired_difference

__all__ = ["SCHEMA", "quantize_model"]

SCHEMA = "edgekit.quantize/1"


def quantize_model(
    model: Model, request: ExportRequest, *, sensitivity: bool = False, store: Store | None = None
) -> dict[str, Any]:
    """Makes the plan of one scheme and writes it, with the program that it belongs to, to a folder.

    Args:
        model: what to quantize.
        request: of it, the scheme (``w8a8`` where none is given), data, ``without``, ``max_drop``
            and ``out``, which gets ``plan.json`` and ``program.pt2``.
        sensitivity: whether every layer is measured; `accuracy.steer` does that by itself.
        store: where what is made is kept.

    Returns:
        The ``edgekit.quantize/1`` document.

    Raises:
        UsageError: several schemes, ``out`` is something else, or there is no calibration data
            that the scheme or what was asked for needs.
        UnsupportedError: the scheme quantizes nothing by a plan.
        GateFailed: ``max_drop`` can't be held; nothing is written.
        BadData: the data do not fit.
    """
    start = time.perf_counter()
    store, listener = store or Store(), request.listener
    scheme = _scheme(request)
    out = request.destination
    if out is None:
        raise UsageError("nothing says where the plan goes", hint="give -o FOLDER")
    _check(out)
    if request.plans:
        raise UsageError("a plan is made here, and one was given", hint="give it to the export")
    if request.calib is None and (sensitivity or request.max_drop is not None):
        raise UsageError("layers are measured on calibration data", hint="give --calib DATA")
    calib, evaluation = samples_of(model, request, [scheme])
    planned = make_plan(model, calib, [scheme], store, listener, without=request.without)
    planned = accuracy.steer(
        model, planned, calib, evaluation, [scheme], request, store, strict=True
    )
    if sensitivity and calib is not None:
        planned = accuracy.measured(model, planned, scheme, calib, store, listener)
    figures = _figures(model, planned, scheme, evaluation, store, request)
    _write(planned, scheme, out)
    plan = accuracy.load_plan(planned, scheme)
    return {
        "schema": SCHEMA,
        "model": model.name,
        "scheme": scheme,
        "folder": str(out),
        "plan": {
            "digest": plan.digest(),
            "program_digest": plan.program_digest,
            "edges": len(plan.edges),
            "kept_float": [{"node": n, "reason": r} for n, r in plan.kept_float],
        },
        **figures,
        "sensitivity": dict(plan.sensitivity) or None,
        "kept_for_accuracy": accuracy.about(planned).get("kept_for_accuracy", []),
        "wall_s": round(time.perf_counter() - start, 3),
    }


def _scheme(request: ExportRequest) -> str:
    scheme = request.schemes[0] if request.schemes else "w8a8"
    if len(request.schemes) > 1:
        raise UsageError("a plan is of one scheme", hint="quantize once for each")
    if scheme == "fp32":
        raise UnsupportedError("fp32 quantizes nothing", hint="give another --scheme")
    return scheme


def _figures(
    model: Model,
    planned: Planned,
    scheme: str,
    evaluation: Samples | None,
    store: Store,
    request: ExportRequest,
) -> dict[str, Any]:
    """How the plan's own evaluation in torch does beside the float model."""
    labels = None if evaluation is None else labels_of(evaluation, range(len(evaluation)))
    names = ("metric", "reference", "value", "drop_points", "drop_ci95")
    if labels is None:
        return dict.fromkeys(names)
    reference = refer(model, planned, evaluation, [scheme], store, request.listener)
    right, mine = (
        top1_correct(rows.reshape(len(rows), -1), labels)
        for rows in (
            load_arrays(reference.path / f"outputs-{kind}.npz")[model.signature.outputs[0].name][
                : len(labels)
            ]
            for kind in ("fp32", scheme)
        )
    )
    found = paired_difference(right, mine)
    value = {"kind": "float", "value": 100 * float(right.mean()), "n": len(labels)}
    interval = [0.0 - 100 * found.high, 0.0 - 100 * found.low]
    drop = 0.0 - 100 * found.difference
    figures = ("top1", value, 100 * float(mine.mean()), drop, interval)
    return dict(zip(names, figures, strict=True))


def _check(out: Path) -> None:
    """Refuses a place where the plan would destroy something else.

    Raises:
        UsageError: ``out`` is no folder, or holds something that is no plan.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is no directory", hint="name a new one")
    if out.is_dir() and not {p.name for p in out.iterdir()} <= {PLAN, PROGRAM}:
        raise UsageError(
            f"{out} holds files that are no plan; it is left alone",
            hint="choose an empty or a new directory",
        )


def _write(planned: Planned, scheme: str, out: Path) -> None:
    """Writes the folder aside and moves it into place."""
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".edgekit-", dir=parent) as aside:
            made = Path(aside) / "made"
            made.mkdir()
            plan = json.loads(planned.plan(scheme).read_text())
            (made / PLAN).write_text(json.dumps(plan, indent=1) + "\n")
            shutil.copyfile(planned.program(scheme), made / PROGRAM)
            if out.exists():
                out.rename(Path(aside) / "previous")
            made.rename(out)
    except OSError as error:
        raise storage_error(parent, error) from error
