"""What lower layers are handed by higher ones, which they must not import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy.typing as npt

__all__ = ["Evaluator", "Unwatched", "Watch"]

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


class Watch(Protocol):
    """Hears how long work goes: a recipe's live view, or nobody (`Unwatched`)."""

    def step(self, done: int, total: int, **figures: float) -> None:
        """``done`` of ``total`` steps, with figures to show beside them (``loss=0.31``)."""

    def metric(self, name: str, value: float, step: int) -> None:
        """One point of a curve that is kept: ``train/loss`` at epoch ``step``."""

    def note(self, message: str) -> None:
        """One line for people."""


class Unwatched:
    """A `Watch` that keeps nothing."""

    def step(self, done: int, total: int, **figures: float) -> None:
        """Nothing."""

    def metric(self, name: str, value: float, step: int) -> None:
        """Nothing."""

    def note(self, message: str) -> None:
        """Nothing."""
