"""Aggregate: what a device counts over one window, and that window as OTLP.

Counts and histograms only. Memory is bounded whatever is counted: sketches have at most 2,560
buckets, classes 4,097 counters, reasons and errors as many as the allow-list has names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from edgekit.runtime import otlp
from edgekit.runtime._draws import Draws, Report, Taken
from edgekit.runtime.attributes import Value, allowed
from edgekit.runtime.input_statistics import INPUT_BOUNDS
from edgekit.runtime.sketch import Sketch

__all__ = [
    "CONFIDENCE_BOUNDS",
    "MAX_CLASS",
    "Aggregate",
    "dropped_metric",
]

CONFIDENCE_BOUNDS: Final = tuple(i / 20 for i in range(1, 20))
"""Inner edges of 20 equal bins of [0, 1]."""

MAX_CLASS: Final = 4095
_CONFIDENCE_BINS: Final = len(CONFIDENCE_BOUNDS) + 1

_BOUNDS: Final[Mapping[str, tuple[float, ...]]] = {
    "edgekit.prediction.confidence": CONFIDENCE_BOUNDS,
    **{f"edgekit.input.{name}": bounds for name, bounds in INPUT_BOUNDS.items()},
}

Metric = dict[str, Any]


class Aggregate:
    """The counts of one window. Not safe to use from several threads; the recorder holds a lock.

    Args:
        draws: see what tells of answers and inputs, in place of counting it.
    """

    __slots__ = (
        "classes", "confidence", "draws", "durations", "errors", "inputs", "memory", "reports",
        "requests",
    )  # fmt: skip

    def __init__(self, draws: Draws | None = None) -> None:
        self.draws = draws
        self.reports: list[Report] = []
        self.durations: dict[str, Sketch] = {}
        self.memory = Sketch()
        self.requests: dict[tuple[str, str], int] = {}
        self.errors: dict[tuple[str, str], int] = {}
        self.confidence = [0] * _CONFIDENCE_BINS
        self.classes: dict[int, int] = {}
        self.inputs: dict[int, tuple[list[int], ...]] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing was counted."""
        return not (
            self.requests or self.errors or self.memory.count or self.inputs or self.reports
        )

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
        if memory_bytes is not None:
            self.memory.add(memory_bytes)
        if self.draws is not None:
            self.draws.prediction(confidence, predicted)
            return
        if confidence is not None and 0.0 <= confidence <= 1.0:
            self.confidence[bisect_left(CONFIDENCE_BOUNDS, confidence)] += 1
        if predicted is not None and predicted >= 0:
            # What argmax gives is a number of numpy's, which the allow-list doesn't know.
            index = int(predicted) if predicted <= MAX_CLASS else -1
            self.classes[index] = self.classes.get(index, 0) + 1

    def add_error(self, source: str, kind: str) -> None:
        """Counts one error; both have been checked."""
        key = (source, kind)
        self.errors[key] = self.errors.get(key, 0) + 1

    def add_inputs(self, bins: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Counts what `InputStatistics.bins` gave for one sample."""
        if self.draws is not None:
            self.draws.inputs(bins)
            return
        for index, places in bins:
            for counts, place in zip(self._input(index), places, strict=True):
                counts[place] += 1

    def taken(self, now_s: float) -> Taken:
        """What was drawn, if a report of it is due; the next window's draws begin anew."""
        return {} if self.draws is None else self.draws.take(now_s)

    def pay(self, taken: Taken, now_s: float) -> None:
        """Has the budget pay for what was drawn, and adds it, noised; not under the lock: it goes
        to the disk."""
        if self.draws is not None:
            self.reports += self.draws.reports(taken, now_s)

    def forget(self) -> None:
        """Drops what was drawn and not yet reported."""
        if self.draws is not None:
            self.draws.forget()

    def merge(self, other: Aggregate) -> None:
        """Counts all that another has counted, of a window that could not be written."""
        for source, sketch in other.durations.items():
            self.durations.setdefault(source, Sketch()).merge(sketch)
        self.memory.merge(other.memory)
        _add(self.requests, other.requests)
        _add(self.errors, other.errors)
        _add(self.classes, other.classes)
        self.reports += other.reports
        self.confidence = [a + b for a, b in zip(self.confidence, other.confidence, strict=True)]
        for index, theirs in other.inputs.items():
            for mine, counts in zip(self._input(index), theirs, strict=True):
                mine[:] = [a + b for a, b in zip(mine, counts, strict=True)]

    def _input(self, index: int) -> tuple[list[int], ...]:
        """The counts of an input, by the order of `INPUT_BOUNDS`."""
        if index not in self.inputs:
            empty = tuple([0] * (len(bounds) + 1) for bounds in INPUT_BOUNDS.values())
            self.inputs[index] = empty
        return self.inputs[index]

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

        def noised(report: Report) -> dict[str, Any]:
            about: dict[str, Value] = {
                "edgekit_noise_epsilon": report.thousandths,
                "edgekit_noise_choices": report.choices,
            }
            if report.metric == "edgekit.prediction.classes":
                return point({"as_int": 1}, edgekit_class=report.place, **about)
            if report.input >= 0:
                about["edgekit_input"] = report.input
            hit = [int(place == report.place) for place in range(report.choices)]
            return bins(hit, _BOUNDS[report.metric], **about)

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
        inputs = [
            (
                f"edgekit.input.{name}",
                "1",
                "histogram",
                [bins(c[place], bounds, edgekit_input=i) for i, c in self.inputs.items()],
            )
            for place, (name, bounds) in enumerate(INPUT_BOUNDS.items())
        ]
        by_metric: dict[str, list[dict[str, Any]]] = {}
        for report in self.reports:
            by_metric.setdefault(report.metric, []).append(noised(report))
        sure += by_metric.get("edgekit.prediction.confidence", [])
        classes += by_metric.get("edgekit.prediction.classes", [])
        for name, _, _, points in inputs:
            points += by_metric.get(name, [])
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
                *inputs,
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
