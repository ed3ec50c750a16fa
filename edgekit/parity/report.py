"""Judges a candidate sample by sample, and itself on every run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.errors import BadData
from edgekit.parity.gates import Check, Tolerance, json_number
from edgekit.parity.judge import OutputStats, judge, summarize
from edgekit.parity.mutants import Outputs, Pair, known_bad_mutants
from edgekit.parity.tally import OutputTally
from edgekit.signature import TensorSpec

__all__ = ["ParityAccumulator", "ParityReport", "self_test"]

KEPT_CALLS: Final = 16
KEPT_ELEMENTS: Final = 65_536
"""References kept for the self-test: the first calls, until either limit; one at least."""

REMEMBERED: Final = 16
_self_tests: dict[str, Check] = {}
"""Results of the last self-tests, which take a second or more, by what they depend on."""


@dataclass(frozen=True)
class ParityReport:
    """What was judged and measured.

    Attributes:
        checks: every judged figure.
        outputs: statistics per output, in the signature's order.
        samples: samples compared.
    """

    checks: tuple[Check, ...]
    outputs: tuple[OutputStats, ...]
    samples: int

    @property
    def passed(self) -> bool:
        """No check failed. One that could not be judged does not fail here; see `unjudged`."""
        return bool(self.checks) and all(check.passed is not False for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def unjudged(self) -> tuple[Check, ...]:
        """The checks that could not be judged."""
        return tuple(check for check in self.checks if check.passed is None)

    @property
    def identical(self) -> bool:
        """Every value of every output was equal."""
        return bool(self.outputs) and all(stats.identical for stats in self.outputs)

    def summary(self) -> dict[str, Any]:
        """The worst figure over all outputs, as the export document holds it.

        A figure is null where no output has it, or where it is not a finite number: inf for equal
        outputs (then ``identical`` is true), NaN for non-finite ones (then a check failed).
        """
        return {
            "sqnr_db": _least(stats.sqnr_db for stats in self.outputs),
            "agreement": _least(stats.agreement for stats in self.outputs),
            "worst_sample_db": _least(stats.worst_sample_db for stats in self.outputs),
            "n": self.samples,
            "identical": self.identical,
        }

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary without NaN or infinity."""
        return {
            "passed": self.passed,
            "summary": self.summary(),
            "checks": [check.to_json() for check in self.checks],
            "outputs": [stats.to_json() for stats in self.outputs],
        }


