"""Do the samples that an artifact is judged on look like those that it was calibrated with?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.metrics import passes
from edgekit.parity.gates import Check

__all__ = ["calibration_checks"]

CLIPPED: Final = 0.25
"""With more of an input's values than this outside its range, the plan is for other inputs."""

SPANNED: Final = 1 / 16
"""An input's values span at least this share of its range; with less they have under 4 bits."""

_SUSPECT: Final = ": calibration is suspect, see how its samples are normalised"


def calibration_checks(
    ranges: Mapping[str, tuple[float, float]], feeds: Mapping[str, npt.NDArray[Any]]
) -> list[Check]:
    """Two checks for each input that is quantized as it comes in.

    ``calibration-range`` fails where many of the values are cut off, as when calibration was
    normalised and the model's inputs are not; ``calibration-span`` where they use next to nothing
    of the range, as the other way round. Either way the artifact may give the plan's answers to
    the bit, and both are worthless.

    Args:
        ranges: lowest and highest value that the plan holds of an input, by its name.
        feeds: the samples, arrays [n, *shape] by input name, without extreme probes.
    """
    checks = []
    for name, (low, high) in ranges.items():
        values, where = feeds[name], f"{low:.4g} to {high:.4g}, the range that calibration saw"
        step = (high - low) / 255  # the ends lie up to a step off what calibration saw
        outside = float(np.mean((values < low - step) | (values > high + step)))
        met = passes(outside, CLIPPED, upper=True)
        detail = f"of the samples' values lie outside {where}{'' if met else _SUSPECT}"
        checks.append(Check(f"calibration-range:{name}", met, outside, CLIPPED, detail))
        span = (float(values.max()) - float(values.min())) / (high - low)
        met = passes(span, SPANNED)
        detail = f"is what the samples' values span of {where}{'' if met else _SUSPECT}"
        checks.append(Check(f"calibration-span:{name}", met, span, SPANNED, detail))
    return checks
