"""The figures that verification demands, per scheme, and the record of one judged figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["MIN_DISCRETE", "TOLERANCES", "Check", "Tolerance", "json_number"]

MIN_DISCRETE: Final = 8
"""Smallest integer output of which most elements being wrong says more than a tie that fell."""


@dataclass(frozen=True)
class Tolerance:
    """What a candidate must meet against its reference.

    **In steps.** The *unit* of an output is its quantization step where it has one. Where it has
    none (the output is float) the unit is the step of the uniform quantizer whose noise would just
    meet ``sqnr_db``: ``sqrt(12) * rms * 10**(-sqnr_db / 20)``, rms over the whole reference, since
    such a quantizer errs by step / sqrt(12) (Bennett, 1948). So one rule serves every scheme.

    **The worst sample.** Means hide a fault in one sample of a thousand, and a limit in dB alone is
    unfair to a sample of low energy: correct integer kernels round differently by a step here and
    there, and a sample whose rms is 3 steps then has 15 dB with nothing wrong. So a sample is *bad*
    if

    - any of its elements is off by more than ``far_steps`` units, whatever its SQNR: 16 steps are
      a sixteenth of an int8 range; or
    - its SQNR is under ``worst_sample_db`` and more than ``worst_sample_fraction`` of its elements
      (and three at least, as one in a thousand may be off anyway) are off by more than
      ``within_steps`` units.

    No bad sample is allowed. Two integer runtimes against the float evaluation of the same int8
    graph (a mobile CNN of 81 quantized tensors, 499 pictures, 1000 classes) had rms errors of 0.7
    and 0.8 steps, none over 5 and 8 steps, lowest samples of 23.1 and 20.9 dB, and no bad sample;
    the float model in their place had 280.

    Errors of float outputs are counted after an allowance of
    ``10**(-worst_sample_db / 20)`` of the reference element, as float errors grow with the value.
    The same two limits judge every channel over all samples: a channel is bad if its SQNR is under
    ``worst_sample_db`` and its rms error over ``within_steps`` units. This finds the one class of
    ten thousand that is always zero, which no mean can see.

    Attributes:
        sqnr_db: least SQNR over all samples pooled, dB.
        within_steps: an element is right if it is off by at most this many quantization steps.
        within_fraction: least fraction of right elements, for outputs with a step.
        agreement: least fraction of decisive decisions that agree; for integer and bool outputs
            without a step, least fraction of equal elements.
        decisive_steps: a decision is decisive if its margin exceeds this many units; twice
            ``within_steps``, so that a right output can't flip one. For float outputs the unit
            is taken from the decision's own scores.
        atol: absolute tolerance in the output's units, for ``rtol`` and for a float reference that
            is zero throughout.
        rtol: if set, every element must meet ``|c - r| <= atol + rtol * |r|``.
        worst_sample_db: see above.
        worst_sample_fraction: see above.
        far_steps: see above.
        bias_steps: largest mean error of an output with a step, in steps, over 64 elements or more
            (over n fewer, ``sqrt(64 / n)`` times that). A zero point that is off by one moves every
            element by one step, which the other figures let pass on an output of high energy.
        grain: quantization steps that count as one, for outputs that have steps.
        repeats: runs of one input that must be bit-identical.
    """

    sqnr_db: float = 35.0
    within_steps: float = 2.0
    within_fraction: float = 0.999
    agreement: float = 0.995
    decisive_steps: float = 4.0
    atol: float = 1e-4
    rtol: float | None = None
    worst_sample_db: float = 20.0
    worst_sample_fraction: float = 0.05
    far_steps: float = 16.0
    bias_steps: float = 0.5
    grain: float = 1.0
    repeats: int = 20

    def equivalent_step(self, rms: float) -> float:
        """The unit of a float output of that rms; see above."""
        return math.sqrt(12) * rms * 10 ** (-self.sqnr_db / 20)


_WIDE: Final = Tolerance(sqnr_db=50.0, worst_sample_db=35.0, grain=8.0)
"""Multipliers of LiteRT's kernels for int16 have 15 bits, so that a right layer is off by 2**-15 of
a value, which is a step at the range's end, and 50 layers are off by some: of the outputs of
trained MobileNetV2, MobileNetV3-Small and ResNet-18 98.4, 83.8 and 97.8 % were within 2 steps of 16
bits and all within 9, at 75.8, 68.4 and 72.4 dB; EfficientNet-Lite1 had 62.6 dB. So 8 steps count
as one here, which is a sixteenth to a thirty-second of an 8-bit step, and 15 dB more are demanded.
"""

_FP16: Final = Tolerance(sqnr_db=40.0, worst_sample_db=25.0)

TOLERANCES: Final[dict[str, Tolerance]] = {
    "w8a8": Tolerance(),
    "w8a8-dyn": Tolerance(),
    "w8a16": _WIDE,
    # Weights alone are quantized, and reference and candidate hold the same ones: what differs is
    # float arithmetic, at worst in half precision.
    "w8": _FP16,
    "w4": _FP16,
    "fp16": _FP16,
    "fp32": Tolerance(sqnr_db=60.0, worst_sample_db=45.0, rtol=1e-3),
}
"""The frozen figures by scheme. Every scheme of `edgekit.names.SCHEMES` has its own."""


@dataclass(frozen=True)
class Check:
    """One judged figure.

    Attributes:
        name: kebab-case, with the output's name after a colon where it is about one output.
        passed: None where it could not be judged.
        value: what was measured; NaN and infinity are possible, see `to_json`.
        limit: what it was held against.
        detail: one line for a person.
    """

    name: str
    passed: bool | None
    value: float | None = None
    limit: float | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; a value JSON can't hold is null, with ``flag`` nan, inf or -inf."""
        out: dict[str, Any] = {
            "name": self.name,
            "passed": self.passed,
            "value": json_number(self.value),
            "limit": json_number(self.limit),
            "detail": self.detail,
        }
        if self.value is not None and not math.isfinite(self.value):
            out["flag"] = str(float(self.value))
        return out


def json_number(value: float | None) -> float | None:
    """``value`` if JSON can hold it, else None."""
    return value if value is not None and math.isfinite(value) else None
