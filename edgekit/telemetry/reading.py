"""Reading: what a request holds, as counts that can be added to a store.

A request is parsed by Google's compiled decoder, as a receiver reads a thousand times as many
points as a device writes. What the contract does not have is refused point by point, with the
reason; attributes that are not on the allow-list are left out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from edgekit.errors import BadData
from edgekit.telemetry.contract import (
    EVENTS,
    METRICS,
    Cohort,
    Metric,
    Series,
    cohort_of,
    kept,
    series_of,
)

__all__ = ["HOUR_NS", "ZERO", "Delivery", "Event", "Point", "Request", "read_logs", "read_metrics"]

HOUR_NS: Final = 3_600 * 10**9
ZERO: Final = -(2**31)
"""The bucket of an exponential histogram's zeros."""

_DELTA: Final = 1
_MOST_BUCKETS: Final = 4_096
_SCALES: Final = range(-10, 21)
_SCALE: Final = 5
# So that no sum of what a store keeps of years leaves 64 bits: a device has no window of more.
_MOST: Final = 2**32
# A sum of as many as there are seconds in an age is a number, too.
_LARGEST: Final = 2.0**900
_LEAST_LOG2, _MOST_LOG2 = -1075, 1024
_SIXTEEN: Final = 16
_LONGEST: Final = 256
_MOST_ATTRIBUTES: Final = 128
_MOST_ENTRIES: Final = 250_000
# The decoder of JSON takes microseconds for each, in the thread that writes.
_MOST_VALUES: Final = 500_000


@dataclass(frozen=True, slots=True)
class Point:
    """One data point.

    Attributes:
        series, time_ns: what it counts, and until when, by the device's clock.
        first: the bucket of the first count.
        counts: by bucket; of a sum one.
        zeros: of an exponential histogram.
        total, low, high: of the values; NaN where the point tells none.
    """

    series: Series
    time_ns: int
    first: int
    counts: Sequence[int]
    zeros: int = 0
    total: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class Event:
    """One log record of the contract: its name, and its attributes by name."""

    name: str
    time_ns: int
    severity: int
    attributes: dict[str, Any]


@dataclass(slots=True)
class Delivery:
    """What came of one record of a device.

    Attributes:
        cohort, device: whose it is; no device where it did not say.
        id: of the record; None where the client gives none, and then it is counted as it comes.
        points, events: what it holds.
    """

    cohort: Cohort
    device: bytes | None
    id: bytes | None
    points: list[Point] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


@dataclass
class Request:
    """What a request holds.

    Attributes:
        deliveries: what is taken.
        rejected: points or log records that are not, by reason.
    """

    deliveries: list[Delivery] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)


class _No(Exception):
    """A point is not taken."""


class _Room:
    """Bounds what a request holds: an empty entry is two bytes, and costs as much as a full one."""

    def __init__(self) -> None:
        self._left = _MOST_ENTRIES

    def take(self, n: int) -> None:
        self._left -= n
        if self._left < 0:
            raise BadData(f"a request has at most {_MOST_ENTRIES} resources, metrics and points")


def read_metrics(body: bytes | memoryview, as_json: bool = False) -> Request:
    """What an ``ExportMetricsServiceRequest`` holds.

    Raises:
        BadData: the body is none.
    """
    message = _parsed(ExportMetricsServiceRequest(), body, as_json)
    request, room = Request(), _Room()
    room.take(len(message.resource_metrics))
    for resource in message.resource_metrics:
        cohort, device = _whose(resource.resource.SerializeToString(), resource.resource)
        by_id: dict[bytes | None, Delivery] = {}
        room.take(len(resource.scope_metrics))
        for scope in resource.scope_metrics:
            room.take(len(scope.metrics))
            for metric in scope.metrics:
                identity = _id(metric.metadata)
                delivery = by_id.get(identity)
                if delivery is None:
                    delivery = by_id[identity] = Delivery(cohort, device, identity)
                _read_metric(metric, delivery.points, request.rejected, room)
        request.deliveries += [delivery for delivery in by_id.values() if delivery.points]
    return request


