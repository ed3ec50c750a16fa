"""Paired comparisons: known values, coverage of the intervals, and verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edgekit.errors import BadData
from edgekit.paired import FEW_DISCORDANT, mcnemar_exact, paired_difference, paired_ratio

quick = settings(deadline=None, derandomize=True, max_examples=40)


def outcomes(n: int, gained: int, lost: int) -> tuple[np.ndarray, np.ndarray]:
    reference, candidate = np.ones(n), np.ones(n)
    reference[:gained] = 0
    candidate[gained : gained + lost] = 0
    return reference, candidate


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar_exact(0, 0) == 1
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 7) == pytest.approx(2 * 9 / 256)
    assert mcnemar_exact(7, 1) == mcnemar_exact(1, 7)
    assert mcnemar_exact(4, 4) == 1
    # Beyond what a float could hold term by term; the normal limit says 0.3197 without correction.
    assert mcnemar_exact(5000, 5100) == pytest.approx(0.3246, abs=1e-4)


def test_difference_known_counts() -> None:
    found = paired_difference(*outcomes(1000, 30, 90))
    assert found.difference == pytest.approx(-0.06)
    assert (found.n, found.discordant, found.method) == (1000, 120, "bca")
    # The large-sample error is sqrt(120/1000 - 0.06**2) / sqrt(1000) = 0.0108.
    assert found.low == pytest.approx(-0.06 - 1.96 * 0.0108, abs=0.002)
    assert found.high == pytest.approx(-0.06 + 1.96 * 0.0108, abs=0.002)
    assert found.verdict == "worse"
    assert found.p_value == pytest.approx(mcnemar_exact(30, 90))


def test_difference_is_seeded() -> None:
    pair = np.random.default_rng(0).uniform(0, 1, (2, 500))
    assert paired_difference(*pair, seed=3) == paired_difference(*pair, seed=3)
    assert paired_difference(*pair, seed=3) != paired_difference(*pair, seed=4)


def test_no_discordant_sample_still_has_a_width() -> None:
    found = paired_difference(*outcomes(100, 0, 0))
    z2 = 1.959964**2
    assert found.method == "score"
    assert (found.low, found.high) == (
        pytest.approx(-z2 / (100 + z2)),
        pytest.approx(z2 / (100 + z2)),
    )
    assert found.verdict == "no difference shown"


def test_extreme_counts_stay_within_one() -> None:
    assert paired_difference(*outcomes(10, 10, 0)).high == 1
    assert paired_difference(*outcomes(10, 0, 10)).low == -1
    assert paired_difference(*outcomes(10, 0, 10)).verdict == "worse"
    assert paired_difference(*outcomes(10, 10, 0)).verdict == "better"


@given(st.integers(2, 400), st.integers(0, 400), st.integers(0, 400))
@quick
def test_difference_is_antisymmetric_and_inside_its_interval(n: int, a: int, b: int) -> None:
    gained = a % (n + 1)
    lost = b % (n - gained + 1)
    one = paired_difference(*outcomes(n, gained, lost), resamples=400)
    other = paired_difference(*outcomes(n, lost, gained), resamples=400)
    assert one.difference == -other.difference
    assert -1 <= one.low <= one.difference <= one.high <= 1
    if one.method == "score":
        assert one.low == pytest.approx(-other.high)


@pytest.mark.parametrize(
    ("n", "gain", "loss"),
    [
        (60, 0.03, 0.03),
        (200, 0.01, 0.01),
        (872, 0.01, 0.018),
        (872, 0.05, 0.05),
        (3000, 0.02, 0.03),
    ],
)
def test_difference_interval_covers_the_truth(n: int, gain: float, loss: float) -> None:
    rng = np.random.default_rng(11)
    runs, covered, false_alarms = 500, 0, 0
    for seed in range(runs):
        gained, lost, _ = rng.multinomial(n, [gain, loss, 1 - gain - loss])
        found = paired_difference(*outcomes(n, gained, lost), seed=seed, resamples=1000)
        covered += found.low <= gain - loss <= found.high
        false_alarms += gain == loss and found.verdict != "no difference shown"
    # Three standard errors of 500 runs at 95 % are 2.9 points.
    assert covered / runs >= 0.92
    assert false_alarms / runs <= 0.08


def test_difference_of_scores_that_are_not_binary() -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(0, 1, 300)
    candidate = reference + rng.normal(0.02, 0.05, 300)
    found = paired_difference(reference, candidate)
    half = 1.96 * (candidate - reference).std(ddof=1) / math.sqrt(300)
    assert found.p_value is None
    assert found.low == pytest.approx(found.difference - half, rel=0.05)
    assert found.high == pytest.approx(found.difference + half, rel=0.05)
    assert found.verdict == "better"


@pytest.mark.parametrize("skewed", [20, 4])
def test_bca_follows_the_skew_as_an_independent_one_does(skewed: int) -> None:
    delta = np.concatenate([np.zeros(300), np.linspace(0.5, 1.0, 60)])
    delta[:skewed] = 8.0
    found = paired_difference(np.zeros(delta.size), delta, resamples=40_000)
    assert found.method == "bca"
    oracle = stats.bootstrap(
        (delta,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = found.high - found.low
    assert found.low == pytest.approx(oracle.low, abs=0.02 * width)
    assert found.high == pytest.approx(oracle.high, abs=0.02 * width)
    assert found.high - found.difference > 1.1 * (found.difference - found.low)


def test_a_constant_difference_has_no_width() -> None:
    found = paired_difference(np.full(100, 0.5), np.full(100, 0.75))
    assert (found.method, found.low, found.high) == ("percentile", 0.25, 0.25)


def test_few_discordant_samples_need_both_tests() -> None:
    # 5 of 5 lost: the score interval excludes zero, the exact test (p = 0.0625) does not.
    found = paired_difference(*outcomes(200, 0, 5))
    assert found.discordant < FEW_DISCORDANT
    assert found.high < 0 < (found.p_value or 0) - 0.05
    assert found.verdict == "no difference shown"
    assert paired_difference(*outcomes(200, 0, 6)).verdict == "worse"


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [([1.0], [1.0]), ([1, 0], [1, 0, 1]), ([1, math.nan], [1, 0]), ([[1, 0]], [[1, 0]])],
)
def test_difference_refuses(reference: list[float], candidate: list[float]) -> None:
    with pytest.raises(BadData):
        paired_difference(reference, candidate)


def test_ratio_known() -> None:
    rng = np.random.default_rng(1)
    drift = np.exp(np.cumsum(rng.normal(0, 0.05, 200)))
    baseline = 10 * drift * np.exp(rng.normal(0, 0.02, 200))
    candidate = 8 * drift * np.exp(rng.normal(0, 0.02, 200))
    candidate[::40] *= 20  # Spikes of the scheduler's making.
    found = paired_ratio(baseline, candidate)
    assert found.ratio == pytest.approx(0.8, rel=0.01)
    assert found.low <= 0.8 <= found.high
    assert found.high - found.low < 0.03
    assert (found.n, found.verdict) == (200, "better")
    back = paired_ratio(candidate, baseline)
    assert back.verdict == "worse"
    assert back.ratio == pytest.approx(1 / found.ratio)
    assert (back.low, back.high) == (pytest.approx(1 / found.high), pytest.approx(1 / found.low))


def test_ratio_of_equals_shows_no_difference() -> None:
    same = np.linspace(1, 2, 20)
    found = paired_ratio(same, same)
    assert (found.ratio, found.low, found.high) == (1, 1, 1)
    assert found.verdict == "no difference shown"


def test_ratio_of_six_rounds_spans_them_all() -> None:
    candidate = np.array([1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
    found = paired_ratio(np.ones(6), candidate)
    assert (found.low, found.high) == (pytest.approx(1.1), pytest.approx(1.6))
    assert found.verdict == "worse"


@pytest.mark.parametrize(
    ("n", "correlation", "least"),
    [(6, 0.0, 0.93), (30, 0.0, 0.93), (100, 0.0, 0.93), (100, 0.5, 0.91), (300, 0.8, 0.87)],
)
def test_ratio_interval_covers_the_truth(n: int, correlation: float, least: float) -> None:
    rng = np.random.default_rng(5)
    runs, covered = 400, 0
    for _ in range(runs):
        noise = rng.normal(size=n)
        for i in range(1, n):
            noise[i] = correlation * noise[i - 1] + math.sqrt(1 - correlation**2) * noise[i]
        found = paired_ratio(np.ones(n), np.exp(0.05 * noise))
        covered += found.low <= 1 <= found.high
    assert covered / runs >= least


@pytest.mark.parametrize(
    ("baseline", "candidate"),
    [
        ([1.0] * 5, [1.0] * 5),
        ([1.0] * 6, [1.0] * 7),
        ([1.0] * 6, [1.0] * 5 + [0.0]),
        ([1.0] * 5 + [-1.0], [1.0] * 6),
        ([1.0] * 6, [1.0] * 5 + [math.nan]),
        ([math.inf] * 6, [1.0] * 6),
    ],
)
def test_ratio_refuses(baseline: list[float], candidate: list[float]) -> None:
    with pytest.raises(BadData):
        paired_ratio(baseline, candidate)
