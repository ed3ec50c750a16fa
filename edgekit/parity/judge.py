"""Judges the sums of one output: its checks and its statistics."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.metrics import Floats, passes, worst_sample
from edgekit.parity.gates import MIN_DISCRETE, Check, json_number
from edgekit.parity.tally import OutputTally

__all__ = ["OutputStats", "judge", "summarize"]


@dataclass(frozen=True)
class OutputStats:
    """What was measured on one output; NaN where something was not finite.

    Attributes:
        name: the output.
        samples: samples compared.
        elements: elements compared.
        identical: every compared value is equal, and so are the dtypes.
        max_error: largest absolute error, in the output's units.
        agreement: agreeing fraction of the decisive decisions; None without any.
        n_decisive: decisive decisions.
        within_fraction: elements within the allowed steps; for integer and bool outputs, equal
            elements; None for a float output without a step.
        sqnr_db: over all samples pooled; inf if equal; None for integer and bool outputs.
        cosine: over all samples pooled; None for integer and bool outputs.
        worst_sample_db: lowest SQNR of a sample; None for integer and bool outputs.
        worst_sample: its index, in the order added.
        worst_channel_db: lowest SQNR of a channel; None where there are no channels.
        worst_channel: its index on the class axis.
        bad_samples: indices of the samples that are bad, see `Tolerance`.
    """

    name: str
    samples: int
    elements: int
    identical: bool
    max_error: float
    agreement: float | None
    n_decisive: int
    within_fraction: float | None
    sqnr_db: float | None = None
    cosine: float | None = None
    worst_sample_db: float | None = None
    worst_sample: int | None = None
    worst_channel_db: float | None = None
    worst_channel: int | None = None
    bad_samples: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; null for what JSON can't hold."""
        return {k: json_number(v) if isinstance(v, float) else v for k, v in asdict(self).items()}


def judge(tally: OutputTally) -> list[Check]:
    """Every figure of one output against its limit. A comparison with NaN fails."""
    name = tally.spec.name
    checks = [
        Check(f"{kind}:{name}", kind not in tally.faults, detail=tally.faults.get(kind, ""))
        for kind in ("shape", "dtype")
    ]
    if tally.compared < tally.calls:
        detail = f"its values were compared in {tally.compared} of {tally.calls} calls"
        return [*checks, Check(f"values:{name}", False, tally.compared, tally.calls, detail)]
    if tally.elements == 0:
        return checks
    detail = tally.faults.get("finite", "")
    checks.append(Check(f"finite:{name}", tally.non_finite == 0, tally.non_finite, 0, detail))
    if tally.discrete:
        return checks + _discrete_checks(tally)
    checks += [_sqnr_check(tally), *_element_checks(tally), _worst_sample_check(tally)]
    if tally.channel_ref.size >= 2:
        checks += [_worst_channel_check(tally), _agreement_check(tally)]
    return checks


def summarize(tally: OutputTally) -> OutputStats:
    """The statistics of one output."""
    n = tally.elements
    stats = OutputStats(
        name=tally.spec.name,
        samples=tally.samples,
        elements=n,
        identical=tally.identical and tally.compared == tally.calls > 0,
        max_error=tally.max_error,
        agreement=tally.n_agreed / tally.n_decisive if tally.n_decisive else None,
        n_decisive=tally.n_decisive,
        within_fraction=tally.right / n if n and (tally.discrete or tally.step) else None,
    )
    if n == 0 or tally.discrete:
        return stats
    norms = math.sqrt(tally.ref_energy * tally.cand_energy)
    sample, sample_db = worst_sample(_sample_db(tally))
    stats = replace(
        stats,
        sqnr_db=float(_ratio_db(tally.ref_energy, tally.err_energy)),
        cosine=tally.dot / norms if norms else float(tally.ref_energy == tally.cand_energy),
        worst_sample_db=sample_db,
        worst_sample=sample,
        bad_samples=tuple(_bad_samples(tally).tolist()),
    )
    if tally.channel_ref.size < 2:
        return stats
    channel, channel_db = worst_sample(_ratio_db(tally.channel_ref, tally.channel_err))
    return replace(stats, worst_channel_db=channel_db, worst_channel=channel)


def _discrete_checks(tally: OutputTally) -> list[Check]:
    name, limit = tally.spec.name, tally.tolerance.agreement
    equal = tally.right / tally.elements
    checks = [Check(f"equal:{name}", passes(equal, limit), equal, limit, "equal elements")]
    if tally.elements // tally.samples >= MIN_DISCRETE:
        bad = np.flatnonzero(~(np.array(tally.sample_wrong) <= 0.5))
        detail = f"samples of which most elements differ{_listed(bad)}"
        checks.append(Check(f"worst-sample:{name}", bad.size == 0, int(bad.size), 0, detail))
    return checks


