"""Tuning: temperatures, thresholds and the curve, on answers whose odds are known."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import BadData, GateFailed, UsageError
from edgekit.runtime.policy import SIGNALS
from edgekit.serve import tune
from edgekit.serve.tune import Observed, Rule, observe, ranking


def calibrated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, 3], and labels drawn by their softmax: temperature 1 is the best."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits, labels


def seen(n: int = 2000, seed: int = 0) -> Observed:
    """A device that is right as often as it is sure, and a cloud that is right 19 times of 20."""
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.5, 1, n)
    return Observed(sure, rng.random(n) < sure, rng.random(n) < 0.95)


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_the_temperature_undoes_what_made_the_scores_too_sure(factor: float) -> None:
    logits, labels = calibrated(20_000, 1)
    found = tune.fit_temperature(factor * logits, labels)
    assert found == pytest.approx(factor, rel=0.04)
    around = [tune.nll(factor * logits, labels, t, "logits") for t in (0.97 * found, 1.03 * found)]
    assert tune.nll(factor * logits, labels, found, "logits") < min(around)
    moved = tune.fit_temperature(factor * logits + 100, labels)  # softmax does not mind
    assert moved == pytest.approx(found, rel=1e-3)


def test_scores_that_are_never_wrong_have_the_coldest_temperature() -> None:
    logits = np.eye(3)[np.arange(30) % 3]
    assert tune.fit_temperature(logits, np.arange(30) % 3) == pytest.approx(0.02, rel=0.01)
    assert tune.fit_temperature(logits, (np.arange(30) + 1) % 3) == pytest.approx(50, rel=0.01)


def test_probabilities_are_known_from_logits() -> None:
    logits, labels = calibrated(500, 2)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert tune.kind_of_scores(p) == "probabilities"
    assert tune.kind_of_scores(np.rint(p * 256) / 256) == "probabilities"
    assert tune.kind_of_scores(logits) == "logits"
    assert tune.kind_of_scores(np.full((4, 3), 0.2)) == "logits"
    by_p = tune.fit_temperature(p, labels, "probabilities")
    assert by_p == pytest.approx(tune.fit_temperature(logits, labels), rel=1e-3)


def test_a_threshold_that_keeps_the_accuracy_sends_no_more_than_it_must() -> None:
    few = seen()
    for rule in (Rule("keep", 99), Rule("target-accuracy", 94)):
        threshold = tune.choose(few, rule)
        wanted = 0.94 if rule.kind == "target-accuracy" else 0.99 * few.cloud.mean()
        assert few.right(threshold).mean() >= wanted
        sent = int(few.sent(threshold).sum())
        # Of all thresholds that send less, one or another falls short from there on.
        less = np.sort(few.sure)[sent - 1]
        assert few.right(less).mean() < wanted


def test_of_the_allowed_share_the_best_is_taken() -> None:
    few = seen()
    threshold = tune.choose(few, Rule("max-cloud-share", 20))
    assert few.sent(threshold).mean() <= 0.2
    best = max(few.right(t).mean() for t in np.sort(few.sure)[:400])
    assert few.right(threshold).mean() >= best
    assert tune.choose(few, Rule("max-cloud-share", 0)) == 0.0


def test_answers_that_are_equally_sure_go_together() -> None:
    sure = np.repeat([0.5, 0.7, 1.0], 10)
    both = Observed(sure, np.zeros(30, bool), np.ones(30, bool))
    assert tune.choose(both, Rule("max-cloud-share", 50)) == pytest.approx(0.6)
    # Those of 1.0 are below no threshold, so that not all can be sent.
    with pytest.raises(GateFailed, match=r"cloud alone 100\.00 %"):
        tune.choose(both, Rule("target-accuracy", 90))


def test_what_cannot_be_reached_is_said() -> None:
    with pytest.raises(GateFailed, match=r"no threshold reaches 99\.90 %: the device alone has"):
        tune.choose(seen(), Rule("target-accuracy", 99.9))
    with pytest.raises(BadData, match="0 samples are too few"):
        tune.choose(seen(4).part(np.zeros(4, bool)), Rule("keep", 99))
    for wrong in (("keep", 101), ("keep", float("nan")), ("hope", 50)):
        with pytest.raises(UsageError):
            Rule(*wrong)


def test_a_confidence_that_knows_something_is_better_than_the_lot() -> None:
    tuned, told = seen(seed=1), seen(seed=2)
    points = tune.curve(tuned, told, 2.0, 30.0)
    assert len(points) == 21
    assert (points[0].cloud_share, points[0].latency_ms) == (0, 2.0)
    assert (points[-1].cloud_share, points[-1].latency_ms) == (100, 32.0)
    assert points[0].accuracy == 100 * told.device.mean() == points[0].random
    assert points[-1].accuracy == pytest.approx(100 * told.cloud.mean())
    shares = [p.cloud_share for p in points]
    assert shares == sorted(shares)
    for point in points[2:-2]:
        assert point.gain_ci95[0] > 0
        assert point.accuracy - point.random == pytest.approx(point.gain)
        share = point.cloud_share / 100
        lot = share * told.cloud.mean() + (1 - share) * told.device.mean()
        assert point.random == pytest.approx(100 * lot)
        low, high = point.accuracy_ci95
        assert low < point.accuracy < high


def test_a_confidence_that_knows_nothing_is_no_better_than_the_lot() -> None:
    rng = np.random.default_rng(3)
    for told in (seen(seed=4), seen(seed=5)):
        blind = Observed(rng.random(len(told)), told.device, told.cloud)
        for point in tune.curve(blind, blind, 1, 1)[2:-2:4]:
            low, high = point.gain_ci95
            assert low - 0.5 < 0 < high + 0.5


def test_a_rule_is_judged_on_other_samples_both_ways() -> None:
    told = seen(seed=6)
    assert Rule("max-cloud-share", 30).judged(told, 0.6).verdict == "better"
    assert Rule("max-cloud-share", 10).judged(told, 0.6).verdict == "worse"
    assert Rule("target-accuracy", 50).judged(told, 0.6).verdict == "better"
    assert Rule("keep", 100).judged(told, 0.0).verdict == "worse"


def test_the_interval_of_a_share_is_wilsons() -> None:
    low, high = tune.wilson(0.2, 100)  # Brown, Cai and DasGupta, 2001: 0.1333, 0.2888
    assert (low, high) == (pytest.approx(0.13337, abs=1e-4), pytest.approx(0.28883, abs=1e-4))
    assert tune.wilson(0.0, 10)[0] == 0
    assert tune.wilson(1.0, 10)[1] == pytest.approx(1)


def test_what_does_not_belong_together_is_refused() -> None:
    logits, labels = calibrated(10, 0)
    with pytest.raises(BadData, match="do not fit"):
        tune.observe(logits, logits[:9], labels, temperature=1, signal="margin", kind="logits")
    with pytest.raises(BadData, match="NaN"):
        tune.observe(logits, logits * np.nan, labels, temperature=1, signal="margin", kind="logits")


def test_ranking_is_the_mean_accuracy_over_all_shares() -> None:
    device, cloud = np.array([0, 0, 1, 1], bool), np.ones(4, bool)
    for sure, expected in (
        ([0.1, 0.2, 0.8, 0.9], (0.75 + 1 + 1 + 1) / 4),  # the wrong ones go first
        ([0.8, 0.9, 0.1, 0.2], (0.5 + 0.5 + 0.75 + 1) / 4),
        ([0.5] * 4, (0.625 + 0.75 + 0.875 + 1) / 4),  # equally sure: by lot
    ):
        seen = Observed(np.array(sure), device, cloud)
        assert ranking(seen) == pytest.approx(expected)
        back = Observed(seen.sure[::-1], seen.device[::-1], seen.cloud[::-1])
        assert ranking(back) == pytest.approx(expected)


def test_what_ranks_best_may_be_the_margin() -> None:
    """Wrong where two classes are close, however likely both are; the third takes the rest."""
    close, apart = [0.46, 0.44, 0.10], [0.44, 0.28, 0.28]
    p = np.array([close] * 50 + [apart] * 50)
    labels = np.array([1] * 50 + [0] * 50)
    by = {
        signal: ranking(
            observe(
                np.log(p), np.eye(3)[labels], labels,
                temperature=1.0, signal=signal, kind="logits",
            )
        )
        for signal in SIGNALS
    }  # fmt: skip
    assert by["margin"] > by["confidence"] and by["margin"] > by["entropy"]
