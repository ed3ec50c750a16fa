"""Running sums over one output: enough to judge it at the end, without keeping any tensor."""

from __future__ import annotations

import math
from array import array
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.metrics import Floats, agreement, rounding_slack
from edgekit.parity.gates import Tolerance
from edgekit.signature import TensorSpec

__all__ = ["Array", "OutputTally", "class_axis"]

Array = npt.NDArray[Any]

MIN_WRONG: Final = 3
"""A sample is never bad for fewer wrong elements than this, unless one is far off."""


def class_axis(spec: TensorSpec) -> int | None:
    """The axis along which an output's channels or classes lie; None for one without any.

    ``C`` in the layout, else the one axis as long as the labels, else the last.
    """
    if not spec.shape:
        return None
    if "C" in spec.layout:
        return spec.layout.index("C")
    fitting = [i for i, n in enumerate(spec.shape) if spec.labels and n == len(spec.labels)]
    return fitting[-1] if fitting else len(spec.shape) - 1


class OutputTally:
    """Sums of one output over the samples added so far.

    Args:
        spec: the output.
        step: its quantization step, or None.
        tolerance: the figures to judge by.
        batch: samples in one call; the first axis counts them where it is that long.
    """

    def __init__(
        self, spec: TensorSpec, step: float | None, tolerance: Tolerance, batch: int
    ) -> None:
        self.spec, self.tolerance = spec, tolerance
        self.step = None if step is None else step * tolerance.grain
        self.discrete = step is None and not spec.dtype.startswith("float")
        self.rows = batch if spec.shape[:1] == (batch,) else 1
        self.axis = class_axis(spec)
        self.calls = self.compared = self.elements = 0
        self.faults: dict[str, str] = {}
        self.identical = True
        self.non_finite = self.right = self.close = self.n_decisive = self.n_agreed = 0
        self.ref_energy = self.cand_energy = self.err_energy = self.dot = 0.0
        self.max_error = self.err_sum = 0.0
        # Four figures a sample are all that is kept of it.
        self.sample_ref, self.sample_err = array("d"), array("d")
        self.sample_far, self.sample_wrong = array("d"), array("d")
        channels = spec.shape[self.axis] if self.axis is not None else 0
        self.channel_ref, self.channel_err = np.zeros(channels), np.zeros(channels)

    def add(self, reference: Array, candidate: Array) -> None:
        """One call's output, both sides; a misfit is recorded and its values aren't compared."""
        self.calls += 1
        where = f"call {self.calls - 1}"
        if str(candidate.dtype) != self.spec.dtype:
            self.faults.setdefault("dtype", f"{where}: {candidate.dtype}, not {self.spec.dtype}")
        if candidate.shape != self.spec.shape:
            self.faults.setdefault("shape", f"{where}: {candidate.shape}, not {self.spec.shape}")
            return
        if candidate.dtype.kind not in "fiub":
            return
        self.compared += 1
        self.identical &= str(candidate.dtype) == self.spec.dtype
        with np.errstate(invalid="ignore", over="ignore"):
            ref = reference.reshape(self.rows, -1).astype(np.float64)
            cand = candidate.reshape(self.rows, -1).astype(np.float64)
            self.elements += ref.size
            if ref.size == 0:
                return
            finite = bool(np.isfinite(ref).all()), bool(np.isfinite(cand).all())
            if not all(finite):
                self.non_finite += 1
                side = "candidate" if finite[0] else "reference"
                self.faults.setdefault("finite", f"{where}: the {side} holds NaN or infinity")
            if self.discrete:
                self._add_discrete(ref, cand)
            else:
                self._add_numeric(ref, cand, rounding_slack(reference, candidate))

    def miss(self) -> None:
        """One call that lacks this output."""
        self.calls += 1

    def _add_discrete(self, ref: Floats, cand: Floats) -> None:
        equal = ref == cand
        self.identical &= bool(equal.all())
        self.right += int(equal.sum())
        self.max_error = max(self.max_error, float(np.abs(cand - ref).max()))
        self.sample_wrong.extend(1 - equal.mean(axis=1))

    def _add_numeric(self, ref: Floats, cand: Floats, slack: float) -> None:
        tolerance, size = self.tolerance, np.abs(ref)
        delta = cand - ref
        error, squared = np.abs(delta), delta * delta
        self.identical &= bool((error == 0).all())
        self.max_error = float(np.maximum(self.max_error, error.max()))
        ref_rows, err_rows = (ref * ref).sum(axis=1), squared.sum(axis=1)
        self.ref_energy += float(ref_rows.sum())
        self.err_energy += float(err_rows.sum())
        self.err_sum += float(delta.sum())
        self.cand_energy += float((cand * cand).sum())
        self.dot += float((ref * cand).sum())
        if self.step is not None:
            # Exactly two dequantized steps apart may be a rounding more than two steps: of the
            # values, or of an int8 range where a runtime computes q * step + offset.
            excess = error - slack * (size + error + 256 * self.step)
            self.right += int(np.count_nonzero(excess <= tolerance.within_steps * self.step))
        else:
            excess = error - 10 ** (-tolerance.worst_sample_db / 20) * size
        if tolerance.rtol is not None:
            self.close += int(np.count_nonzero(error <= tolerance.atol + tolerance.rtol * size))
        n = excess.shape[1]
        # More than the fraction is wrong if, and only if, the nth largest error is.
        nth = max(int(tolerance.worst_sample_fraction * n) + 1, MIN_WRONG)
        enough = nth <= n
        self.sample_ref.extend(ref_rows)
        self.sample_err.extend(err_rows)
        self.sample_far.extend(excess.max(axis=1))
        self.sample_wrong.extend(
            np.partition(excess, n - nth, axis=1)[:, n - nth] if enough else [-math.inf] * len(ref)
        )
        if self.axis is not None:
            shape = self.spec.shape
            self._add_channels(ref.reshape(shape), squared.reshape(shape), self.axis)
            self._add_decisions(ref.reshape(shape), cand.reshape(shape), self.axis, slack)

    def _add_channels(self, ref: Floats, squared: Floats, axis: int) -> None:
        others = tuple(i for i in range(ref.ndim) if i != axis)
        self.channel_ref += (ref * ref).sum(axis=others)
        self.channel_err += squared.sum(axis=others)

    def _add_decisions(self, ref: Floats, cand: Floats, axis: int, slack: float) -> None:
        if ref.shape[axis] < 2:
            return
        margin: float | Floats
        if self.step is None:
            rms = np.sqrt((ref * ref).mean(axis=axis))
            margin = self.tolerance.decisive_steps * self.tolerance.equivalent_step(1.0) * rms
        else:
            margin = self.tolerance.decisive_steps * self.step
            margin = margin + 2 * slack * np.abs(ref).max(axis=axis)
        found = agreement(ref, cand, margin, axis=axis)
        self.n_decisive += found.n_decisive
        self.n_agreed += found.n_agreed

    @property
    def samples(self) -> int:
        """Samples compared so far."""
        return self.compared * self.rows

    @property
    def unit(self) -> float:
        """The step by which errors are counted, in the output's units; see `Tolerance`."""
        if self.step is not None:
            return self.step
        if self.ref_energy == 0:
            return self.tolerance.atol / self.tolerance.within_steps
        return self.tolerance.equivalent_step(math.sqrt(self.ref_energy / self.elements))
