"""The plan as data: its arithmetic, its JSON form and its digest."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.graph import canonical, program_digest
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.errors import BadData
from edgekit.schemas import validate

pytestmark = pytest.mark.usefixtures("one_thread")

PER_TENSOR = Edge("x", "x", "activation", "int8", (0.1,), (-3,), None, -128, 127)
PER_CHANNEL = Edge("w", "w", "weight", "int8", (0.1, 0.5), (0, 0), 1, -127, 127)


@pytest.fixture(scope="module")
def plan() -> QuantPlan:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    x = torch.randn(4, 1, 3, 8, 8)
    program = canonical(torch.export.export(module.eval(), (x[0],), strict=False))
    origin = {"source": "random", "digest": "00", "observer": "minmax"}
    return quantize(program, [(sample,) for sample in x], calibration=origin)


def test_rounds_half_to_even_and_saturates() -> None:
    edge = dataclasses.replace(PER_TENSOR, scale=(1.0,), zero_point=(0,))
    real = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.6, 1e9, -1e9], np.float32)
    assert edge.quantize(real).tolist() == [0, 2, 2, 0, -2, 127, 127, -128]
    assert edge.quantize(real).dtype == np.int8


def test_zero_is_exact() -> None:
    stored = PER_TENSOR.quantize(np.zeros(3, np.float32))
    assert stored.tolist() == [-3, -3, -3]
    assert PER_TENSOR.dequantize(stored).tolist() == [0, 0, 0]


def test_values_return_within_half_a_step() -> None:
    real = np.random.default_rng(0).uniform(-12.4, 12.9, 1000).astype(np.float32)
    restored = PER_TENSOR.dequantize(PER_TENSOR.quantize(real))
    assert restored.dtype == np.float32
    assert np.abs(restored - real).max() <= 0.05 * 1.0001


def test_integers_return_unchanged() -> None:
    """What a converter rounds again must be the very same integers."""
    for edge in (PER_TENSOR, dataclasses.replace(PER_TENSOR, scale=(3.7e-5,), zero_point=(127,))):
        stored = np.arange(edge.quant_min, edge.quant_max + 1).astype(np.int8)
        assert np.array_equal(edge.quantize(edge.dequantize(stored)), stored)


def test_channels_have_scales_of_their_own() -> None:
    real = np.array([[[1.0], [1.0]], [[-100.0], [-100.0]]], np.float32)  # [2, channel, 1]
    assert PER_CHANNEL.quantize(real).tolist() == [[[10], [2]], [[-127], [-127]]]
    assert PER_CHANNEL.dequantize(PER_CHANNEL.quantize(real))[0, :, 0].tolist() == [1.0, 1.0]


def test_biases_are_int32() -> None:
    edge = Edge("b", "b", "bias", "int32", (2.0**-20,), (0,), 0, -(2**31), 2**31 - 1)
    stored = edge.quantize(np.array([1000.0], np.float32))
    assert stored.dtype == np.int32 and stored.tolist() == [1000 * 2**20]


def test_json_round_trip_keeps_every_bit(plan: QuantPlan) -> None:
    text = json.dumps(plan.to_json(), allow_nan=False)
    again = QuantPlan.from_json(json.loads(text))
    assert again == plan
    assert again.digest() == plan.digest()


def test_the_document_keeps_to_its_schema(plan: QuantPlan) -> None:
    validate(plan.to_json())
    validate(QuantPlan("fp32", "0" * 64).to_json())
    spoilt = plan.to_json()
    spoilt["edges"][0]["scale"] = [0.0]
    with pytest.raises(BadData, match=r"edges\[0\]\.scale"):
        validate(spoilt)


def test_the_digest_follows_every_change(plan: QuantPlan) -> None:
    first = plan.edges[0]
    nudged = dataclasses.replace(first, scale=(float(np.nextafter(first.scale[0], 2)),))
    others = [
        dataclasses.replace(plan, edges=(nudged, *plan.edges[1:])),
        dataclasses.replace(plan, edges=plan.edges[1:]),
        dataclasses.replace(plan, program_digest="0" * 64),
        dataclasses.replace(plan, kept_float=(("x", "asked for"),)),
        dataclasses.replace(plan, overrides={"isa": "sse4"}),
    ]
    assert len({p.digest() for p in (plan, *others)}) == 1 + len(others)


def test_edges_are_told_apart_by_kind(plan: QuantPlan) -> None:
    activations, constants = plan.activations(), plan.constants()
    assert len(activations) + len(constants) == len(plan.edges)
    assert {e.kind for e in activations.values()} == {"activation"}
    assert {e.kind for e in constants.values()} == {"weight", "bias"}
    assert [e.edge for e in constants.values()] == ["0.weight", "0.bias", "3.weight", "3.bias"]


def test_readable_names_start_with_the_layer(plan: QuantPlan) -> None:
    names = [e.edge for e in plan.activations().values()]
    assert names[0].startswith("input")
    assert names[1:] == ["1/relu", "2/max_pool2d", "3/conv2d_1"]


def test_a_plan_knows_its_program_and_calibration(plan: QuantPlan) -> None:
    assert plan.scheme == "w8a8"
    assert len(plan.program_digest) == 64
    assert plan.calibration["n"] == 4 and plan.calibration["source"] == "random"
    module = nn.Linear(2, 2).eval()
    program = canonical(torch.export.export(module, (torch.zeros(1, 2),), strict=False))
    assert program_digest(program) != plan.program_digest
