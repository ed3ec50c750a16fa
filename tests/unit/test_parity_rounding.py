"""What float rounding does to dequantized outputs is no error; half a step more is."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.parity import TOLERANCES, ParityAccumulator, ParityReport
from edgekit.signature import TensorSpec

STEP = np.float32(0.027367502450942993)
ZERO = np.float32(-108.0)


def report(offset: float) -> ParityReport:
    """10 outputs a sample, a tenth of which are off by ``offset`` steps near zero.

    The reference is ``(q - zero point) * step``, the candidate ``q * step + offset`` as some
    runtimes compute it: in float32 the two differ by a rounding of the whole range.
    """
    rng = np.random.default_rng(0)
    accumulator = ParityAccumulator([TensorSpec("y", (1, 10))], TOLERANCES["w8a8"], float(STEP))
    shift = np.float32(-ZERO * STEP)
    for _ in range(200):
        q = rng.integers(-128, 128, (1, 10)).astype(np.float32)
        q[0, 0] = ZERO - 11
        moved = q.copy()
        moved[0, 0] += offset
        accumulator.add({"y": (q - ZERO) * STEP}, {"y": moved * STEP + shift})
    return accumulator.report()


def test_two_steps_are_two_steps_however_they_are_dequantized() -> None:
    [stats] = report(2.0).outputs
    assert stats.max_error > 2 * STEP
    assert stats.within_fraction == 1.0


@pytest.mark.parametrize("offset", [2.01, 2.5, 3.0])
def test_more_than_two_steps_are_not(offset: float) -> None:
    [stats] = report(offset).outputs
    assert stats.within_fraction == pytest.approx(0.9)
