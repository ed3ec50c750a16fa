"""When to ask the cloud: a temperature, a threshold, and what to expect of them. numpy alone.

Everything is chosen on one part of the evaluation data and told of another, which nothing was
chosen on. Beside it stands routing by lot, which sends as many requests without looking at them: a
confidence that is no better than that is worth nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData, GateFailed, UsageError
from edgekit.paired import PairedDifference, paired_difference
from edgekit.runtime.policy import certainty, log_probabilities

__all__ = [
    "RULES",
    "Observed",
    "Point",
    "Rule",
    "choose",
    "curve",
    "expected",
    "fit_temperature",
    "kind_of_scores",
    "nll",
    "observe",
    "ranking",
    "wilson",
]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float]

RULES: Final = ("keep", "target-accuracy", "max-cloud-share")
_COLDEST: Final = 0.02
_HOTTEST: Final = 50.0
_Z95: Final = 1.959963984540054


def kind_of_scores(scores: npt.ArrayLike) -> str:
    """``probabilities`` where every row [N, C] is one (within int8's rounding), else ``logits``."""
    values = np.asarray(scores, np.float64)
    like = values.min() >= 0 and values.max() <= 1 and np.abs(values.sum(axis=1) - 1).max() < 0.02
    return "probabilities" if like else "logits"


def nll(scores: npt.ArrayLike, labels: npt.ArrayLike, temperature: float, kind: str) -> float:
    """Mean negative log-likelihood of the labels [N] under scores [N, C] at a temperature."""
    logs = log_probabilities(scores, temperature, kind)
    truth = np.asarray(labels)
    return float(-logs[np.arange(len(truth)), truth].mean())


def fit_temperature(scores: npt.ArrayLike, labels: npt.ArrayLike, kind: str = "logits") -> float:
    """The temperature that makes the labels likeliest.

    Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599. The likelihood
    has one peak along 1 / T, as it is log-concave there; a golden-section search finds it.

    Args:
        scores: [N, C].
        labels: [N] class indices.
        kind: ``logits`` or ``probabilities``.

    Returns:
        A temperature from 0.02 to 50. Scores that are never wrong have no best one: then 0.02.

    Raises:
        BadData: other shapes, or a score that is not finite.
    """
    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left = nll(scores, labels, math.exp(left), kind)
    at_right = nll(scores, labels, math.exp(right), kind)
    while high - low > 1e-4:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = nll(scores, labels, math.exp(left), kind)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = nll(scores, labels, math.exp(right), kind)
    return float(math.exp((low + high) / 2))


@dataclass(frozen=True)
class Observed:
    """What both sides answered on some samples.

    Attributes:
        sure: [N] how sure the device is, 0 to 1.
        device: [N] whether it is right.
        cloud: [N] whether the cloud is.
    """

    sure: Floats
    device: Bools
    cloud: Bools

    def __len__(self) -> int:
        return len(self.sure)

    def part(self, rows: Bools) -> Observed:
        """The samples where ``rows`` [N] holds."""
        return Observed(self.sure[rows], self.device[rows], self.cloud[rows])

    def sent(self, threshold: float) -> Bools:
        """[N] which samples go to the cloud."""
        return self.sure < threshold

    def right(self, threshold: float) -> Bools:
        """[N] which are answered right."""
        return np.where(self.sent(threshold), self.cloud, self.device)

    def by_lot(self, threshold: float) -> Floats:
        """[N] how often each is answered right, where as many are sent, drawn by lot."""
        share = float(self.sent(threshold).mean())
        return share * self.cloud.astype(np.float64) + (1 - share) * self.device


def observe(
    scores: npt.ArrayLike,
    cloud_scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    temperature: float,
    signal: str,
    kind: str,
) -> Observed:
    """Both sides' scores [N, C] and the labels [N], as what routing depends on.

    Raises:
        BadData: the shapes do not fit each other, or a score is not finite.
    """
    own, theirs, truth = np.asarray(scores), np.asarray(cloud_scores), np.asarray(labels)
    if own.ndim != 2 or theirs.shape[:1] != own.shape[:1] or truth.shape != own.shape[:1]:
        raise BadData(f"scores {own.shape}, {theirs.shape} and labels {truth.shape} do not fit")
    if not np.isfinite(theirs).all():
        raise BadData("the cloud's scores hold NaN or infinity")
    sure = certainty(own, temperature, signal, kind)
    return Observed(sure, own.argmax(axis=1) == truth, theirs.argmax(axis=1) == truth)


def ranking(seen: Observed) -> float:
    """How well being sure tells whom to ask: mean accuracy, 0 to 1, over all shares that are sent.

    The area under accuracy against share (Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty
    Estimation for Deep Neural Classifiers", 2019, arXiv 1805.08206, have it of coverage and risk).
    Samples that are equally sure are sent together, so that their order tells nothing.
    """
    order = np.argsort(seen.sure, kind="stable")
    gained = seen.cloud[order].astype(np.float64) - seen.device[order]
    _, group = np.unique(seen.sure[order], return_inverse=True)
    gained = (np.bincount(group, gained) / np.bincount(group))[group]
    return float(seen.device.mean() + np.cumsum(gained).mean() / len(seen))


@dataclass(frozen=True)
class Point:
    """What to expect of one threshold, on samples that it was not chosen on. Percent, but for
    ``threshold`` and ``latency_ms``; intervals are of 95 %.

    Attributes:
        threshold: an answer that is less sure is sent.
        cloud_share, cloud_share_ci95: of the requests.
        accuracy, accuracy_ci95: of routing by this threshold.
        random: accuracy where as many are sent by lot.
        gain, gain_ci95: points over that, paired by sample.
        latency_ms: of a request, in the mean.
    """

    threshold: float
    cloud_share: float
    cloud_share_ci95: Interval
    accuracy: float
    accuracy_ci95: Interval
    random: float
    gain: float
    gain_ci95: Interval
    latency_ms: float

    @classmethod
    def of(cls, seen: Observed, threshold: float, device_ms: float, cloud_ms: float) -> Point:
        """The point of one threshold on samples of at least two."""
        sent, right, lot = seen.sent(threshold), seen.right(threshold), seen.by_lot(threshold)
        share, accuracy = float(sent.mean()), float(right.mean())
        over = paired_difference(lot, right, resamples=2000)
        return cls(
            threshold,
            100 * share,
            _percent(wilson(share, len(seen))),
            100 * accuracy,
            _percent(wilson(accuracy, len(seen))),
            100 * float(lot.mean()),
            100 * over.difference,
            _percent((over.low, over.high)),
            device_ms + share * cloud_ms,
        )

    def to_json(self) -> dict[str, Any]:
        """As the schema has it."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def curve(
    tuned: Observed, told: Observed, device_ms: float, cloud_ms: float, *, points: int = 20
) -> list[Point]:
    """Accuracy against cloud share: thresholds that send 0, 1/20, ... of ``tuned``, as ``told``."""
    found: list[Point] = []
    for i in range(points + 1):
        threshold = _threshold(np.sort(tuned.sure), round(i * len(tuned) / points))
        if not found or threshold != found[-1].threshold:
            found.append(Point.of(told, threshold, device_ms, cloud_ms))
    return found


@dataclass(frozen=True)
class Rule:
    """What is wanted: one of `RULES` and a percentage.

    - ``keep``: at least so much of the cloud's accuracy, with as few requests sent as will do;
    - ``target-accuracy``: at least this accuracy, with as few requests sent as will do;
    - ``max-cloud-share``: at most so many requests sent, and the best accuracy with that.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        if self.kind not in RULES or not 0 <= self.value <= 100:
            raise UsageError(f"{self.kind} {self.value}: a percentage from 0 to 100 is wanted")

    def judged(self, seen: Observed, threshold: float) -> PairedDifference:
        """How far it was met on samples, per sample: better than 0 is more than met."""
        right = seen.right(threshold).astype(np.float64)
        if self.kind == "keep":
            return paired_difference(self.value / 100 * seen.cloud, right)
        if self.kind == "target-accuracy":
            return paired_difference(np.full(len(seen), self.value / 100), right)
        return paired_difference(
            seen.sent(threshold).astype(np.float64), np.full(len(seen), self.value / 100)
        )


def choose(seen: Observed, rule: Rule) -> float:
    """The threshold that a rule wants, on the samples that it is chosen on.

    Raises:
        GateFailed: no threshold reaches the accuracy that is wanted.
        BadData: there are no samples.
    """
    if len(seen) < 2:
        raise BadData(f"{len(seen)} samples are too few to choose a threshold on")
    order = np.argsort(seen.sure, kind="stable")
    ordered = seen.sure[order]
    # Right answers with the k least sure sent, for k of 0 to N.
    cloud = np.concatenate([[0], np.cumsum(seen.cloud[order])])
    device = np.concatenate([[0], np.cumsum(seen.device[order])])
    accuracy = (cloud + device[-1] - device) / len(seen)
    # Between two that are equally sure there is no threshold.
    possible = np.ones(len(seen) + 1, bool)
    possible[1:-1] = ordered[1:] > ordered[:-1]
    possible[-1] = ordered[-1] < 1
    ks = np.flatnonzero(possible)
    if rule.kind == "max-cloud-share":
        ks = ks[ks <= rule.value / 100 * len(seen) + 1e-9]
        return _threshold(ordered, int(ks[np.argmax(accuracy[ks])]))
    wanted = rule.value / 100 * (float(seen.cloud.mean()) if rule.kind == "keep" else 1.0)
    # A single lucky count is no reason: all larger shares up to the cloud alone have to do as well.
    good = np.minimum.accumulate(accuracy[ks][::-1])[::-1] >= wanted - 1e-12
    if not good.any():
        good = accuracy[ks] >= wanted - 1e-12
    if not good.any():
        raise GateFailed(
            f"no threshold reaches {100 * wanted:.2f} %: the device alone has "
            f"{100 * accuracy[0]:.2f} %, the cloud alone {100 * accuracy[-1]:.2f} %, and the best "
            f"mixture {100 * accuracy.max():.2f} %",
            hint="ask for less, or take a better teacher",
        )
    return _threshold(ordered, int(ks[np.argmax(good)]))


def _threshold(ordered: Floats, k: int) -> float:
    """What sends the ``k`` least sure of ``ordered`` [N], ascending."""
    if k == 0:
        return 0.0
    if k == len(ordered):
        return 1.0
    return float((ordered[k - 1] + ordered[k]) / 2)


def wilson(share: float, n: int) -> Interval:
    """Wilson's 95 % interval of a share of ``n`` samples, 0 to 1."""
    square = _Z95**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    reach = _Z95 * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _percent(interval: Interval) -> Interval:
    return 100 * interval[0], 100 * interval[1]


def expected(
    seen: Observed, threshold: float, device_ms: float, cloud_ms: float, cloud_kind: str
) -> dict[str, Any]:
    """What the policy's document says is to be expected (``chosen.expected``).

    Args:
        seen: samples that nothing was chosen on.
        threshold: as chosen.
        device_ms, cloud_ms: of one request to each side.
        cloud_kind: ``measured`` or ``estimate``.
    """
    point = Point.of(seen, threshold, device_ms, cloud_ms)

    def estimate(value: float, interval: Sequence[float]) -> dict[str, float]:
        return {"value": value, "low": interval[0], "high": interval[1]}

    return {
        "cloud_share": estimate(point.cloud_share, point.cloud_share_ci95),
        "accuracy": estimate(point.accuracy, point.accuracy_ci95),
        "device": 100 * float(seen.device.mean()),
        "teacher": 100 * float(seen.cloud.mean()),
        "random": point.random,
        "gain_over_random": estimate(point.gain, point.gain_ci95),
        "latency": {
            "device_ms": device_ms,
            "cloud_ms": cloud_ms,
            "mean_ms": point.latency_ms,
            "cloud_kind": cloud_kind,
        },
    }
