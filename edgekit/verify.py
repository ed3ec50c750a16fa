"""Verification: an artifact, run by its real runtime, against the plan's own evaluation in torch.

What is demanded stands in `edgekit.parity` and is the same for every runtime. The artifact runs in
a process of its own, started fresh, which sees nothing but the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgekit import layerwise
from edgekit.compress.borders import input_ranges, output_steps
from edgekit.compress.plan import QuantPlan
from edgekit.errors import EdgekitError
from edgekit.floors import FLOOR_MARGIN_DB, limits, lowers, rounding_floor
from edgekit.metrics import passes
from edgekit.parity import (
    TOLERANCES,
    Check,
    ParityAccumulator,
    ParityReport,
    Tolerance,
    calibration_checks,
)
from edgekit.runtime.golden import GOLDEN_SQNR_DB, OTHER_SQNR_DB
from edgekit.signature import Signature
from edgekit.targets._stored import compare_stored

Arrays = Mapping[str, npt.NDArray[Any]]
SCHEMA = "edgekit.verify/1"

_OF_A_PLAN = frozenset(
    {"agreement", "bias", "close", "equal", "sqnr", "within-steps", "worst-channel", "worst-sample"}
)
"""Checks whose figures only mean something against a plan's own evaluation."""

_MOST_BAD = 8
"""Bad samples that may be excused: each takes a look of its own, and more are no rare event."""

__all__ = [
    "Reference",
    "Verdict",
    "compare_stored",
    "excuse_rare",
    "first_bad_layer",
    "input_ranges",
    "judge",
    "judge_without_plan",
    "look_closer",
    "lowers",
    "output_steps",
    "rounding_floor",
]


