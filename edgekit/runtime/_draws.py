"""Draws: what a device keeps in memory until a noised report of it is due."""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from edgekit.errors import BadData
from edgekit.runtime.input_statistics import INPUT_BOUNDS
from edgekit.runtime.privacy import (
    Below,
    Budget,
    LocalPrivacy,
    clamped_bin,
    clamped_class,
    randomized,
)

__all__ = ["Draws", "Report", "Taken"]

_CONFIDENCE: Final = "edgekit.prediction.confidence"
_CLASSES: Final = "edgekit.prediction.classes"

Feature = tuple[str, int]
"""A metric, and of inputs the place in the signature; -1 of others."""

Taken = dict[Feature, tuple[int, int, int]]
"""How many values were seen, the one that was drawn, and how many choices there are."""


class Report(NamedTuple):
    """One noised value.

    Attributes:
        metric: what is counted.
        input: the place in the signature; -1 where it is of no input.
        place: the bin or class.
        choices: how many there are.
        thousandths: of epsilon.
    """

    metric: str
    input: int
    place: int
    choices: int
    thousandths: int


class Draws:
    """Of each feature one value out of all since the last report, each as likely to be it.

    Its owner holds a lock, but for `reports`.

    Args:
        privacy: the figures.
        budget: pays for what is reported.
        classes: how many classes there are; None: they are not reported.
        confidence_bounds: of the bins of confidence.
        below: the noise's generator.
        seed: of the lots; None: the operating system's. Which value is drawn needs no secrecy: that
            a report could come from any value holds of whichever it is.
    """

    def __init__(
        self,
        privacy: LocalPrivacy,
        budget: Budget,
        classes: int | None,
        confidence_bounds: Sequence[float],
        below: Below = secrets.randbelow,
        seed: int | None = None,
    ) -> None:
        self._lot = random.Random(seed).random
        self._thousandths = privacy.thousandths
        self._budget, self._classes, self._below = budget, classes, below
        self._bounds = confidence_bounds
        self._held: Taken = {}

    def prediction(self, confidence: float | None, predicted: int | None) -> None:
        """Sees an answer. What is no finite number is not seen."""
        if confidence is not None:
            with contextlib.suppress(BadData):
                place = clamped_bin(confidence, self._bounds)
                self._see((_CONFIDENCE, -1), place, len(self._bounds) + 1)
        if predicted is not None and self._classes is not None:
            with contextlib.suppress(BadData):
                place = clamped_class(predicted, self._classes)
                self._see((_CLASSES, -1), place, self._classes)

    def inputs(self, bins: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Sees what `InputStatistics.bins` gave for one sample."""
        for index, places in bins:
            for place, (name, bounds) in zip(places, INPUT_BOUNDS.items(), strict=True):
                self._see((f"edgekit.input.{name}", index), place, len(bounds) + 1)

    def take(self, now_s: float) -> Taken:
        """What was drawn, if a report of it is due; it begins anew then."""
        features = sorted(self._held)
        # A budget that is too small for all of them pays for some, by lot.
        while len(features) > self._budget.limit // self._thousandths:
            features.pop(self._below(len(features)))
        if not features or not self._budget.due(now_s, len(features) * self._thousandths):
            return {}
        taken = {feature: self._held[feature] for feature in features}
        self._held = {}
        return taken

    def reports(self, taken: Taken, now_s: float) -> list[Report]:
        """Noises what was taken, once it is paid for; nothing where it cannot be."""
        if not taken or not self._budget.spend(now_s, len(taken) * self._thousandths):
            return []
        return [
            Report(
                metric,
                index,
                randomized(place, choices, self._thousandths, self._below),
                choices,
                self._thousandths,
            )
            for (metric, index), (_, place, choices) in sorted(taken.items())
        ]

    def forget(self) -> None:
        """Drops what was drawn."""
        self._held = {}

    def _see(self, feature: Feature, place: int, choices: int) -> None:
        seen, kept, _ = self._held.get(feature, (0, place, choices))
        seen += 1
        if seen > 1 and self._lot() * seen < 1:
            kept = place
        self._held[feature] = seen, kept, choices
