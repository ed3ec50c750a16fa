"""TEL-14: our encoder and decoder against Google's, with OpenTelemetry's own definitions."""

from __future__ import annotations

import contextlib
import math
import random

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1 import resource_pb2

from edgekit.errors import BadData
from edgekit.runtime import otlp
from edgekit.runtime.aggregate import CONFIDENCE_BOUNDS, Aggregate
from edgekit.runtime.input_statistics import DEVIATION_BOUNDS, MEAN_BOUNDS, ROUGHNESS_BOUNDS
from edgekit.runtime.protobuf import UNKNOWN
from edgekit.runtime.sketch import RELATIVE_ERROR, Sketch

MODULES = (
    metrics_service_pb2, logs_service_pb2, common_pb2, logs_pb2, metrics_pb2, resource_pb2,
)  # fmt: skip
KINDS = {
    1: "double", 3: "int", 4: "uint", 5: "int", 6: "fixed64", 7: "fixed32", 8: "bool",
    9: "string", 11: "message", 12: "bytes", 13: "uint", 14: "int", 16: "sfixed64", 17: "sint",
    18: "sint",
}  # fmt: skip


def theirs(name: str) -> Message:
    if name == "ExportPartialSuccess":
        name = "ExportMetricsPartialSuccess"
    if name == "Buckets":
        return metrics_pb2.ExponentialHistogramDataPoint.Buckets()
    found = next(getattr(module, name) for module in MODULES if hasattr(module, name))
    made: Message = found()
    return made


@pytest.mark.parametrize("name", otlp.MESSAGES)
def test_every_field_is_numbered_and_typed_as_opentelemetry_has_it(name: str) -> None:
    fields = {field.number: field for field in theirs(name).DESCRIPTOR.fields}
    for key, ours in otlp.MESSAGES[name].items():
        field = fields[ours.number]
        if name != "ExportPartialSuccess":
            assert field.name == key
        assert KINDS[field.type] == ours.kind
        assert field.is_repeated == ours.repeated
        if ours.kind != "message":
            assert ours.present == (field.has_presence and not ours.repeated), key
        elif name != "ExportPartialSuccess" and ours.message != "ExportPartialSuccess":
            assert field.message_type.name == ours.message