@dataclass(frozen=True)
class Reference:
    """What an artifact is held against.

    Attributes:
        scheme: whose tolerance applies.
        feeds: arrays [n, *shape] by input name; the last ``probes`` samples are extreme inputs.
        outputs: arrays [n, *shape] by output name, from the plan's evaluation in torch.
        steps: quantization step of each output, None where it is float.
        probes: how many of the samples are probes.
        floor: see `rounding_floor`; None for schemes without rounding.
        probe_floor: the same, of the probes.
        ranges: lowest and highest value that the plan holds of each input that it quantizes; see
            `input_ranges`.
    """

    scheme: str
    feeds: Arrays
    outputs: Arrays
    steps: Mapping[str, float | None]
    probes: int = 0
    floor: Mapping[str, Any] | None = None
    probe_floor: Mapping[str, Any] | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Samples without the probes."""
        return len(next(iter(self.feeds.values()))) - self.probes


@dataclass(frozen=True)
class BadSample:
    """An answer that is off by more than any sample's may be.

    Attributes:
        check: the check that counts it.
        output: its name.
        sample: its index, probes behind the others.
        error: Euclidean distance from the reference.
    """

    check: str
    output: str
    sample: int
    error: float


@dataclass(frozen=True)
class Verdict:
    """What was found on one artifact.

    Attributes:
        report: parity on the samples.
        checks: every check made, those of the report first.
        first_bad_layer: where the answers first go wrong, if they do and it could be found.
        runtime: the runtime's name and version.
        against: what the reference is, for the reader.
        suspects: indices of the samples that each output came off worst with, probes included.
        bad: the samples that a ``worst-sample`` check counts.
        excused: the same checks with the share of elements beyond two steps held against noise that
            is larger by a margin, and bad samples against noise on themselves, where these alone
            failed and this would do; else None. They count once every layer was found right by
            itself (`look_closer`), and not before.
    """

    report: ParityReport
    checks: tuple[Check, ...]
    first_bad_layer: str | None
    runtime: str
    against: str = "plan"
    suspects: tuple[int, ...] = ()
    bad: tuple[BadSample, ...] = ()
    excused: tuple[Check, ...] | None = None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(c.passed is not False for c in self.checks)

    @property
    def reason(self) -> str | None:
        """Why it failed, in one line; None if it passed."""
        failed = [c for c in self.checks if c.passed is False]
        if not failed:
            return None
        first = failed[0]
        where = f"; first bad layer: {self.first_bad_layer}" if self.first_bad_layer else ""
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        value = first.to_json()["value"]
        return f"{first.name} is {value}, limit {first.limit} ({first.detail}){more}{where}"

    def document(self, artifact: str) -> dict[str, Any]:
        """The `edgekit.verify/1` document."""
        tests = [c for c in self.checks if c.name.endswith("self-test")]
        return {
            "schema": SCHEMA,
            "artifact": artifact,
            "against": self.against,
            "checks": [c.to_json() for c in self.checks],
            "outputs": [_output_json(s) for s in self.report.outputs],
            "first_bad_layer": self.first_bad_layer,
            "self_test": {c.name: c.passed for c in tests},
            "passed": self.passed,
        }


def judge(
    reference: Reference,
    signature: Signature,
    outputs: Arrays,
    order: Sequence[str],
    distinct: int,
    *,
    stored_faults: Sequence[str] | None,
    runtime: str,
    against: str = "plan",
) -> Verdict:
    """Judges what an artifact answered.

    Args:
        reference: what it should have answered.
        signature: of the model.
        outputs: what it answered, arrays [n, *shape] in the order and types it gave them.
        order: names of its outputs in the order it gave them.
        distinct: number of different answers to one input run many times; 0 if that was not done.
        stored_faults: differences between its stored quantization and the plan's; None if its
            runtime's format could not be read.
        runtime: the runtime's name and version.
        against: what the reference is, for the reader.
    """
    held = _held(reference, reference.floor, signature, outputs, order, range(reference.n))
    report, parts = held.report, [held]
    suspects = [s.worst_sample for s in report.outputs if s.worst_sample is not None]
    bad = _bad(held, reference, outputs)
    if reference.probes:
        probes = range(reference.n, reference.n + reference.probes)
        probed = _held(reference, reference.probe_floor, signature, outputs, order, probes)
        parts.append(probed.named("probes/"))
        bad += _bad(probed, reference, outputs, reference.n, "probes/")
        worst = [s.worst_sample for s in probed.report.outputs if s.worst_sample is not None]
        suspects += [reference.n + i for i in worst]
    checks = []
    repeats = TOLERANCES[reference.scheme].repeats
    checks.append(
        Check(
            "repeatable",
            None if distinct == 0 else distinct == 1,
            distinct,
            1,
            f"distinct outputs in {repeats} runs of one input",
        )
    )
    ordinary = {k: v[: reference.n] for k, v in reference.feeds.items()}
    checks += calibration_checks(reference.ranges, ordinary)
    if stored_faults is not None:
        detail = (
            "; ".join(stored_faults[:3]) or "stored scales, zero points and weights: the plan's"
        )
        checks.append(Check("stored-plan", not stored_faults, len(stored_faults), 0, detail))
    excused = None
    if any(part.excused is not None for part in parts):
        lenient = [part.checks if part.excused is None else part.excused for part in parts]
        excused = tuple([c for part in lenient for c in part] + checks)
    checks = [c for part in parts for c in part.checks] + checks
    seen = tuple(dict.fromkeys([*suspects, *(b.sample for b in bad[:_MOST_BAD])]))
    return Verdict(report, tuple(checks), None, runtime, against, seen, tuple(bad), excused)


def _bad(
    held: _Held, reference: Reference, outputs: Arrays, first: int = 0, prefix: str = ""
) -> list[BadSample]:
    found = []
    for stats in held.report.outputs:
        name = stats.name
        for i in (first + i for i in stats.bad_samples):
            off = np.asarray(outputs[name][i], np.float64) - reference.outputs[name][i]
            error = float(np.sqrt((off * off).sum()))
            found.append(BadSample(f"{prefix}worst-sample:{name}", name, i, error))
    return found


def judge_without_plan(
    reference: Reference,
    signature: Signature,
    outputs: Arrays,
    order: Sequence[str],
    distinct: int,
    *,
    runtime: str,
) -> Verdict:
    """Judges what an engine's artifact answered: it has no plan that says what is right.

    It must run: names, shapes, dtypes, finite values, the same answer every time, extreme inputs
    included. Against the float model it must have the gist right, by the figure that a device
    checks golden vectors with. How good it is, its accuracy tells. The arguments are those of
    `judge`, with the float model's outputs in ``reference``.
    """
    verdict = judge(
        reference,
        signature,
        outputs,
        order,
        distinct,
        stored_faults=None,
        runtime=runtime,
        against="float",
    )
    kept = [c for c in verdict.checks if _kind(c) not in _OF_A_PLAN]
    limit = GOLDEN_SQNR_DB.get(reference.scheme, OTHER_SQNR_DB)
    for stats in verdict.report.outputs:
        if (ratio := stats.sqnr_db) is not None:
            detail = "dB against the float model: an engine has no plan to be held against"
            kept.append(Check(f"gist:{stats.name}", passes(ratio, limit), ratio, limit, detail))
    return dataclasses.replace(verdict, checks=tuple(kept))


def _kind(check: Check) -> str:
    return check.name.removeprefix("probes/").partition(":")[0]


@dataclass(frozen=True)
class _Held:
    """Parity on some samples, and its checks; ``excused`` as in `Verdict`."""

    report: ParityReport
    checks: tuple[Check, ...]
    excused: tuple[Check, ...] | None = None

    def named(self, prefix: str) -> _Held:
        """With a prefix to the names of all checks."""

        def renamed(checks: Sequence[Check]) -> tuple[Check, ...]:
            return tuple(dataclasses.replace(c, name=prefix + c.name) for c in checks)

        excused = None if self.excused is None else renamed(self.excused)
        return dataclasses.replace(self, checks=renamed(self.checks), excused=excused)


def _held(
    reference: Reference,
    floor: Mapping[str, Any] | None,
    signature: Signature,
    outputs: Arrays,
    order: Sequence[str],
    samples: range,
) -> _Held:
    """Parity on some samples, by the limits that the plan's floor leaves, and what says so.

    How many elements are off by more than two steps is a count of rare events: draws of noise may
    meet none where a right runtime has three in 640. Where nothing else is wrong, the excuse is
    what noise does that is larger by `edgekit.floors.FLOOR_MARGIN_DB`.
    """

    def by(floor: Mapping[str, Any] | None) -> _Held:
        tolerance, lowered = limits(reference.scheme, floor)
        report = _parity(reference, signature, outputs, order, samples, tolerance)
        return _Held(report, (*report.checks, *lowered))

    found = by(floor)
    failed = {c.name.partition(":")[0] for c in found.checks if c.passed is False}
    margin = (floor or {}).get("within_with_margin")
    if failed != {"within-steps"} or margin is None:
        return found
    larger = by({**(floor or {}), "within_fraction": margin})
    if any(c.passed is False for c in larger.checks):
        return found
    return dataclasses.replace(found, excused=larger.checks)


def excuse_rare(
    verdict: Verdict,
    wider: Callable[[], Verdict],
    moved: Callable[[Sequence[int]], Mapping[str, npt.NDArray[Any]]],
) -> Verdict:
    """Where only single samples or elements failed, asks whether noise does the same to them.

    A sample in some hundreds on which a rounding tips and is carried on: 128 samples under noise
    may meet none, and 872 answers of a right runtime two (seen on a distilled encoder, of which
    noise then moved two samples in 872 under every draw). And one sample may stand so near to many
    ties that noise on it alone gives quite other answers: of another such encoder a runtime's
    answer to one sentence of 872 was 22 steps off, and was to the bit what every fifth draw of
    noise made of the plan's own. What passes by more noise, and samples that are no further off
    than noise takes them (and `edgekit.floors.FLOOR_MARGIN_DB`), are excused, see
    `Verdict.excused`: it counts where every layer is right by itself.

    Args:
        verdict: by the floor of few samples.
        wider: judges the same answers by a floor of many; called only where it may matter.
        moved: how far noise takes the plan's answers to some samples at most, by their indices:
            Euclidean distances [samples] by output name; called only where it may matter.
    """
    if verdict.excused is not None:
        return verdict
    failed = _failed(verdict)
    if not failed or failed - {"within-steps", "worst-sample"}:
        return verdict
    again = wider() if "within-steps" in failed else verdict
    if "worst-sample" in _failed(again):
        again = _excuse_bad(again, moved)
    return dataclasses.replace(verdict, excused=again.checks if again.passed else None)


def _failed(verdict: Verdict) -> set[str]:
    return {_kind(c) for c in verdict.checks if c.passed is False}


def _excuse_bad(
    verdict: Verdict, moved: Callable[[Sequence[int]], Mapping[str, npt.NDArray[Any]]]
) -> Verdict:
    """The verdict without the bad samples that noise takes as far off, if these are all."""
    samples = list(dict.fromkeys(b.sample for b in verdict.bad))
    if not 0 < len(samples) <= _MOST_BAD:
        return verdict
    reach, larger = moved(samples), 10 ** (FLOOR_MARGIN_DB / 20)
    # Negated, so that NaN is no excuse.
    if any(not b.error <= larger * reach[b.output][samples.index(b.sample)] for b in verdict.bad):
        return verdict
    named = ", ".join(str(b) for b in samples)
    detail = f"bad samples but for {named}, which noise of 1e-6 takes as far from the plan's answer"
    whose = {b.check for b in verdict.bad}
    checks = (
        Check(c.name, True, 0, 0, detail) if c.passed is False and c.name in whose else c
        for c in verdict.checks
    )
    return dataclasses.replace(verdict, checks=tuple(checks))


def first_bad_layer(
    target: str,
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    signature: Signature,
    feeds: Arrays,
    suspects: Sequence[int] = (),
) -> str | None:
    """The first layer that the target's runtime computes wrongly; see `edgekit.layerwise`.

    Args:
        target: target id.
        program: the canonical program.
        plan: its quantization.
        signature: of the model.
        feeds: arrays [n, *shape] by input name; a few of the samples are used.
        suspects: indices of samples that are to be among them.

    Returns:
        ``layer (node)``, or None where every layer is right by itself or the tapped program does
        not convert: then the fault lies at the outputs, shows on other samples only, or is in a
        fusion that taps break up. A fault at an input shows at the first layer that reads it.
    """
    try:
        errors = layerwise.examine(target, program, plan, signature.inputs, feeds, suspects)
    except EdgekitError:
        return None
    return next((e.layer for e in errors if e.fault), None)


def look_closer(
    verdict: Verdict,
    target: str,
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    signature: Signature,
    feeds: Arrays,
) -> Verdict:
    """Judges every layer by itself where the answers alone don't settle it.

    That is where a check failed, to name the layer, and where the plan's own floor lowered the
    limits (see `edgekit.floors.limits`), so that nothing hides behind that. Else the verdict stays
    as it is, for the sake of time: it takes one more conversion, of a program with many outputs.
    What `Verdict.excused` would let pass, passes where every layer is right; not where they could
    not be judged. The arguments are those of `first_bad_layer`.
    """
    lowered = any(c.name.endswith("plan-floor") for c in verdict.checks)
    if verdict.passed and not lowered:
        return verdict
    try:
        errors = layerwise.examine(target, program, plan, signature.inputs, feeds, verdict.suspects)
    except EdgekitError as error:
        detail = f"layer by layer it could not be judged: {error.message.splitlines()[0][:200]}"
        check = Check("layers", None, None, 0, detail)
        return dataclasses.replace(verdict, checks=(*verdict.checks, check))
    bad = [e for e in errors if e.fault]
    detail = f"of {len(errors)} layers, each given what the runtime itself computed before it"
    if bad:
        detail += f"; first {bad[0].layer}: {bad[0].fault}"
    check = Check("layers", not bad, len(bad), 0, detail)
    excused = verdict.excused if errors and not bad else None
    return dataclasses.replace(
        verdict,
        checks=(*(verdict.checks if excused is None else excused), check),
        first_bad_layer=bad[0].layer if bad else None,
    )


def _parity(
    reference: Reference,
    signature: Signature,
    outputs: Arrays,
    order: Sequence[str],
    samples: range,
    tolerance: Tolerance,
) -> ParityReport:
    accumulator = ParityAccumulator(signature.outputs, tolerance, dict(reference.steps))
    for i in samples:
        accumulator.add(
            {k: v[i] for k, v in reference.outputs.items()},
            {k: outputs[k][i] for k in order if i < len(outputs[k])},
        )
    return accumulator.report()


def _output_json(stats: Any) -> dict[str, Any]:
    data = stats.to_json()
    return {
        "name": data["name"],
        "sqnr_db": data["sqnr_db"],
        "agreement": data["agreement"],
        "worst_sample_db": data["worst_sample_db"],
        "max_abs_error": data["max_error"],
        "within_2_steps": data["within_fraction"],
        "identical": data["identical"],
        "elements": data["elements"],
        "n_decisive": data["n_decisive"],
        "cosine": data["cosine"],
        "worst_sample": data["worst_sample"],
        "worst_channel_db": data["worst_channel_db"],
        "worst_channel": data["worst_channel"],
        "n": data["samples"],
    }
