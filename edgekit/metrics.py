"""Metrics: how far a candidate tensor is from its reference.

numpy and the standard library only, so that the device side may use it too. Arithmetic is float64
whatever the inputs are. Every metric **fails closed**: where either side holds NaN or infinity its
value is NaN (or counts as wrong), and `passes` takes NaN for a failure. How sure one can be of a
difference between two measurements is the business of `edgekit.paired`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData

__all__ = [
    "Agreement",
    "agreement",
    "cosine",
    "passes",
    "per_sample_sqnr_db",
    "percentile",
    "rounding_slack",
    "sqnr_db",
    "top1",
    "top1_correct",
    "within_steps",
    "worst_sample",
]

Floats = npt.NDArray[np.float64]


def passes(value: float | None, limit: float, *, upper: bool = False) -> bool:
    """Whether ``value`` meets ``limit``: at least it, or at most it where ``upper``.

    NaN on either side, and None, fail: "not worse than" is not the same as "met".
    """
    if value is None:
        return False
    return bool(value <= limit) if upper else bool(value >= limit)


def sqnr_db(reference: npt.ArrayLike, candidate: npt.ArrayLike, *, atol: float = 0.0) -> float:
    """Signal to quantization noise ratio, 10 log10(sum r^2 / sum (c - r)^2), in dB.

    Args:
        reference: any shape and real dtype.
        candidate: the same shape.
        atol: for a reference that is zero throughout, where the ratio says nothing: the largest
            absolute error that still counts as equal.

    Returns:
        inf where the two are equal (an empty pair is equal); NaN where either holds NaN or
        infinity; for an all-zero reference inf or -inf, by ``atol``. Scaling both sides alike
        changes nothing, denormals and the largest floats included.

    Raises:
        BadData: the shapes differ.
    """
    ref, cand = _pair(reference, candidate)
    if not (np.isfinite(ref).all() and np.isfinite(cand).all()):
        return math.nan
    if not ref.any():
        return math.inf if ref.size == 0 or np.abs(cand).max() <= atol else -math.inf
    # A power of two scales exactly, so that squares neither overflow nor vanish.
    exponent = -math.frexp(max(np.abs(ref).max(), np.abs(cand).max()))[1]
    ref, cand = np.ldexp(ref, exponent), np.ldexp(cand, exponent)
    return _energy_db(ref) - _energy_db(cand - ref)


def per_sample_sqnr_db(
    reference: npt.ArrayLike, candidate: npt.ArrayLike, *, atol: float = 0.0
) -> Floats:
    """`sqnr_db` of every sample, [N] in dB; the first axis of both arguments counts samples.

    Raises:
        BadData: the shapes differ, or there is no sample axis.
    """
    ref, cand = _pair(reference, candidate)
    if ref.ndim == 0:
        raise BadData("per-sample SQNR needs a first axis that counts samples, got a scalar")
    return np.array([sqnr_db(r, c, atol=atol) for r, c in zip(ref, cand, strict=True)], np.float64)


def worst_sample(values_db: npt.ArrayLike) -> tuple[int, float]:
    """Index and value of the lowest of ``values_db`` [N]; a NaN counts as lower than any number.

    Raises:
        BadData: there is no sample.
    """
    values = np.asarray(values_db, np.float64)
    if values.size == 0:
        raise BadData("the worst of no samples was asked for")
    nans = np.flatnonzero(np.isnan(values))
    index = int(nans[0]) if nans.size else int(np.argmin(values))
    return index, float(values[index])


def cosine(reference: npt.ArrayLike, candidate: npt.ArrayLike) -> float:
    """Cosine of the angle between two tensors taken as vectors, -1 to 1; blind to scale.

    NaN where either holds NaN or infinity. Two zero vectors (or two empty ones) give 1, one zero
    vector gives 0.

    Raises:
        BadData: the shapes differ.
    """
    ref, cand = (v.ravel() for v in _pair(reference, candidate))
    if not (np.isfinite(ref).all() and np.isfinite(cand).all()):
        return math.nan
    if not ref.any() or not cand.any():
        return 1.0 if ref.any() == cand.any() else 0.0
    ref, cand = (np.ldexp(v, -math.frexp(np.abs(v).max())[1]) for v in (ref, cand))
    value = float(ref @ cand) / math.sqrt(float(ref @ ref) * float(cand @ cand))
    return max(-1.0, min(1.0, value))


def within_steps(
    reference: npt.ArrayLike, candidate: npt.ArrayLike, step: float, steps: float = 2
) -> float:
    """Fraction of elements whose error is at most ``steps`` quantization steps.

    Args:
        reference: any shape.
        candidate: the same shape.
        step: the output's quantization step (its scale), in the output's units.
        steps: how many steps are allowed.

    Returns:
        0 to 1; 1 for empty tensors. A non-finite element is never within. The comparison allows
        for the rounding of a dequantized value in its own dtype (two units in the last place), so
        that exactly two steps apart stays two steps.

    Raises:
        BadData: the shapes differ, or ``step`` isn't positive and finite.
    """
    if not (step > 0 and math.isfinite(step)):
        raise BadData(f"a quantization step is positive and finite, got {step}")
    ref, cand = _pair(reference, candidate)
    if ref.size == 0:
        return 1.0
    with np.errstate(invalid="ignore"):
        slack = rounding_slack(reference, candidate)
        limit = steps * step
        return float(np.mean(np.abs(cand - ref) <= limit + slack * (np.abs(ref) + limit)))


def rounding_slack(*arrays: npt.ArrayLike) -> float:
    """Two units in the last place of the coarsest float dtype among ``arrays``, relative to 1."""
    dtypes = [np.asarray(a).dtype for a in arrays]
    return max((2 * float(np.finfo(d).eps) for d in dtypes if d.kind == "f"), default=0.0)


def top1_correct(scores: npt.ArrayLike, labels: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Per sample, whether the best-scored class is the label: [N] bool.

    Args:
        scores: [N, C]; among equal scores the lowest class index wins. A sample with any
            non-finite score is wrong.
        labels: [N] class indices.

    Raises:
        BadData: the shapes do not fit each other, or C is 0.
    """
    values, truth = np.asarray(scores), np.asarray(labels)
    if values.ndim != 2 or values.shape[1] == 0 or truth.shape != values.shape[:1]:
        raise BadData(
            f"top-1 takes scores [N, C] and labels [N], got {values.shape} and {truth.shape}"
        )
    finite = np.isfinite(values).all(axis=1)
    correct: npt.NDArray[np.bool_] = (values.argmax(axis=1) == truth) & finite
    return correct


