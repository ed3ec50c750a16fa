"""What lower layers are handed by higher ones, which they must not import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

__all__ = ["Evaluator"]

Arrays = Mapping[str, npt.NDArray[Any]]


class Evaluator(Protocol):
    """A task metric over samples that it knows; more is better."""

    @property
    def name(self) -> str:
        """Of the metric: ``top1``, ``agreement``, ``cosine``."""

    def __call__(self, outputs: Arrays, exact: Arrays) -> float:
        """The figure of a candidate, in percent (``cosine``: -1 to 1).

        Args:
            outputs: the candidate's answers, arrays [n, *output shape] by output name.
            exact: those of the float model.
        """
