"""Aggregate: what a device counts over one window, and that window as OTLP.

Counts and histograms only. Memory is bounded whatever is counted: sketches have at most 2,560
buckets, classes 4,097 counters, reasons and errors as many as the allow-list has names.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from edgekit.runtime import otlp
from edgekit.runtime.attributes import Value, allowed
from edgekit.runtime.sketch import Sketch

__all__ = [
    "CONFIDENCE_BOUNDS",
    "DEVIATION_BOUNDS",
    "MEAN_BOUNDS",
    "Aggregate",
    "InputStatistics",
    "dropped_metric",
]

CONFIDENCE_BOUNDS: Final = tuple(i / 20 for i in range(1, 20))
"""Inner edges of 20 equal bins of [0, 1]."""

MEAN_BOUNDS: Final = tuple(i / 4 for i in range(-12, 13))
"""Of (sample mean - reference mean) / reference standard deviation."""

DEVIATION_BOUNDS: Final = tuple(i / 4 for i in range(-12, 13))
"""Of log2(sample standard deviation / reference standard deviation)."""

_MAX_CLASS: Final = 4095
_MOST_INPUTS: Final = 64
_CONFIDENCE_BINS: Final = len(CONFIDENCE_BOUNDS) + 1

Array = np.ndarray[Any, Any]
Metric = dict[str, Any]


class InputStatistics:
    """Mean and spread of inputs, in units of those of the evaluation data that a bundle tells of.

    Args:
        reference: the ``reference_statistics`` of a bundle's manifest: under ``inputs``, by name,
            ``mean`` (of all values) and ``std`` (the root of the mean variance within a sample).
        names: the model's inputs in the order of its signature, which is how they are told apart.
    """

    def __init__(self, reference: Mapping[str, Any] | None, names: Iterable[str]) -> None:
        known = (reference or {}).get("inputs") or {}
        self._scales: dict[str, tuple[int, float, float]] = {}
        for i, name in enumerate(itertools.islice(names, _MOST_INPUTS)):
            about = known.get(name) or {}
            mean, std = about.get("mean"), about.get("std")
            if isinstance(mean, int | float) and isinstance(std, int | float) and std > 0:
                self._scales[name] = (i, float(mean), float(std))

    def bins(self, inputs: Mapping[str, Array]) -> list[tuple[int, int, int]]:
        """Index of the input, bin of its mean and bin of its spread, for each that is known.

        Args:
            inputs: arrays by name, of one sample; values that are not finite are not counted.
        """
        found = []
        for name, (index, mean, std) in self._scales.items():
            array = inputs.get(name)
            if not isinstance(array, np.ndarray) or not array.size or array.dtype.kind != "f":
                continue
            here, spread = float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))
            if not (math.isfinite(here) and math.isfinite(spread)):
                continue
            ratio = math.log2(spread / std) if spread > 0 else -math.inf
            found.append(
                (
                    index,
                    bisect_left(MEAN_BOUNDS, (here - mean) / std),
                    bisect_left(DEVIATION_BOUNDS, ratio),
                )
            )
        return found


class Aggregate:
    """The counts of one window. Not safe to use from several threads; the recorder holds a lock."""

    __slots__ = ("classes", "confidence", "durations", "errors", "inputs", "memory", "requests")

    def __init__(self) -> None:
        self.durations: dict[str, Sketch] = {}
        self.memory = Sketch()
        self.requests: dict[tuple[str, str], int] = {}
        self.errors: dict[tuple[str, str], int] = {}
        self.confidence = [0] * _CONFIDENCE_BINS
        self.classes: dict[int, int] = {}
        self.inputs: dict[int, tuple[list[int], list[int]]] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing was counted."""
        return not (self.requests or self.errors or self.memory.count or self.inputs)

    def add(
        self,
        source: str,
        reason: str,
        duration_s: float | None,
        confidence: float | None,
        predicted: int | None,
        memory_bytes: float | None,
    ) -> None:
        """Counts one request; source and reason have been checked."""
        key = (source, reason)
        self.requests[key] = self.requests.get(key, 0) + 1
        if duration_s is not None:
            sketch = self.durations.get(source)
            if sketch is None:
                sketch = self.durations[source] = Sketch()
            sketch.add(duration_s)
        if confidence is not None and 0.0 <= confidence <= 1.0:
            self.confidence[bisect_left(CONFIDENCE_BOUNDS, confidence)] += 1
        if predicted is not None and predicted >= 0:
            # What argmax gives is a number of numpy's, which the allow-list doesn't know.
            index = int(predicted) if predicted <= _MAX_CLASS else -1
            self.classes[index] = self.classes.get(index, 0) + 1
        if memory_bytes is not None:
            self.memory.add(memory_bytes)

    def add_error(self, source: str, kind: str) -> None:
        """Counts one error; both have been checked."""
        key = (source, kind)
        self.errors[key] = self.errors.get(key, 0) + 1

    def add_inputs(self, bins: Iterable[tuple[int, int, int]]) -> None:
        """Counts what `InputStatistics.bins` gave for one sample."""
        for index, mean, deviation in bins:
            if index not in self.inputs:
                shape = len(MEAN_BOUNDS) + 1, len(DEVIATION_BOUNDS) + 1
                self.inputs[index] = [0] * shape[0], [0] * shape[1]
            self.inputs[index][0][mean] += 1
            self.inputs[index][1][deviation] += 1

    def merge(self, other: Aggregate) -> None:
        """Counts all that another has counted, of a window that could not be written."""
        for source, sketch in other.durations.items():
            self.durations.setdefault(source, Sketch()).merge(sketch)
        self.memory.merge(other.memory)
        _add(self.requests, other.requests)
        _add(self.errors, other.errors)
        _add(self.classes, other.classes)
        self.confidence = [a + b for a, b in zip(self.confidence, other.confidence, strict=True)]
        for index, pair in other.inputs.items():
            own = self.inputs.setdefault(index, ([0] * len(pair[0]), [0] * len(pair[1])))
            for mine, theirs in zip(own, pair, strict=True):
                mine[:] = [a + b for a, b in zip(mine, theirs, strict=True)]

    def to_metrics(self, start_ns: int, end_ns: int) -> list[Metric]:
        """The window as OTLP's metrics, without what is empty."""
        window = {"start_time_unix_nano": start_ns, "time_unix_nano": end_ns}

        def point(data: Mapping[str, Any], **attributes: Value) -> dict[str, Any]:
            names = {key.replace("_", "."): value for key, value in attributes.items()}
            return {**window, **data, "attributes": otlp.key_values(allowed(names))}

        def bins(counts: list[int], bounds: Iterable[float], **attributes: Value) -> dict[str, Any]:
            data = {
                "count": sum(counts),
                "bucket_counts": counts,
                "explicit_bounds": list(bounds),
            }
            return point(data, **attributes)

        durations = [point(s.to_otlp(), edgekit_source=k) for k, s in self.durations.items()]
        memory = [point(self.memory.to_otlp())] if self.memory.count else []
        requests = [
            point({"as_int": n}, edgekit_source=source, edgekit_reason=reason)
            for (source, reason), n in sorted(self.requests.items())
        ]
        errors = [
            point({"as_int": n}, edgekit_source=source, error_type=kind)
            for (source, kind), n in sorted(self.errors.items())
        ]
        classes = [
            point({"as_int": n}, edgekit_class=index) for index, n in sorted(self.classes.items())
        ]
        sure = [bins(self.confidence, CONFIDENCE_BOUNDS)] if any(self.confidence) else []
        means = [bins(m, MEAN_BOUNDS, edgekit_input=i) for i, (m, _) in self.inputs.items()]
        spreads = [bins(d, DEVIATION_BOUNDS, edgekit_input=i) for i, (_, d) in self.inputs.items()]
        sketched, binned = "exponential_histogram", "histogram"
        return [
            _metric(name, unit, kind, data)
            for name, unit, kind, data in (
                ("edgekit.inference.duration", "s", sketched, durations),
                ("edgekit.inference.memory", "By", sketched, memory),
                ("edgekit.inference.requests", "{request}", "sum", requests),
                ("edgekit.inference.errors", "{error}", "sum", errors),
                ("edgekit.prediction.confidence", "1", binned, sure),
                ("edgekit.prediction.classes", "{prediction}", "sum", classes),
                ("edgekit.input.mean", "1", binned, means),
                ("edgekit.input.deviation", "1", binned, spreads),
            )
            if data
        ]


def dropped_metric(
    drops: Mapping[tuple[str, str], int], start_ns: int, end_ns: int
) -> list[Metric]:
    """The records that the spool dropped in a window, by signal and reason, as OTLP's metric."""
    points = [
        {
            "start_time_unix_nano": start_ns,
            "time_unix_nano": end_ns,
            "as_int": count,
            "attributes": otlp.key_values(
                allowed({"edgekit.signal": signal, "edgekit.drop.reason": reason})
            ),
        }
        for (signal, reason), count in sorted(drops.items())
        if count > 0
    ]
    return [_metric("edgekit.telemetry.dropped", "{record}", "sum", points)] if points else []


def _metric(name: str, unit: str, kind: str, points: list[dict[str, Any]]) -> Metric:
    data: dict[str, Any] = {"data_points": points, "aggregation_temporality": otlp.DELTA}
    if kind == "sum":
        data["is_monotonic"] = True
    return {"name": name, "unit": unit, kind: data}


def _add(into: dict[Any, int], other: Mapping[Any, int]) -> None:
    for key, count in other.items():
        into[key] = into.get(key, 0) + count