def top1(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Top-1 accuracy, 0 to 1; see `top1_correct`.

    Raises:
        BadData: as `top1_correct`, or there is no sample.
    """
    correct = top1_correct(scores, labels)
    if correct.size == 0:
        raise BadData("the accuracy of no samples was asked for")
    return float(correct.mean())


@dataclass(frozen=True)
class Agreement:
    """How often two sets of scores take the same decision.

    Attributes:
        value: the agreeing fraction of the decisive decisions; NaN where none is decisive.
        n_decisive: decisions whose reference margin exceeds the limit.
        n_agreed: how many of those the candidate takes too.
        n: all decisions.
    """

    value: float
    n_decisive: int
    n_agreed: int
    n: int


def agreement(
    reference: npt.ArrayLike, candidate: npt.ArrayLike, margin: npt.ArrayLike, *, axis: int = -1
) -> Agreement:
    """Compares arg-max decisions where the reference is sure of its own.

    A decision is *decisive* if the reference's best score exceeds its second by more than
    ``margin``. With a margin of 2k quantization steps, two tensors that are everywhere within k
    steps of each other agree on every decisive sample, so a disagreement there is a real fault
    and not a coin that fell the other way.

    Args:
        reference: scores, any shape.
        candidate: the same shape.
        margin: in the scores' units; a number, or one per decision (the shape without ``axis``).
        axis: the class axis.

    Returns:
        the counts. A decision with a non-finite score on either side is decisive and disagrees.

    Raises:
        BadData: the shapes differ, or fewer than two classes.
    """
    ref, cand = _pair(reference, candidate)
    if ref.ndim == 0 or ref.shape[axis] < 2:
        raise BadData(f"a decision needs two classes or more, got shape {ref.shape}, axis {axis}")
    ref, cand = np.moveaxis(ref, axis, -1), np.moveaxis(cand, axis, -1)
    finite = np.asarray(np.isfinite(ref).all(axis=-1) & np.isfinite(cand).all(axis=-1))
    top = np.partition(np.where(finite[..., None], ref, 0.0), -2, axis=-1)[..., -2:]
    decisive = (top[..., 1] - top[..., 0] > np.asarray(margin)) | ~finite
    agreed = decisive & finite & (ref.argmax(axis=-1) == cand.argmax(axis=-1))
    n_decisive, n_agreed = int(decisive.sum()), int(agreed.sum())
    value = n_agreed / n_decisive if n_decisive else math.nan
    return Agreement(value, n_decisive, n_agreed, int(decisive.size))


def percentile(values: npt.ArrayLike, q: float) -> float:
    """The nearest-rank percentile: the smallest value that at least ``q`` % of values don't exceed.

    It is the inverse of the empirical distribution (type 1 of Hyndman and Fan, 1996): always a
    value that was measured, never one between two, so a tail percentile of few samples is the
    maximum and not something below it.

    Args:
        values: [N] measurements, any order.
        q: 0 < q <= 100.

    Raises:
        BadData: no values, a non-finite one, or ``q`` out of range.
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise BadData(f"a percentile needs one row of finite numbers, got shape {data.shape}")
    if not 0 < q <= 100:
        raise BadData(f"percentile {q} was asked for; it lies over 0 and up to 100")
    # Without the small term 0.07 * 100 would round up to rank 8.
    rank = max(1, math.ceil(q * data.size / 100 - 1e-9))
    return float(np.partition(data, rank - 1)[rank - 1])


def _pair(reference: npt.ArrayLike, candidate: npt.ArrayLike) -> tuple[Floats, Floats]:
    ref, cand = np.asarray(reference), np.asarray(candidate)
    if ref.shape != cand.shape:
        raise BadData(f"reference has shape {ref.shape}, candidate {cand.shape}")
    return ref.astype(np.float64), cand.astype(np.float64)


def _energy_db(x: Floats) -> float:
    """10 log10(sum x^2), safe for values whose squares would vanish; -inf for zeros."""
    peak = float(np.abs(x).max(initial=0.0))
    if peak == 0:
        return -math.inf
    exponent = math.frexp(peak)[1]
    scaled = np.ldexp(x, -exponent)
    return 20 * exponent * math.log10(2) + 10 * math.log10(float(np.sum(scaled * scaled)))