def filled(message: Message, rng: random.Random, depth: int = 0) -> None:
    """Fills a message of theirs at random."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.3 or depth > 9:
            continue
        target = getattr(message, field.name)
        for _ in range(rng.randint(1, 3) if field.is_repeated else 1):
            if field.message_type is not None:
                filled(target.add() if field.is_repeated else target, rng, depth + 1)
                if not field.is_repeated:
                    target.SetInParent()
                continue
            value: object = {
                "double": rng.choice([0.0, -0.0, 1.5, -math.inf, 1e300]),
                "int": rng.choice([0, 1, -1, (1 << 31) - 1]),
                "uint": rng.choice([0, 127, 128, (1 << 32) - 1]),
                "fixed64": rng.choice([0, (1 << 64) - 1]),
                "fixed32": rng.choice([0, (1 << 32) - 1]),
                "sfixed64": rng.choice([-(1 << 63), 0, 5]),
                "sint": rng.choice([0, -1, 1, -(1 << 31)]),
                "bool": rng.random() < 0.5,
                "string": rng.choice(["", "a", "naïve ☃"]),
                "bytes": rng.randbytes(3),
            }[KINDS[field.type]]
            if field.enum_type is not None:
                value = rng.choice([0, 1, 2, 77])
            if field.is_repeated:
                target.append(value)
            else:
                setattr(message, field.name, value)


@pytest.mark.parametrize("name", ["ExportMetricsServiceRequest", "ExportLogsServiceRequest"])
def test_tel_14_what_they_encode_comes_back_byte_for_byte_unknown_fields_included(
    name: str,
) -> None:
    rng = random.Random(3)
    unknown = 0
    for _ in range(60):
        message = theirs(name)
        filled(message, rng)
        data = message.SerializeToString(deterministic=True)
        decoded = otlp.decode(name, data)
        unknown += f"{UNKNOWN!r}: b" in repr(decoded)
        again = theirs(name)
        again.ParseFromString(otlp.encode(name, decoded))
        assert again == message
    assert unknown


def window() -> Aggregate:
    done = Aggregate()
    for i in range(1, 500):
        done.add("device", "sure", i * 1e-4, i / 500, i % 7, 1e8 + i * 1e5)
    done.add("cloud", "unsure", 0.0, 1.0, 5000, None)
    done.add_error("device", "ValueError")
    done.add_inputs([(0, (3, 4, 5)), (2, (0, len(DEVIATION_BOUNDS), 0))])
    return done


def test_tel_14_what_we_encode_they_decode_to_the_same_bytes() -> None:
    record = {
        "resource": {"attributes": otlp.key_values({"service.name": "edgekit", "a": 1.5})},
        "scope_metrics": [{"scope": {"name": "edgekit"}, "metrics": window().to_metrics(1, 2)}],
    }
    data = otlp.request([otlp.encode("ResourceMetrics", record)] * 2)
    message = metrics_service_pb2.ExportMetricsServiceRequest()
    message.ParseFromString(data)
    assert message.SerializeToString(deterministic=True) == data
    assert otlp.decode("ExportMetricsServiceRequest", data)["resource_metrics"][1]["resource"] == {
        "attributes": otlp.key_values({"service.name": "edgekit", "a": 1.5})
    }
    metrics = message.resource_metrics[1].scope_metrics[0].metrics
    by_name = {metric.name: metric for metric in metrics}
    assert len(by_name) == 9
    point = by_name["edgekit.inference.duration"].exponential_histogram.data_points[0]
    assert sum(point.positive.bucket_counts) + point.zero_count == point.count == 499
    for name, bounds in (
        ("edgekit.prediction.confidence", CONFIDENCE_BOUNDS),
        ("edgekit.input.mean", MEAN_BOUNDS),
        ("edgekit.input.roughness", ROUGHNESS_BOUNDS),
    ):
        for point in by_name[name].histogram.data_points:
            assert list(point.explicit_bounds) == list(bounds)
            assert len(point.bucket_counts) == len(bounds) + 1
            assert sum(point.bucket_counts) == point.count
    for metric in metrics:
        kind = metric.WhichOneof("data")
        assert getattr(metric, kind).aggregation_temporality == 1
    assert otlp.points(otlp.encode("ResourceMetrics", record)) == sum(
        len(getattr(m, m.WhichOneof("data")).data_points) for m in metrics
    )


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_bytes_are_a_message_or_bad_data(data: bytes) -> None:
    with contextlib.suppress(BadData):
        otlp.decode("ExportMetricsServiceRequest", data)


def test_messages_nested_too_deep_or_cut_short_are_bad_data() -> None:
    deep = {"string_value": "x"}
    for _ in range(40):
        deep = {"array_value": {"values": [deep]}}
    with pytest.raises(BadData, match="nested"):
        otlp.decode("AnyValue", otlp.encode("AnyValue", deep))
    whole = otlp.encode("ResourceMetrics", {"scope_metrics": [{"metrics": [{"name": "abc"}]}]})
    for cut in range(1, len(whole)):
        with pytest.raises(BadData, match="cut short"):
            otlp.decode("ResourceMetrics", whole[:cut])
    with pytest.raises(BadData, match="has no field 'nmae'"):
        otlp.encode("Metric", {"nmae": "x"})
    with pytest.raises(BadData, match="cannot be"):
        otlp.encode("Metric", {"name": 3})


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300), st.floats(0, 1))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_quantile_is_within_the_stated_error_and_merging_changes_nothing(
    values: list[float], q: float
) -> None:
    whole, left, right = Sketch(), Sketch(), Sketch()
    for i, value in enumerate(values):
        whole.add(value)
        (left if i % 2 else right).add(value)
    exact = sorted(values)[int(q * (len(values) - 1))]
    assert abs(whole.quantile(q) - exact) <= exact * (RELATIVE_ERROR + 1e-9)
    left.merge(right)
    assert left.buckets == whole.buckets
    assert left.quantile(q) == whole.quantile(q)
    assert RELATIVE_ERROR < 0.0109


def test_a_sketch_counts_what_it_can_and_stays_small() -> None:
    sketch = Sketch()
    for value in (math.nan, math.inf, -1.0):
        sketch.add(value)
    assert sketch.count == 0
    assert math.isnan(sketch.quantile(0.5))
    for value in (0.0, 5e-324, 1e-200, 1e300):
        sketch.add(value)
    assert (sketch.count, sketch.zeros) == (4, 3)
    assert len(sketch.buckets) == 1


def test_windows_merge_to_what_one_window_would_have_counted() -> None:
    both, first, second = Aggregate(), window(), window()
    for _ in range(2):
        both.merge(window())
    first.merge(second)
    assert first.to_metrics(0, 1) == both.to_metrics(0, 1)
    assert first.requests == {("device", "sure"): 998, ("cloud", "unsure"): 2}
    assert first.classes[-1] == 2
    assert sum(first.confidence) == 1000