def _sqnr_check(tally: OutputTally) -> Check:
    name, limit = f"sqnr:{tally.spec.name}", tally.tolerance.sqnr_db
    if tally.ref_energy == 0:
        allowed = tally.tolerance.within_steps * tally.unit
        met = passes(tally.max_error, allowed, upper=True)
        return Check(name, met, tally.max_error, allowed, "all-zero reference: largest error")
    value = float(_ratio_db(tally.ref_energy, tally.err_energy))
    return Check(name, passes(value, limit), value, limit, "dB, all samples pooled")


def _element_checks(tally: OutputTally) -> list[Check]:
    name, tolerance, checks = tally.spec.name, tally.tolerance, []
    if tally.step is not None:
        value, limit = tally.right / tally.elements, tolerance.within_fraction
        detail = f"elements within {tolerance.within_steps:g} steps of {tally.step:.4g}"
        checks.append(Check(f"within-steps:{name}", passes(value, limit), value, limit, detail))
        value = abs(tally.err_sum / tally.elements) / tally.step
        limit = tolerance.bias_steps * math.sqrt(max(1.0, 64 / tally.elements))
        detail = "mean error, in steps"
        checks.append(Check(f"bias:{name}", passes(value, limit, upper=True), value, limit, detail))
    if tolerance.rtol is not None:
        value = tally.close / tally.elements
        detail = f"elements within {tolerance.atol:g} + {tolerance.rtol:g} |reference|"
        checks.append(Check(f"close:{name}", passes(value, 1.0), value, 1.0, detail))
    return checks


def _agreement_check(tally: OutputTally) -> Check:
    name, limit = f"agreement:{tally.spec.name}", tally.tolerance.agreement
    if tally.n_decisive == 0:
        return Check(name, None, None, limit, "no decision of the reference is decisive")
    value = tally.n_agreed / tally.n_decisive
    detail = f"{tally.n_agreed} of {tally.n_decisive} decisive decisions agree"
    return Check(name, passes(value, limit), value, limit, detail)


def _bad_samples(tally: OutputTally) -> npt.NDArray[np.intp]:
    tolerance, unit = tally.tolerance, tally.unit
    near = np.array(tally.sample_far) <= tolerance.far_steps * unit
    mostly_right = np.array(tally.sample_wrong) <= tolerance.within_steps * unit
    enough = _sample_db(tally) >= tolerance.worst_sample_db
    # Negated, so that NaN is bad.
    return np.flatnonzero(~(near & (enough | mostly_right)))


def _worst_sample_check(tally: OutputTally) -> Check:
    bad = _bad_samples(tally)
    index, value = worst_sample(_sample_db(tally))
    detail = f"bad samples; the lowest is sample {index} with {value:.1f} dB{_listed(bad)}"
    return Check(f"worst-sample:{tally.spec.name}", bad.size == 0, int(bad.size), 0, detail)


def _worst_channel_check(tally: OutputTally) -> Check:
    tolerance = tally.tolerance
    by_channel = _ratio_db(tally.channel_ref, tally.channel_err)
    # With few elements a channel is bad only for an error that would count as far off.
    least = (tolerance.far_steps / tolerance.within_steps) ** 2
    count = max(tally.elements / tally.channel_ref.size, least)
    small = tally.channel_err <= count * (tolerance.within_steps * tally.unit) ** 2
    bad = np.flatnonzero(~((by_channel >= tolerance.worst_sample_db) | small))
    index, value = worst_sample(by_channel)
    detail = f"bad channels; the lowest is channel {index} with {value:.1f} dB{_listed(bad)}"
    return Check(f"worst-channel:{tally.spec.name}", bad.size == 0, int(bad.size), 0, detail)


def _sample_db(tally: OutputTally) -> Floats:
    """SQNR of every sample, [N]; inf where a zero reference is met as well as it must be."""
    values = _ratio_db(np.array(tally.sample_ref), np.array(tally.sample_err))
    met = np.array(tally.sample_far) <= tally.tolerance.within_steps * tally.unit
    return np.where((np.array(tally.sample_ref) == 0) & met, np.inf, values)


def _ratio_db(signal: npt.ArrayLike, noise: npt.ArrayLike) -> Floats:
    """10 log10(signal / noise); inf where there is no noise, NaN where either is NaN."""
    top, bottom = np.asarray(signal, np.float64), np.asarray(noise, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = 10 * (np.log10(top) - np.log10(bottom))
    return np.where((bottom == 0) & ~np.isnan(top), np.inf, value)


def _listed(bad: npt.NDArray[np.intp]) -> str:
    """The first few indices of ``bad``, for a message."""
    if bad.size == 0:
        return ""
    more = ", ..." if bad.size > 5 else ""
    return f"; bad: {', '.join(str(i) for i in bad[:5])}{more}"
