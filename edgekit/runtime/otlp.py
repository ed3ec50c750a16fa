"""OTLP: what a device sends, as any OpenTelemetry Collector takes it (OTLP 1.x, protobuf).

The wire contract, version 1
============================
``POST {endpoint}/v1/metrics`` an ``ExportMetricsServiceRequest``, ``POST {endpoint}/v1/logs`` an
``ExportLogsServiceRequest``; ``Content-Type: application/x-protobuf``, ``Content-Encoding: gzip``.
Each record of the spool is one ``ResourceMetrics`` or one ``ResourceLogs``; a request holds as many
of them as fit. Attributes are those of `edgekit.runtime.attributes.ATTRIBUTES` and no others; no
text in them is free.

*Resource*: ``service.name`` = ``edgekit``; ``service.version`` (of the app, where it is given);
``service.instance.id``, 32 hex digits that are made anew every day; ``telemetry.sdk.name``,
``.language``, ``.version``; ``os.type``, ``host.arch``; ``edgekit.device.class``;
``edgekit.bundle.name``, ``.version``, ``.digest``; ``edgekit.artifact.target``, ``.scheme``,
``.delegate``.

*Idempotency*: every metric carries in ``metadata`` (which is no part of a time series' identity),
and every log record in its attributes, ``event.id``: 32 hex digits, the same however often the
record is sent, never used for another one; and ``edgekit.sequence``, which counts the device's
records of a signal and orders them whatever its clock shows. It starts anew with each new
``service.instance.id``, and times are in whole seconds, so that neither tells which of them are one
device's. Delivery is at least once: whoever must not count twice keeps the ids of the last 30 days,
which is how long a device keeps what it can't send.

*Metrics*, all of delta temporality over one window (60 s by default, of the device's clock):

| name | kind | unit | attributes |
|---|---|---|---|
| ``edgekit.inference.duration`` | exponential histogram | ``s`` | ``edgekit.source`` |
| ``edgekit.inference.memory`` | exponential histogram | ``By`` | |
| ``edgekit.inference.requests`` | sum | ``{request}`` | ``edgekit.source``, ``edgekit.reason`` |
| ``edgekit.inference.errors`` | sum | ``{error}`` | ``edgekit.source``, ``error.type`` |
| ``edgekit.prediction.confidence`` | histogram, 20 bins of [0, 1] | ``1`` | |
| ``edgekit.prediction.classes`` | sum | ``{prediction}`` | ``edgekit.class``; -1: above 4095 |
| ``edgekit.input.mean`` | histogram | ``1`` | ``edgekit.input`` |
| ``edgekit.input.deviation`` | histogram | ``1`` | ``edgekit.input`` |
| ``edgekit.input.roughness`` | histogram | ``1`` | ``edgekit.input`` |
| ``edgekit.telemetry.dropped`` | sum | ``{record}`` | ``edgekit.signal``, ``edgekit.drop.reason`` |

``edgekit.input.mean`` counts (sample mean - reference mean) / reference std, and
``edgekit.input.deviation`` log2(sample std / reference std), with the reference of the bundle's
``reference_statistics``; ``edgekit.input.roughness`` log2(root mean square difference of neighbours
/ sample std), along the two longest axes but the first; ``edgekit.input`` is the input's place in
the signature, and only a share of the requests is looked at. ``edgekit.class`` is the label's place
in the bundle's ``labels``.

Points of ``edgekit.prediction.*`` and ``edgekit.input.*`` may be noised (local differential
privacy, `edgekit.runtime.privacy`): each is then one report of one value by randomized response and
has ``edgekit.noise.epsilon``, in thousandths, and ``edgekit.noise.choices``, the number of bins or
classes, which is what takes the noise out of a sum again.

Exponential histograms are of scale 5 throughout: 32 buckets an octave, so any quantile is within
1.09 % of a value of that rank, and merging is adding bucket counts.

*Logs*: ``event_name`` ``edgekit.crash`` (severity 17) with ``error.type``, ``edgekit.stack.hash``,
``edgekit.source``; ``edgekit.ota`` (severity 9, 17 where it failed) with ``edgekit.ota.outcome``,
``edgekit.ota.reason``, ``edgekit.ota.release``, ``edgekit.ota.from``, ``edgekit.ota.to``. No body.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from edgekit.runtime import protobuf
from edgekit.runtime.protobuf import Field

__all__ = [
    "DELTA",
    "MESSAGES",
    "attributes_of",
    "decode",
    "encode",
    "key_values",
    "points",
    "rejected",
    "request",
]

DELTA: Final = 1
"""``AGGREGATION_TEMPORALITY_DELTA``."""


def _many(number: int, message: str) -> Field:
    return Field(number, "message", repeated=True, message=message)


def _one(number: int, message: str) -> Field:
    return Field(number, "message", message=message)


_POINT: Final = {
    "start_time_unix_nano": Field(2, "fixed64"),
    "time_unix_nano": Field(3, "fixed64"),
}

MESSAGES: Final[protobuf.Messages] = {
    "ExportMetricsServiceRequest": {"resource_metrics": _many(1, "ResourceMetrics")},
    "ExportMetricsServiceResponse": {"partial_success": _one(1, "ExportPartialSuccess")},
    "ExportLogsServiceRequest": {"resource_logs": _many(1, "ResourceLogs")},
    "ExportLogsServiceResponse": {"partial_success": _one(1, "ExportPartialSuccess")},
    # Of metrics and of logs: they differ in the first field's name only.
    "ExportPartialSuccess": {"rejected": Field(1, "int"), "error_message": Field(2, "string")},
    "ResourceMetrics": {
        "resource": _one(1, "Resource"),
        "scope_metrics": _many(2, "ScopeMetrics"),
        "schema_url": Field(3, "string"),
    },
    "ScopeMetrics": {
        "scope": _one(1, "InstrumentationScope"),
        "metrics": _many(2, "Metric"),
        "schema_url": Field(3, "string"),
    },
    "ResourceLogs": {
        "resource": _one(1, "Resource"),
        "scope_logs": _many(2, "ScopeLogs"),
        "schema_url": Field(3, "string"),
    },
    "ScopeLogs": {
        "scope": _one(1, "InstrumentationScope"),
        "log_records": _many(2, "LogRecord"),
        "schema_url": Field(3, "string"),
    },
    "Resource": {
        "attributes": _many(1, "KeyValue"),
        "dropped_attributes_count": Field(2, "uint"),
    },
    "InstrumentationScope": {
        "name": Field(1, "string"),
        "version": Field(2, "string"),
        "attributes": _many(3, "KeyValue"),
        "dropped_attributes_count": Field(4, "uint"),
    },
    "Metric": {
        "name": Field(1, "string"),
        "description": Field(2, "string"),
        "unit": Field(3, "string"),
        "gauge": _one(5, "Gauge"),
        "sum": _one(7, "Sum"),
        "histogram": _one(9, "Histogram"),
        "exponential_histogram": _one(10, "ExponentialHistogram"),
        "metadata": _many(12, "KeyValue"),
    },
    "Gauge": {"data_points": _many(1, "NumberDataPoint")},
    "Sum": {
        "data_points": _many(1, "NumberDataPoint"),
        "aggregation_temporality": Field(2, "int"),
        "is_monotonic": Field(3, "bool"),
    },
    "Histogram": {
        "data_points": _many(1, "HistogramDataPoint"),
        "aggregation_temporality": Field(2, "int"),
    },
    "ExponentialHistogram": {
        "data_points": _many(1, "ExponentialHistogramDataPoint"),
        "aggregation_temporality": Field(2, "int"),
    },
    "NumberDataPoint": {
        **_POINT,
        "as_double": Field(4, "double", present=True),
        "as_int": Field(6, "sfixed64", present=True),
        "attributes": _many(7, "KeyValue"),
        "flags": Field(8, "uint"),
    },
    "HistogramDataPoint": {
        **_POINT,
        "count": Field(4, "fixed64"),
        "sum": Field(5, "double", present=True),
        "bucket_counts": Field(6, "fixed64", repeated=True),
        "explicit_bounds": Field(7, "double", repeated=True),
        "attributes": _many(9, "KeyValue"),
        "flags": Field(10, "uint"),
        "min": Field(11, "double", present=True),
        "max": Field(12, "double", present=True),
    },
    "ExponentialHistogramDataPoint": {
        **_POINT,
        "attributes": _many(1, "KeyValue"),
        "count": Field(4, "fixed64"),
        "sum": Field(5, "double", present=True),
        "scale": Field(6, "sint"),
        "zero_count": Field(7, "fixed64"),
        "positive": _one(8, "Buckets"),
        "negative": _one(9, "Buckets"),
        "flags": Field(10, "uint"),
        "min": Field(12, "double", present=True),
        "max": Field(13, "double", present=True),
        "zero_threshold": Field(14, "double"),
    },
    "Buckets": {
        "offset": Field(1, "sint"),
        "bucket_counts": Field(2, "uint", repeated=True),
    },
    "LogRecord": {
        "time_unix_nano": Field(1, "fixed64"),
        "severity_number": Field(2, "int"),
        "severity_text": Field(3, "string"),
        "body": _one(5, "AnyValue"),
        "attributes": _many(6, "KeyValue"),
        "dropped_attributes_count": Field(7, "uint"),
        "flags": Field(8, "fixed32"),
        "trace_id": Field(9, "bytes"),
        "span_id": Field(10, "bytes"),
        "observed_time_unix_nano": Field(11, "fixed64"),
        "event_name": Field(12, "string"),
    },
    "KeyValue": {"key": Field(1, "string"), "value": _one(2, "AnyValue")},
    "AnyValue": {
        "string_value": Field(1, "string", present=True),
        "bool_value": Field(2, "bool", present=True),
        "int_value": Field(3, "int", present=True),
        "double_value": Field(4, "double", present=True),
        "array_value": _one(5, "ArrayValue"),
        "kvlist_value": _one(6, "KeyValueList"),
        "bytes_value": Field(7, "bytes", present=True),
    },
    "ArrayValue": {"values": _many(1, "AnyValue")},
    "KeyValueList": {"values": _many(1, "KeyValue")},
}
"""The messages that edgekit sends or reads, as opentelemetry-proto defines them."""

_DATA: Final = ("gauge", "sum", "histogram", "exponential_histogram")


def encode(name: str, message: Mapping[str, Any]) -> bytes:
    """A message of `MESSAGES` as bytes.

    Raises:
        BadData: a field or a value does not fit.
    """
    return protobuf.encode(MESSAGES, name, message)


def decode(name: str, data: bytes) -> dict[str, Any]:
    """The message of `MESSAGES` that some bytes hold.

    Raises:
        BadData: they hold none.
    """
    return protobuf.decode(MESSAGES, name, data)


def key_values(attributes: Mapping[str, str | int | float | bool]) -> list[dict[str, Any]]:
    """Attributes as OTLP has them, in the order of their names."""
    pairs = []
    for key, value in sorted(attributes.items()):
        if isinstance(value, bool):
            kind = "bool_value"
        elif isinstance(value, int):
            kind = "int_value"
        else:
            kind = "double_value" if isinstance(value, float) else "string_value"
        pairs.append({"key": key, "value": {kind: value}})
    return pairs


def attributes_of(pairs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The other way; values that are lists or maps are left as OTLP has them."""
    found = {}
    for pair in pairs:
        value = pair.get("value", {})
        found[str(pair.get("key", ""))] = next((v for k, v in value.items() if k), None)
    return found


def request(records: Iterable[bytes]) -> bytes:
    """One request out of records that are a ``ResourceMetrics`` each, or a ``ResourceLogs``."""
    return b"".join(b"\x0a" + protobuf.length_delimited(record) for record in records)


def points(record: bytes) -> int:
    """How many data points a ``ResourceMetrics`` holds."""
    scopes = decode("ResourceMetrics", record).get("scope_metrics", [])
    metrics = [metric for scope in scopes for metric in scope.get("metrics", [])]
    return sum(len(m.get(kind, {}).get("data_points", [])) for m in metrics for kind in _DATA)


def rejected(response: bytes) -> tuple[int, str]:
    """How many points or log records a server did not take, and its message.

    Raises:
        BadData: it is no response of an OTLP server.
    """
    partial = decode("ExportMetricsServiceResponse", response).get("partial_success", {})
    return max(int(partial.get("rejected", 0)), 0), str(partial.get("error_message", ""))