def read_logs(body: bytes | memoryview, as_json: bool = False) -> Request:
    """What an ``ExportLogsServiceRequest`` holds.

    Raises:
        BadData: the body is none.
    """
    message = _parsed(ExportLogsServiceRequest(), body, as_json)
    request, room = Request(), _Room()
    room.take(len(message.resource_logs))
    for resource in message.resource_logs:
        cohort, device = _whose(resource.resource.SerializeToString(), resource.resource)
        room.take(len(resource.scope_logs))
        for scope in resource.scope_logs:
            room.take(len(scope.log_records))
            for record in scope.log_records:
                names = EVENTS.get(record.event_name)
                if names is None:
                    request.rejected["an event that edgekit does not have"] += 1
                    continue
                found = (
                    (a.key, _value(a.value))
                    for a in record.attributes[:_MOST_ATTRIBUTES]
                    if a.key in names
                )
                values = {key: kept(key, value) for key, value in found}
                event = Event(
                    record.event_name,
                    record.time_unix_nano or record.observed_time_unix_nano,
                    min(max(record.severity_number, 0), 24),
                    {key: value for key, value in values.items() if value is not None},
                )
                identity = _id(record.attributes)
                request.deliveries.append(Delivery(cohort, device, identity, events=[event]))
    return request


def _parsed(message: Any, body: bytes | memoryview, as_json: bool) -> Any:
    if as_json:
        _few_values(bytes(body))
    try:
        if as_json:
            json_format.Parse(bytes(body), message, ignore_unknown_fields=True)
        else:
            message.ParseFromString(bytes(body))
    except (DecodeError, json_format.ParseError, RecursionError, ValueError) as error:
        form = "JSON" if as_json else "protobuf"
        raise BadData(f"the body is no {type(message).__name__} in {form}") from error
    return message


def _few_values(body: bytes) -> None:
    """Bounds what JSON holds before it is read: each value follows a bracket or a comma."""
    if sum(body.count(sign) for sign in (b"[", b"{", b",")) > _MOST_VALUES:
        raise BadData(f"a body in JSON has at most {_MOST_VALUES} values; in protobuf, more")


_Whose = tuple[Cohort, bytes | None]
_MOST_KNOWN: Final = 4_096
_LONGEST_KNOWN: Final = 4_096
_known: dict[bytes, _Whose] = {}


def _whose(key: bytes, resource: Any) -> _Whose:
    """Cohort and device. A device's resource is the same all day, so it is read once."""
    found = _known.get(key)
    if found is None:
        attributes = {a.key: _value(a.value) for a in resource.attributes[:_MOST_ATTRIBUTES]}
        name = kept("service.instance.id", attributes.get("service.instance.id"))
        device = bytes.fromhex(name) if isinstance(name, str) else None
        found = cohort_of(attributes), device
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        if len(key) <= _LONGEST_KNOWN:
            _known[key] = found
    return found


def _id(attributes: Iterable[Any]) -> bytes | None:
    for attribute in islice(attributes, _MOST_ATTRIBUTES):
        if attribute.key == "event.id":
            try:
                found = bytes.fromhex(attribute.value.string_value)
            except ValueError:
                return None
            return found if len(found) == _SIXTEEN else None
    return None


def _value(value: Any) -> str | int | None:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        # What the allow-list admits is shorter.
        return str(value.string_value)[:_LONGEST]
    return int(value.int_value) if kind == "int_value" else None


def _read_metric(metric: Any, into: list[Point], rejected: Counter[str], room: _Room) -> None:
    kind = metric.WhichOneof("data")
    if kind is None:
        return
    data = getattr(metric, kind)
    points = data.data_points
    room.take(len(points))
    about = METRICS.get(metric.name)
    if about is None:
        rejected["a metric that edgekit does not have"] += len(points)
        return
    if about.kind != kind:
        rejected[f"{metric.name} is no {about.kind.replace('_', ' ')}"] += len(points)
        return
    if data.aggregation_temporality != _DELTA:
        rejected["points that are not of delta temporality"] += len(points)
        return
    read = {"sum": _read_sum, "histogram": _read_bins}.get(kind, _read_sketch)
    for point in points:
        try:
            into.append(read(metric.name, about, point))
        except _No as no:
            rejected[f"{metric.name}: {no}"] += 1


