"""Reference statistics: inputs and answers of the samples that an export was proven on, counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from edgekit.export.reference import Referenced, load_arrays
from edgekit.model import Model
from edgekit.runtime.drift_reference import counted_inputs, counted_predictions
from edgekit.serve.tune import kind_of_scores

__all__ = ["reference_statistics"]

_MOST_SAMPLES: Final = 4_096
"""More would tell shares to less than a point, and read pictures for minutes."""


def reference_statistics(
    model: Model, reference: Referenced, plans: Sequence[str], *, held_out: bool
) -> dict[str, Any]:
    """The ``reference_statistics`` of a bundle (`edgekit.runtime.drift_reference`).

    Args:
        model: whose signature tells inputs and outputs.
        reference: the answers of the float model and of every plan, and their samples.
        plans: names of the plans.
        held_out: whether the samples are none of the model's training or calibration. If not, the
            fleet is not held against the answers: a model is surer of what it has learnt from.
    """
    samples = reference.samples
    if samples is None:
        return {"inputs": {}, "predictions": {}}
    # Spread over all of them: pictures often come class by class.
    rows = np.linspace(0, reference.n - 1, min(reference.n, _MOST_SAMPLES)).astype(int).tolist()
    inputs = {}
    for spec in model.signature.inputs:
        if spec.dtype.startswith("float"):
            found = counted_inputs(samples.feed(i)[spec.name] for i in rows)
            if found is not None:
                inputs[spec.name] = found
    files = {name: reference.path / f"outputs-{name}.npz" for name in ("fp32", *plans)}
    answers = {name: load_arrays(file) for name, file in files.items() if file.exists()}
    predictions: dict[str, Any] = {}
    for spec in model.signature.outputs:
        if len(spec.shape) != 2 or not spec.dtype.startswith("float"):
            continue
        scores = {
            name: arrays[spec.name][: reference.n].reshape(-1, spec.shape[-1])
            for name, arrays in answers.items()
        }
        kind = kind_of_scores(scores["fp32"])
        counted = {name: counted_predictions(own, kind) for name, own in scores.items()}
        predictions[spec.name] = {
            "n": counted["fp32"]["n"],
            "classes": counted["fp32"]["classes"],
            "scores": kind,
            "held_out": held_out,
            "plans": counted,
        }
    return {"inputs": inputs, "predictions": predictions}