class ParityAccumulator:
    """Judges candidate outputs against reference outputs, one call at a time.

    Nothing is kept of a call but sums and four figures per sample and output (and the first few
    references, for the self-test), so ten thousand samples of a thousand outputs cost about a
    megabyte.

    Args:
        outputs: the signature's outputs, in order; the candidate must give the same names in the
            same order, with these shapes and dtypes.
        tolerance: the figures to judge by, out of `TOLERANCES`.
        steps: quantization step of the outputs, in the units in which they are handed over: one for
            all, or by name; None for a float output. Integer outputs without a step are compared
            for equality; hand over quantized ones dequantized.
        batch: samples in one call. Outputs whose first axis is that long are judged row by row.

    Raises:
        BadData: no outputs, a step of an unknown output, or one that isn't positive and finite.
    """

    def __init__(
        self,
        outputs: Sequence[TensorSpec],
        tolerance: Tolerance,
        steps: float | Mapping[str, float | None] | None = None,
        *,
        batch: int = 1,
    ) -> None:
        self.outputs, self.tolerance, self.batch = tuple(outputs), tolerance, batch
        names = [spec.name for spec in self.outputs]
        if not names or batch < 1:
            raise BadData(f"parity needs outputs and a batch of 1 or more: {names}, {batch}")
        by_name = steps if isinstance(steps, Mapping) else dict.fromkeys(names, steps)
        for name, step in by_name.items():
            if name not in names:
                raise BadData(f"step of unknown output {name!r}; outputs: {', '.join(names)}")
            if step is not None and not (step > 0 and math.isfinite(step)):
                raise BadData(f"output {name!r}: a step is positive and finite, got {step}")
        self.steps = {name: by_name.get(name) for name in names}
        self._tallies = {
            spec.name: OutputTally(spec, self.steps[spec.name], tolerance, batch)
            for spec in self.outputs
        }
        self._calls = 0
        self._order_fault = ""
        self._kept: list[Outputs] = []
        self._kept_elements = 0

    def add(self, reference: Outputs, candidate: Outputs) -> None:
        """Takes the outputs of one call from both sides; neither is changed or kept.

        A candidate that doesn't fit the signature is recorded and fails the report.

        Raises:
            BadData: the reference lacks an output or has another shape; that is the caller's fault
                and says nothing of the candidate.
        """
        for spec in self.outputs:
            shape = np.shape(reference[spec.name]) if spec.name in reference else None
            if shape != spec.shape:
                raise BadData(f"reference output {spec.name!r}: shape {shape}, not {spec.shape}")
        names = [spec.name for spec in self.outputs]
        if list(candidate) != names and not self._order_fault:
            got = ", ".join(map(str, candidate)) or "none"
            self._order_fault = (
                f"call {self._calls}: got {got}; the signature has {', '.join(names)}"
            )
        self._calls += 1
        for name, tally in self._tallies.items():
            if name in candidate:
                tally.add(np.asarray(reference[name]), np.asarray(candidate[name]))
            else:
                tally.miss()
        self._keep(reference)

    def report(self, *, self_testing: bool = True) -> ParityReport:
        """Judges everything added so far.

        With ``self_testing`` (always, but within the self-test) known-bad mutants of the first
        references go through an accumulator like this one; if one of them passes, this report is
        void: its check ``self-test`` fails and names it.
        """
        tallies = self._tallies.values()
        compared = sum(tally.elements for tally in tallies)
        checks = [
            Check("outputs", not self._order_fault, detail=self._order_fault),
            Check(
                "samples", compared > 0, self._calls * self.batch, 1, f"{compared} values compared"
            ),
        ]
        for tally in tallies:
            checks += judge(tally)
        if self_testing:
            checks.append(self._self_test())
        outputs = tuple(summarize(tally) for tally in tallies)
        return ParityReport(tuple(checks), outputs, self._calls * self.batch)

    def judge(self, pairs: Iterable[Pair]) -> ParityReport:
        """The report on other (reference, candidate) calls, by the same figures from scratch."""
        fresh = ParityAccumulator(self.outputs, self.tolerance, self.steps, batch=self.batch)
        for reference, candidate in pairs:
            fresh.add(reference, candidate)
        return fresh.report(self_testing=False)

    def _keep(self, reference: Outputs) -> None:
        size = sum(math.prod(spec.shape) for spec in self.outputs)
        fits = self._kept_elements + size <= KEPT_ELEMENTS and len(self._kept) < KEPT_CALLS
        if fits or not self._kept:
            kept = {s.name: np.array(reference[s.name], dtype=s.dtype) for s in self.outputs}
            self._kept.append(kept)
            self._kept_elements += size

    def _self_test(self) -> Check:
        """The self-test on the kept references; artifacts held against the same ones share it."""
        key = self._fingerprint()
        found = _self_tests.get(key)
        if found is None:
            found = self._test_myself()
            for old in list(_self_tests)[: max(len(_self_tests) - REMEMBERED + 1, 0)]:
                _self_tests.pop(old, None)
            _self_tests[key] = found
        return found

    def _fingerprint(self) -> str:
        """Of everything that the self-test's result depends on, in one process."""
        found = hashlib.sha256(repr((type(self), self.outputs, self.tolerance)).encode())
        found.update(repr((sorted(self.steps.items()), self.batch)).encode())
        for kept in self._kept:
            for value in kept.values():
                found.update(value.tobytes())
        return found.hexdigest()

    def _test_myself(self) -> Check:
        offsets = {}
        for name, tally in self._tallies.items():
            values = np.array([kept[name] for kept in self._kept], np.float64)
            rms = math.sqrt(np.square(values).mean()) if values.size else 0.0
            unit = tally.step or self.tolerance.equivalent_step(rms) or self.tolerance.atol
            offsets[name] = 1.0 if tally.discrete else 4 * self.tolerance.within_steps * unit
        return self_test(self.judge, self._kept, self.outputs, offsets)


def self_test(
    report_fn: Callable[[Iterable[Pair]], ParityReport],
    references: Sequence[Outputs],
    outputs: Sequence[TensorSpec],
    offsets: Mapping[str, float],
) -> Check:
    """Whether a verifier tells right from wrong on these very references.

    Args:
        report_fn: judges (reference, candidate) calls, with the figures in use.
        references: reference outputs of some calls.
        outputs: the signature's outputs.
        offsets: by output, an offset far too large for every element.

    Returns:
        a check whose value is the number of mutants that passed (its limit is 0), plus one if the
        references against themselves did not pass. Its detail names them.
    """
    if not references:
        return Check("self-test", False, None, 0, "there is no reference to test with")
    with np.errstate(all="ignore"):
        wrong = []
        if not report_fn((outs, outs) for outs in references).passed:
            wrong.append("refused: the reference itself")
        count = 0
        for mutant in known_bad_mutants(references, outputs, offsets):
            count += 1
            if report_fn(mutant.pairs()).passed:
                wrong.append(f"passed: {mutant.name}")
    detail = "; ".join(wrong) or f"the reference passes, {count} known-bad mutants fail"
    return Check("self-test", not wrong, len(wrong), 0, detail)


def _least(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    if any(math.isnan(v) for v in known):
        return None
    return json_number(min(known, default=None))
