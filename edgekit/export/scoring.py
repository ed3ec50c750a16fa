"""Accuracy of what was exported, paired with the float model's on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgekit.data import Samples
from edgekit.export.document import Row
from edgekit.export.reference import Referenced, load_arrays
from edgekit.metrics import top1, top1_correct
from edgekit.model import Model
from edgekit.paired import paired_difference

__all__ = ["reference_score", "scored"]


def scored(
    model: Model,
    rows: Sequence[Row],
    reference: Referenced,
    evaluation: Samples | None,
) -> list[Row]:
    """Accuracy of every proven artifact, and its paired difference from the float model."""
    labels = reference.labels() if evaluation is not None else None
    if labels is None:
        return list(rows)
    name, n = model.signature.outputs[0].name, reference.n
    float_ = _rows2d(load_arrays(reference.path / "outputs-fp32.npz")[name][:n])
    right = top1_correct(float_, labels)
    made = []
    for row in rows:
        if row.proof is None or row.proof.structural:
            made.append(row)
            continue
        answers = load_arrays(row.proof.path / "outputs.npz").get(name)
        if answers is None or _rows2d(answers[:n]).shape != float_.shape:
            made.append(row)
            continue
        mine = top1_correct(_rows2d(answers[:n]), labels)
        found = paired_difference(right, mine)
        made.append(
            replace(
                row,
                value=float(mine.mean()) * 100,
                # Subtracted rather than negated: no drop is 0.0, not -0.0.
                drop=0.0 - 100 * found.difference,
                drop_ci=(0.0 - 100 * found.high, 0.0 - 100 * found.low),
            )
        )
    return made


def reference_score(
    model: Model, reference: Referenced, evaluation: Samples | None
) -> tuple[float, int] | None:
    """The float model's accuracy in percent and the number of samples; None without labels."""
    labels = reference.labels() if evaluation is not None else None
    if labels is None:
        return None
    name = model.signature.outputs[0].name
    answers = load_arrays(reference.path / "outputs-fp32.npz")[name]
    return top1(_rows2d(answers[: reference.n]), labels) * 100, reference.n


def _rows2d(outputs: Any) -> Any:
    """[n, 1, classes] to [n, classes]."""
    return outputs.reshape(len(outputs), -1)