_Pairs = tuple[tuple[str, str | int | None], ...]
_series = lru_cache(maxsize=65_536)(series_of)


def _pairs(point: Any, about: Metric) -> _Pairs:
    attributes = point.attributes
    if len(attributes) > _MOST_ATTRIBUTES:
        raise _No(f"more than {_MOST_ATTRIBUTES} attributes")
    # Each once, the last of them: `_series` keeps what it was asked for.
    given = {a.key: _value(a.value) for a in attributes if a.key in about.attributes}
    return tuple(given.items())


def _read_sum(name: str, about: Metric, point: Any) -> Point:
    value = point.as_int
    if not value and point.WhichOneof("value") == "as_double":
        value = point.as_double
        if not value.is_integer():
            raise _No("a count that is not whole")
        value = int(value)
    if not 0 <= value <= _MOST:
        raise _No("a count that is negative or above 2 ** 32")
    series = _whole_noise(_series(name, 0, _pairs(point, about)), None)
    return Point(series, point.time_unix_nano, 0, (value,))


def _whole_noise(series: Series, choices: int | None) -> Series:
    """Refuses noise that could not be taken out again: half told, or of other bins or classes."""
    epsilon, told = series.noise
    if bool(epsilon) != bool(told):
        raise _No("noise of which epsilon or the number of choices is missing")
    if told and choices is not None and int(told) != choices:
        raise _No("noise over another number of bins")
    if told and choices is None and not 0 <= int(series.class_ or -1) < int(told):
        raise _No("noise over fewer classes than its own")
    return series


def _read_bins(name: str, about: Metric, point: Any) -> Point:
    if tuple(point.explicit_bounds) != about.bounds:
        raise _No("other bounds than the contract's")
    counts = list(point.bucket_counts)
    if len(counts) != len(about.bounds) + 1 or sum(counts) != point.count or point.count > _MOST:
        raise _No("bucket counts that do not add up to its count")
    series = _whole_noise(_series(name, 0, _pairs(point, about)), len(counts))
    return Point(series, point.time_unix_nano, 0, counts, 0, *_moments(point))


def _read_sketch(name: str, about: Metric, point: Any) -> Point:
    scale, counts = point.scale, list(point.positive.bucket_counts)
    if scale not in _SCALES or len(counts) > _MOST_BUCKETS or any(point.negative.bucket_counts):
        raise _No("negative values, a scale outside of -10 to 20, or more than 4,096 buckets")
    if sum(counts) + point.zero_count != point.count or point.count > _MOST:
        raise _No("bucket counts that do not add up to its count")
    first = point.positive.offset
    # Bucket i holds what is above 2 ** (i / 2 ** scale): the ends are those of a double.
    reach = 2.0**scale
    if not (_LEAST_LOG2 * reach - 1 <= first and first + len(counts) <= _MOST_LOG2 * reach + 1):
        raise _No("buckets beyond every number")
    if scale > _SCALE:
        # Coarser buckets are sums of finer ones, exactly.
        first, counts = _coarser(first, counts, scale - _SCALE)
        scale = _SCALE
    series = _series(name, scale, _pairs(point, about))
    return Point(series, point.time_unix_nano, first, counts, point.zero_count, *_moments(point))


def _coarser(first: int, counts: Sequence[int], steps: int) -> tuple[int, list[int]]:
    start = first >> steps
    merged = [0] * (((first + len(counts) - 1) >> steps) - start + 1 if counts else 0)
    for index, count in enumerate(counts, first):
        merged[(index >> steps) - start] += count
    return start, merged


def _moments(point: Any) -> tuple[float, float, float]:
    values = (
        point.sum if point.HasField("sum") else math.nan,
        point.min if point.HasField("min") else math.nan,
        point.max if point.HasField("max") else math.nan,
    )
    return values if all(abs(v) < _LARGEST for v in values) else (math.nan,) * 3


def attributes_text(attributes: dict[str, Any]) -> str:
    """An event's attributes as the store keeps them."""
    return json.dumps(attributes, sort_keys=True, separators=(",", ":"))
