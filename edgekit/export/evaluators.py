"""The task metric of a model on some samples: what layers' sensitivity is told in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.data import Samples
from edgekit.metrics import cosine, top1
from edgekit.signature import Signature

__all__ = ["TaskMetric", "labels_of"]

Arrays = Mapping[str, npt.NDArray[Any]]


class TaskMetric:
    """Top-1 against labels, else agreement with the float model, else cosine to its answers.

    Agreement is for what looks like scores: a first output [1, classes] whose rows are not all of
    length 1, as embeddings are.

    Args:
        signature: of the model.
        labels: class indices [n] of the samples, if they have any.
    """

    def __init__(self, signature: Signature, labels: npt.NDArray[np.int64] | None = None) -> None:
        self._output = signature.outputs[0]
        self._labels = labels
        self._kind = "cosine"
        if labels is not None:
            self._kind = "top1"
        elif len(self._output.shape) == 2 and self._output.shape[-1] > 1:
            self._kind = "agreement"

    @property
    def name(self) -> str:
        """``top1``, ``agreement`` or ``cosine``; certain once it was called."""
        return self._kind

    def __call__(self, outputs: Arrays, exact: Arrays) -> float:
        """See `edgekit.protocols.Evaluator`."""
        mine = outputs[self._output.name].reshape(len(outputs[self._output.name]), -1)
        wanted = exact[self._output.name].reshape(mine.shape)
        if self._kind == "agreement" and np.allclose(np.linalg.norm(wanted, axis=1), 1, atol=1e-3):
            self._kind = "cosine"
        if self._kind == "top1":
            return 100 * top1(mine, self._labels)  # type: ignore[arg-type]
        if self._kind == "agreement":
            return 100 * top1(mine, wanted.argmax(1))
        return float(np.mean([cosine(w, m) for w, m in zip(wanted, mine, strict=True)]))


def labels_of(samples: Samples, rows: list[int] | range) -> npt.NDArray[np.int64] | None:
    """Class indices of some samples, or None where one has none."""
    found = [samples.label(i) for i in rows]
    return None if any(label is None for label in found) else np.asarray(found, np.int64)
