"""From outputs to labels: the answer of ``/v1/predict``."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.runtime.preprocess import (
    AudioPreprocess,
    ImagePreprocess,
    Preprocess,
    TextPreprocess,
)
from edgekit.serve.hosted import Version
from edgekit.serve.refusal import Refusal
from edgekit.serve.work import Outcome

__all__ = ["check_content_type", "largest_raw", "prediction"]

_TYPES: tuple[tuple[type, str, tuple[str, ...]], ...] = (
    (ImagePreprocess, "a picture", ("image/",)),
    (TextPreprocess, "a text", ("text/plain",)),
    (AudioPreprocess, "a recording", ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave")),
)
_MAX_TEXT = 2**18
_ANY = "application/octet-stream"


def check_content_type(preprocess: Preprocess | None, content_type: str) -> None:
    """Refuses bytes that say of themselves that they are not what the model takes.

    Raises:
        Refusal: 400 where the bundle has no preprocessing, 415 for another type.
    """
    for kind, what, types in _TYPES:
        if isinstance(preprocess, kind):
            given = content_type.partition(";")[0].strip().lower()
            if given in ("", _ANY) or given.startswith(types):
                return
            allowed = ", ".join(f"{t}*" if t.endswith("/") else t for t in types)
            raise Refusal(415, f"the model takes {what}: {allowed} or {_ANY}")
    raise Refusal(400, "this model takes tensors only; use /v2/models/NAME/infer")


def largest_raw(version: Version) -> int:
    """The most bytes of a body that are preprocessed. A text is read to its end though the model
    takes its beginning, at about 1 s for each MiB: one client's would hold up all the others."""
    most = version.engine.raw_bytes
    return min(most, _MAX_TEXT) if isinstance(version.preprocess, TextPreprocess) else most


def prediction(version: Version, outcome: Outcome, top: int) -> dict[str, Any]:
    """The answer's document.

    The first output with labels gives them with their shares: those of a softmax, with the bundle's
    temperature, unless the outputs are shares already. Without labels all outputs are given.

    Args:
        version: what computed it.
        outcome: of one sample.
        top: how many labels.

    Raises:
        Refusal: 500, an output is not finite.
    """
    document: dict[str, Any] = {"model_name": version.name, "model_version": version.version}
    for spec, value in zip(version.signature.outputs, outcome.outputs, strict=True):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise Refusal(500, "the model's output is not finite")
        labels = spec.labels or version.labels
        if labels and value.size == len(labels):
            shares = _shares(value.reshape(-1).astype(np.float64), version.temperature)
            order = np.argsort(-shares, kind="stable")[: max(1, top)]
            document["labels"] = [
                {"label": labels[i], "index": int(i), "score": float(shares[i])} for i in order
            ]
            return document
    document["outputs"] = {
        spec.name: value.tolist()
        for spec, value in zip(version.signature.outputs, outcome.outputs, strict=True)
    }
    return document


def _shares(values: np.ndarray[Any, Any], temperature: float) -> np.ndarray[Any, Any]:
    if values.min() >= 0 and abs(values.sum() - 1) < 1e-3:
        return values
    scaled = (values - values.max()) / temperature
    exponents = np.exp(scaled)
    shares: np.ndarray[Any, Any] = exponents / exponents.sum()
    return shares
