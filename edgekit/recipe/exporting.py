"""An export as a stage's work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from edgekit.errors import GateFailed
from edgekit.export import ExportRequest, export_bundle
from edgekit.model import Model
from edgekit.recipe.context import Run
from edgekit.recipe.document import EXPORT
from edgekit.schemas import validate

__all__ = ["BUNDLE", "export"]

BUNDLE: Final = "bundle"


def export(model: Model, request: ExportRequest, run: Run) -> Mapping[str, Any]:
    """Exports a model into the stage's folder: ``bundle``, and ``export.json`` beside it.

    A gate that does not hold is one of the run's (`Run.gate`): then there is no bundle, the
    document says why, and later stages can still tell of it.

    Args:
        model: what is exported.
        request: what to make of it; its ``out`` and ``listener`` are the stage's.
        run: the stage's.

    Returns:
        The ``edgekit.export/1`` document.

    Raises:
        GateFailed: an artifact could not be made or is not what the plan says; with the request's
            ``keep_going`` only if there is no bundle then, and else a gate that failed.
        EdgekitError: see `edgekit.export_bundle`.
    """
    result = export_bundle(model, replace(request, out=run.out / BUNDLE, listener=run))
    document = dict(result.document)
    if document["bundle"] is not None:
        document["bundle"] = BUNDLE  # beside the document, wherever both go
    validate(document)
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
    (run.out / EXPORT).write_text(text + "\n", encoding="utf-8")
    broken = [row for row in document["artifacts"] if row["status"] == "failed"]
    if broken and not (request.keep_going and document["bundle"]):
        raise GateFailed("; ".join(f"{row['id']}: {row['reason']}" for row in broken))
    for row in broken:
        run.gate(f"made {row['id']}", False, row["reason"] or "")
    for gate in document["gates"]:
        text = "" if gate["limit"] is None else f"{_said(gate['value'])} of {_said(gate['limit'])}"
        run.gate(f"{gate['name']} {gate['artifact']}", gate["passed"], text)
    return document


def _said(value: Any) -> str:
    if value is None:
        return "nothing measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
