"""Metrics: known values, NaN fails closed, and properties that hold for any tensor."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import BadData
from edgekit.metrics import (
    agreement,
    cosine,
    passes,
    per_sample_sqnr_db,
    percentile,
    sqnr_db,
    top1,
    top1_correct,
    within_steps,
    worst_sample,
)

quick = settings(deadline=None, derandomize=True, max_examples=60)
finite = st.floats(-1e6, 1e6, allow_subnormal=False, width=32)
tensors = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=finite)


@pytest.mark.parametrize(
    ("value", "limit", "upper", "met"),
    [
        (35.0, 35.0, False, True),
        (34.9, 35.0, False, False),
        (math.inf, 35.0, False, True),
        (math.nan, 35.0, False, False),
        (math.nan, 35.0, True, False),
        (1.0, math.nan, False, False),
        (None, 0.0, False, False),
        (0.1, 0.2, True, True),
        (0.3, 0.2, True, False),
    ],
)
def test_passes_fails_closed(value: float | None, limit: float, upper: bool, met: bool) -> None:
    assert passes(value, limit, upper=upper) is met


def test_sqnr_of_known_noise() -> None:
    reference = np.full(100, 10.0)
    assert sqnr_db(reference, reference + 0.1) == pytest.approx(40.0)
    assert sqnr_db(reference, -reference) == pytest.approx(-20 * math.log10(2))
    assert sqnr_db(reference, np.zeros(100)) == pytest.approx(0.0)


def test_sqnr_of_a_uniform_quantizer_is_six_decibels_a_bit() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 100_000)
    for bits in (4, 8, 12):
        step = 2 / 2**bits
        assert sqnr_db(x, np.round(x / step) * step) == pytest.approx(6.02 * bits, abs=0.1)


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1.0, 1e38, 1e-310, 5e300])
def test_sqnr_does_not_depend_on_the_scale(scale: float) -> None:
    reference = np.array([8.0, -5.0, 3.0]) * scale
    noise = np.array([1.0, -1.0, 0.0]) * scale
    assert sqnr_db(reference, reference + noise) == pytest.approx(10 * math.log10(98 / 2), abs=0.5)


def test_sqnr_edges() -> None:
    zeros = np.zeros(4)
    assert sqnr_db([1, 2], [1, 2]) == math.inf
    assert sqnr_db(np.empty((0, 3)), np.empty((0, 3))) == math.inf
    assert sqnr_db(zeros, zeros) == math.inf
    assert sqnr_db(zeros, zeros + 1e-9) == -math.inf
    assert sqnr_db(zeros, zeros + 1e-5, atol=1e-4) == math.inf
    assert sqnr_db(zeros, zeros + 1e-3, atol=1e-4) == -math.inf
    with pytest.raises(BadData, match=r"\(2,\).*\(3,\)"):
        sqnr_db([1, 2], [1, 2, 3])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_sqnr_and_cosine_are_nan_where_either_side_is_not_finite(bad: float) -> None:
    good, broken = np.array([1.0, 2.0]), np.array([1.0, bad])
    for metric in (sqnr_db, cosine):
        assert math.isnan(metric(good, broken))
        assert math.isnan(metric(broken, good))
        assert math.isnan(metric(broken, broken))


def test_sqnr_nan_against_a_near_zero_reference() -> None:
    assert math.isnan(sqnr_db(np.full(3, 1e-12), np.full(3, np.nan)))
    assert math.isnan(sqnr_db(np.zeros(3), np.full(3, np.nan), atol=1.0))


@given(tensors, st.integers(-20, 20))
@quick
def test_sqnr_properties(x: np.ndarray, exponent: int) -> None:
    rng = np.random.default_rng(7)
    y = x + rng.normal(size=x.shape).astype(np.float32)
    assert sqnr_db(x, x) == math.inf
    value = sqnr_db(x, y)
    assert not math.isnan(value)
    # Scaling both sides, or shuffling both alike, changes nothing.
    factor = 2.0**exponent
    order = rng.permutation(x.size)
    assert sqnr_db(x * factor, y * factor) == pytest.approx(value, abs=1e-6)
    assert sqnr_db(x.ravel()[order], y.ravel()[order]) == pytest.approx(value, abs=1e-6)
    # Doubling the error costs 6 dB.
    if x.any() and np.abs(y - x).max() > 1e-3:
        double = x.astype(np.float64) + 2 * (y.astype(np.float64) - x.astype(np.float64))
        assert sqnr_db(x, double) == pytest.approx(value - 20 * math.log10(2), abs=1e-6)


@given(tensors)
@quick
def test_one_nan_anywhere_is_never_hidden(x: np.ndarray) -> None:
    y = x.copy()
    y.reshape(-1)[x.size // 2] = np.nan
    assert not passes(sqnr_db(x, y), -1e9)
    assert not passes(cosine(y, y), -1.0)
    assert within_steps(x, y, step=1e9) < 1


def test_per_sample_sqnr_and_the_worst() -> None:
    reference = np.ones((3, 4))
    candidate = reference + np.array([[0.01], [0.1], [0.001]])
    values = per_sample_sqnr_db(reference, candidate)
    assert values == pytest.approx([40, 20, 60])
    assert worst_sample(values) == (1, pytest.approx(20))
    candidate[2, 0] = np.nan
    index, value = worst_sample(per_sample_sqnr_db(reference, candidate))
    assert index == 2
    assert math.isnan(value)
    with pytest.raises(BadData):
        worst_sample([])
    with pytest.raises(BadData):
        per_sample_sqnr_db(1.0, 1.0)


def test_cosine_known_values() -> None:
    assert cosine([1, 0], [0, 1]) == pytest.approx(0)
    assert cosine([1, 1], [2, 2]) == pytest.approx(1)
    assert cosine([1e-200, 1e-200], [-1e200, -1e200]) == pytest.approx(-1)
    assert cosine([0, 0], [0, 0]) == 1
    assert cosine([0, 0], [0, 1]) == 0
    assert cosine([0, 1], [0, 0]) == 0


@given(tensors)
@quick
def test_cosine_is_bounded_and_blind_to_scale(x: np.ndarray) -> None:
    y = np.random.default_rng(3).normal(size=x.shape)
    value = cosine(x, y)
    assert -1 <= value <= 1
    assert cosine(y, x) == pytest.approx(value, abs=1e-9)
    assert cosine(x, 4 * y) == pytest.approx(value, abs=1e-9)
    assert cosine(x, x) == pytest.approx(1)


def test_within_steps_counts() -> None:
    reference = np.arange(10.0)
    candidate = reference + np.array([0, 0.1, -0.1, 0.2, -0.2, 0.3, -0.3, 1, np.nan, np.inf])
    assert within_steps(reference, candidate, step=0.1) == pytest.approx(0.5)
    assert within_steps(reference, candidate, step=0.1, steps=1) == pytest.approx(0.3)
    assert within_steps([], [], step=0.1) == 1
    for step in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(BadData, match="step"):
            within_steps(reference, candidate, step=step)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_within_steps_takes_two_dequantized_steps_for_two(dtype: type) -> None:
    codes = np.arange(-128, 126)
    for step in (0.0123, 1 / 3, 7e-3):
        two, three = ((codes + k).astype(dtype) * dtype(step) for k in (2, 3))
        reference = codes.astype(dtype) * dtype(step)
        assert within_steps(reference, two, step) == 1
        assert within_steps(reference, three, step) == 0


@given(tensors, st.floats(1e-3, 1e3))
@quick
def test_within_steps_grows_with_the_allowance(x: np.ndarray, step: float) -> None:
    y = x + np.random.default_rng(5).normal(0, step, x.shape)
    fractions = [within_steps(x, y, step, steps) for steps in (0, 1, 2, 4, 100)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_top1() -> None:
    scores = np.array([[1, 3, 2], [5, 5, 0], [0, 1, np.nan], [9, 0, 0]])
    assert top1_correct(scores, [1, 0, 2, 1]).tolist() == [True, True, False, False]
    assert top1(scores, [1, 0, 2, 1]) == 0.5
    for bad_scores, labels in [(scores, [1, 0]), (np.zeros(3), [0, 0, 0]), (np.zeros((1, 0)), [0])]:
        with pytest.raises(BadData):
            top1_correct(bad_scores, labels)
    with pytest.raises(BadData, match="no samples"):
        top1(np.zeros((0, 3)), np.zeros(0))


def test_agreement_judges_decisive_decisions_only() -> None:
    reference = np.array([[0.0, 1.0], [0.0, 0.1], [2.0, 0.0], [0.0, 0.5]])
    candidate = np.array([[0.0, 1.0], [0.2, 0.1], [0.0, 2.0], [0.5, 0.0]])
    found = agreement(reference, candidate, 0.5)
    assert (found.value, found.n_decisive, found.n_agreed, found.n) == (0.5, 2, 1, 4)
    per_decision = agreement(reference, candidate, [0.5, 0.5, 5.0, 0.4])
    assert (per_decision.n_decisive, per_decision.n_agreed) == (2, 1)
    none = agreement(reference, candidate, 10.0)
    assert none.n_decisive == 0
    assert not passes(none.value, 0.0)
    assert agreement(reference.T, candidate.T, 0.5, axis=0) == found
    with pytest.raises(BadData, match="two classes"):
        agreement(np.zeros((3, 1)), np.zeros((3, 1)), 0.0)


def test_agreement_counts_a_non_finite_decision_as_wrong() -> None:
    reference = np.array([[0.0, 3.0], [0.0, 3.0]])
    broken = np.array([[0.0, np.nan], [0.0, 3.0]])
    for pair in [(reference, broken), (broken, reference), (broken, broken)]:
        found = agreement(*pair, 1.0)
        assert (found.n_decisive, found.n_agreed) == (2, 1)


@given(hnp.arrays(np.int32, (20, 5), elements=st.integers(-128, 127)), st.integers(0, 2**32 - 1))
@quick
def test_a_candidate_within_k_steps_never_loses_a_decision_of_margin_over_2k(
    codes: np.ndarray, seed: int
) -> None:
    moved = codes + np.random.default_rng(seed).integers(-2, 3, codes.shape)
    found = agreement(codes, moved, margin=4)
    assert found.n_agreed == found.n_decisive


def test_percentile_is_nearest_rank() -> None:
    data = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    assert [percentile(data, q) for q in (1, 7, 50, 90, 99, 100)] == [1, 7, 50, 90, 99, 100]
    # 2.2 * 1500 / 100 is a hair over 33 in floating point.
    assert percentile(np.arange(1.0, 1501.0), 2.2) == 33
    assert percentile([3.0, 1.0, 2.0], 99) == 3
    assert percentile([3.0, 1.0, 2.0], 0.001) == 1
    for values, q in [([], 50), ([1.0, math.nan], 50), ([1.0], 0), ([1.0], 101), ([[1.0]], 50)]:
        with pytest.raises(BadData):
            percentile(values, q)


@given(st.lists(finite, min_size=1, max_size=50), st.floats(0.1, 100))
@quick
def test_percentile_is_a_measured_value_that_covers_its_share(
    values: list[float], q: float
) -> None:
    found = percentile(values, q)
    data = np.array(values)
    assert found in data
    assert np.mean(data <= found) >= q / 100 - 1e-9
    assert np.mean(data < found) < q / 100 + 1e-9
    assert found == np.percentile(data, q, method="inverted_cdf") or math.isclose(
        q * data.size / 100, round(q * data.size / 100)
    )
