"""Input statistics: what is counted of a model's inputs, so that a shift of them is seen.

Three numbers of each sample, none of which its content can be told from, each counted in bins: how
far its mean lies from the reference's, how its spread compares with the reference's, and how rough
it is, which blur, compression and noise change where mean and spread stay as they are.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from edgekit.runtime.border import PictureBorder

__all__ = [
    "DEVIATION_BOUNDS",
    "INPUT_BOUNDS",
    "MEAN_BOUNDS",
    "ROUGHNESS_BOUNDS",
    "InputStatistics",
    "Measured",
    "binned",
    "measured",
]

MEAN_BOUNDS: Final = tuple(i / 4 for i in range(-12, 13))
"""Of (sample mean - reference mean) / reference standard deviation."""

DEVIATION_BOUNDS: Final = tuple(i / 4 for i in range(-12, 13))
"""Of log2(sample standard deviation / reference standard deviation)."""

ROUGHNESS_BOUNDS: Final = tuple(i / 4 for i in range(-24, 3))
"""Of log2(root mean square difference of neighbours / sample standard deviation), which is 0.5 for
white noise and the lower the smoother a sample is. It needs no reference."""

INPUT_BOUNDS: Final[Mapping[str, tuple[float, ...]]] = {
    "mean": MEAN_BOUNDS,
    "deviation": DEVIATION_BOUNDS,
    "roughness": ROUGHNESS_BOUNDS,
}
"""Inner edges of the bins by what is counted, in the order of `binned`."""

_MOST_INPUTS: Final = 64

Array = np.ndarray[Any, Any]
Bins = tuple[int, int, int]


class Measured(NamedTuple):
    """Of one sample: mean and standard deviation of its values, and the root mean square of the
    differences of neighbours, all in the units of the input."""

    mean: float
    deviation: float
    difference: float


def measured(array: Array) -> Measured | None:
    """The numbers of one sample; None where it is empty, no float, or not finite.

    Neighbours are those along the two longest axes but the first, which is the batch's: height and
    width of a picture, whichever its layout, time and band of a spectrogram.
    """
    if not array.size or array.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):  # of what is not finite
        found = Measured(
            float(array.mean(dtype=np.float64)),
            float(array.std(dtype=np.float64)),
            _difference(array if array.dtype.itemsize >= 4 else array.astype(np.float32)),
        )
    return found if all(map(math.isfinite, found)) else None


def binned(sample: Measured, mean: float, std: float) -> Bins:
    """Bins of a sample's mean, deviation and roughness, with the reference's mean and standard
    deviation."""
    return (
        bisect_left(MEAN_BOUNDS, (sample.mean - mean) / std),
        bisect_left(DEVIATION_BOUNDS, _log2(sample.deviation, std)),
        bisect_left(ROUGHNESS_BOUNDS, _log2(sample.difference, sample.deviation)),
    )


class InputStatistics:
    """Counts inputs in units of those of the data that a bundle tells of.

    Args:
        reference: the ``reference_statistics`` of a bundle's manifest: under ``inputs``, by name,
            ``mean`` (of all values) and ``std`` (the root of the mean variance within a sample).
        names: the model's inputs in the order of its signature, which is how they are told apart.
        border: of an artifact that takes pixels, which are then counted as what it makes of them.
    """

    def __init__(
        self,
        reference: Mapping[str, Any] | None,
        names: Iterable[str],
        border: PictureBorder | None = None,
    ) -> None:
        known = (reference or {}).get("inputs") or {}
        self._scales: dict[str, tuple[int, float, float]] = {}
        for i, name in enumerate(itertools.islice(names, _MOST_INPUTS)):
            about = known.get(name) or {}
            mean, std = about.get("mean"), about.get("std")
            if isinstance(mean, int | float) and isinstance(std, int | float) and std > 0:
                self._scales[name] = (i, float(mean), float(std))
        self._pixels = None if border is None else (border.input, *_factors(border))

    def bins(self, inputs: Mapping[str, Array]) -> list[tuple[int, Bins]]:
        """Index of the input, and bins of its mean, spread and roughness, for each that is known.

        Args:
            inputs: arrays by name, of one sample; values that are not finite are not counted.
        """
        found = []
        for name, (index, mean, std) in self._scales.items():
            array = inputs.get(name)
            if not isinstance(array, np.ndarray):
                continue
            sample = measured(self._tensor(name, array))
            if sample is not None:
                found.append((index, binned(sample, mean, std)))
        return found

    def _tensor(self, name: str, array: Array) -> Array:
        """Pixels as the model's own input has them, but for the layout."""
        if self._pixels is None or array.dtype != np.uint8 or name != self._pixels[0]:
            return array
        _, factor, offset = self._pixels
        if array.ndim < 2 or array.shape[-1] != len(factor):
            return array
        found: Array = array * factor + offset
        return found


def _factors(border: PictureBorder) -> tuple[Array, Array]:
    """Factor and offset by the picture's channels: RGB, whatever order the model takes."""
    step = -1 if border.color == "BGR" else 1
    factor, offset = (np.asarray(v, np.float32)[::step] for v in (border.factor, border.offset))
    return factor, offset


def _difference(array: Array) -> float:
    axes = range(1, array.ndim) if array.ndim > 1 else range(array.ndim)
    longest = sorted(axes, key=lambda axis: array.shape[axis])[-2:]
    squares = []
    for axis in longest:
        if array.shape[axis] > 1:
            step = np.diff(array, axis=axis)
            squares.append(float(np.square(step).mean(dtype=np.float64)))
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0


def _log2(value: float, unit: float) -> float:
    return math.log2(value / unit) if value > 0 and unit > 0 else -math.inf
