"""Drift reference: what a bundle tells of its inputs and answers on data of its makers.

The workshop counts both on the samples that it proved the artifacts on, in the very bins in which
a device counts, and the manifest keeps the counts as ``reference_statistics``. So the fleet can be
held against what the model was proven for, and not only against what the fleet did last week.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgekit.runtime.aggregate import CONFIDENCE_BOUNDS, MAX_CLASS
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.input_statistics import INPUT_BOUNDS, binned, measured
from edgekit.runtime.policy import Policy, certainty

__all__ = ["DriftReference", "counted_inputs", "counted_predictions", "with_policy"]

Array = np.ndarray[Any, Any]
Counts = dict[int, int]
_FLOAT: Final = "fp32"


# -- writing --------------------------------------------------------------------------------------


def counted_inputs(arrays: Iterable[Array]) -> dict[str, Any] | None:
    """Moments of an input, and its samples by the bins of `INPUT_BOUNDS`.

    Args:
        arrays: the input of one sample each.

    Returns:
        the entry of ``inputs``; None where there is nothing to count, or no value differs.
    """
    samples, low, high = [], math.inf, -math.inf
    for array in arrays:
        sample = measured(array)
        if sample is not None:
            samples.append(sample)
            low, high = min(low, float(array.min())), max(high, float(array.max()))
    if not samples:
        return None
    mean = float(np.mean([sample.mean for sample in samples]))
    std = float(np.sqrt(np.mean([sample.deviation**2 for sample in samples])))
    found: dict[str, Any] = {"n": len(samples), "mean": mean, "std": std, "min": low, "max": high}
    if not std > 0:
        return found
    bins = np.array([binned(sample, mean, std) for sample in samples])
    found["histograms"] = {
        name: _histogram(bounds, bins[:, place])
        for place, (name, bounds) in enumerate(INPUT_BOUNDS.items())
    }
    return found


def counted_predictions(
    scores: Array, kind: str, temperature: float = 1.0, signal: str = "confidence"
) -> dict[str, Any]:
    """Samples by class, and by how sure their answers are in the bins of `CONFIDENCE_BOUNDS`.

    Args:
        scores: [n, classes], all finite.
        kind, temperature, signal: as `edgekit.runtime.policy.certainty` has them.
    """
    width = scores.shape[1]
    found: dict[str, Any] = {
        "n": len(scores),
        "classes": np.bincount(scores.argmax(axis=1), minlength=width).tolist(),
    }
    if width > 1:
        sure = certainty(scores, temperature, signal, kind).tolist()
        bins = [bisect_left(CONFIDENCE_BOUNDS, value) for value in sure]
        found["confidence"] = _histogram(CONFIDENCE_BOUNDS, bins)
        found |= {"temperature": temperature, "signal": signal}
    return found


def with_policy(bundle: Bundle, policy: Policy, scores: Array, scheme: str) -> dict[str, Any]:
    """A bundle's statistics with those of an artifact's answers as a policy takes them.

    Args:
        bundle: the one that the policy was tuned for.
        policy: what makes a confidence of the scores.
        scores: [n, classes] of the samples that it was tuned on.
        scheme: of the artifact.
    """
    found = dict(bundle.manifest.get("reference_statistics") or {})
    predictions = dict(found.get("predictions") or {})
    name = policy.scored(bundle.signature).name
    entry = dict(predictions.get(name) or {})
    counted = counted_predictions(scores, policy.scores, policy.temperature, policy.signal)
    entry["policy"] = {**counted, "scheme": scheme}
    return {**found, "predictions": {**predictions, name: entry}}


def _histogram(bounds: Sequence[float], bins: Sequence[int] | Array) -> dict[str, Any]:
    counts = np.bincount(bins, minlength=len(bounds) + 1)
    return {"edges": list(bounds), "counts": counts.tolist()}


# -- reading --------------------------------------------------------------------------------------


class DriftReference:
    """What devices with a bundle are held against.

    Args:
        bundle: it need not stay open. One that was packed without counts has no reference.

    Attributes:
        digest: the bundle's, by which a device's counts are known to be of it.
        name, version: the bundle's.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.digest, self.name, self.version = bundle.digest, bundle.name, bundle.version
        known = bundle.manifest.get("reference_statistics") or {}
        policy = bundle.manifest.get("policy")
        self._policy = Policy() if policy is None else Policy.from_json(policy)
        self._tuned = policy is not None
        inputs = _object(known.get("inputs"))
        self._inputs = [_object(inputs.get(spec.name)) for spec in bundle.signature.inputs]
        self._predictions = _object(self._output(_object(known.get("predictions"))))
        self._scheme = bundle.artifacts[0].scheme if bundle.artifacts else _FLOAT

    def _output(self, predictions: Mapping[str, Any]) -> Any:
        if self._policy.output is not None:
            return predictions.get(self._policy.output)
        # Of several outputs nobody said which the app records.
        return next(iter(predictions.values())) if len(predictions) == 1 else None

    def counts(self, metric: str, which: str = "", scheme: str = "") -> Counts | None:
        """Counts by bin, or by class; None where the bundle has none in the bins of today.

        Args:
            metric: ``edgekit.prediction.confidence`` or ``.classes``, or ``edgekit.input.*``.
            which: of inputs, the place in the signature.
            scheme: of the artifact that ran; empty: that of the bundle's first.
        """
        if metric == "edgekit.prediction.classes":
            return self._classes(scheme)
        if metric == "edgekit.prediction.confidence":
            return self._confidence(scheme)
        name = metric.removeprefix("edgekit.input.")
        if name not in INPUT_BOUNDS or not which.isdigit() or int(which) >= len(self._inputs):
            return None
        histograms = _object(self._inputs[int(which)].get("histograms"))
        return _read(histograms.get(name), INPUT_BOUNDS[name])

    def _plan(self, scheme: str) -> Mapping[str, Any]:
        if self._predictions.get("held_out") is not True:
            return {}  # a model is surer of what it has learnt from
        plans = _object(self._predictions.get("plans"))
        return _object(plans.get(scheme or self._scheme) or plans.get(_FLOAT))

    def _classes(self, scheme: str) -> Counts | None:
        counts = _whole(self._plan(scheme).get("classes"))
        if counts is None:
            return None
        found = {index: n for index, n in enumerate(counts[: MAX_CLASS + 1]) if n}
        if beyond := sum(counts[MAX_CLASS + 1 :]):
            found[-1] = beyond
        return found

    def _confidence(self, scheme: str) -> Counts | None:
        plan = self._plan(scheme)
        if self._tuned:
            plan = _object(self._predictions.get("policy"))
        settings = plan.get("temperature"), plan.get("signal")
        if settings != (self._policy.temperature, self._policy.signal):
            return None  # devices count another number
        return _read(plan.get("confidence"), CONFIDENCE_BOUNDS)


def _read(histogram: object, bounds: Sequence[float]) -> Counts | None:
    about = _object(histogram)
    counts = _whole(about.get("counts"))
    if counts is None or about.get("edges") != list(bounds) or len(counts) != len(bounds) + 1:
        return None
    return dict(enumerate(counts))


def _whole(counts: object) -> list[int] | None:
    if not isinstance(counts, list) or not counts:
        return None
    return counts if all(type(n) is int and n >= 0 for n in counts) else None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
