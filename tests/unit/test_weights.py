"""Plans of weights alone, and inputs that are quantized at run time."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.compress.arithmetic import PER_ROW, PER_TENSOR
from edgekit.compress.dynamic import (
    as_computed,
    dynamic_layers,
    fake_dynamic,
)
from edgekit.compress.evaluate import evaluate, with_rounding_noise
from edgekit.compress.graph import canonical, graph_module, tensor_of
from edgekit.compress.plan import QuantPlan
from edgekit.compress.ptq import Methods, round_weights
from edgekit.compress.render import render
from edgekit.compress.weights import quantize_weights
from edgekit.errors import BadData, UnsupportedError
from edgekit.names import WEIGHTS
from edgekit.targets._common import pack_int4, unpack_int4
from edgekit.targets._weights import Weights


class Words(nn.Module):
    """An embedding, a linear layer on rows, and one on a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.rows, self.last = nn.Embedding(20, 40), nn.Linear(40, 48), nn.Linear(48, 3)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.last(torch.tanh(self.rows(self.table(ids))).mean(1))
        return result


class Picture(nn.Module):
    """A 3 x 3, a depthwise and a 1 x 1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, groups=8)
        self.point = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.point(torch.relu(self.deep(torch.relu(self.first(x)))))
        return result


def program_of(module: nn.Module, *args: Tensor) -> torch.export.ExportedProgram:
    return canonical(torch.export.export(module.eval(), args, strict=False))


@pytest.fixture(scope="module")
def words() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return program_of(Words(), torch.arange(7)[None])


@pytest.fixture(scope="module")
def picture() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return program_of(Picture(), torch.randn(1, 4, 6, 6))


@pytest.mark.parametrize("scheme", WEIGHTS)
def test_a_plan_survives_json(scheme: str, words: Any) -> None:
    plan = quantize_weights(words, scheme)
    assert QuantPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.scheme == scheme
    assert {e.kind for e in plan.edges} == {"weight"}
    assert plan.rounds == (scheme == "w8a8-dyn")


def test_tables_and_narrow_kernels_keep_8_bits_under_w4(words: Any, picture: Any) -> None:
    found = {e.edge: e.dtype for e in quantize_weights(words, "w4").edges}
    assert found == {"table.weight": "int8", "rows.weight": "int4", "last.weight": "int4"}
    found = {e.edge: e.dtype for e in quantize_weights(picture, "w4").edges}
    assert found == {"first.weight": "int4", "deep.weight": "int8", "point.weight": "int8"}


@pytest.mark.parametrize("scheme", ["fp16", "w8", "w4"])
def test_only_weights_move_and_by_half_a_step_at_most(scheme: str, words: Any) -> None:
    plan = quantize_weights(words, scheme)
    float_, fake = graph_module(words), render(words, plan, "fake")
    values = {n.name: tensor_of(fake, n) for n in fake.graph.nodes if n.op == "get_attr"}
    constants = plan.constants()
    for node in float_.graph.nodes:
        if node.op != "get_attr":
            continue
        old, new = tensor_of(float_, node), values[node.name]
        assert old is not None and new is not None
        edge = constants.get(node.name)
        if edge is None:
            assert torch.equal(old, new)
        elif scheme == "fp16":
            assert torch.equal(old.half().float(), new)
        else:
            step = torch.tensor(edge.scale)[:, None]
            assert bool(((old - new).abs() <= 0.501 * step).all())
            assert len(np.unique(edge.quantize(old.numpy()))) <= 2 * edge.quant_max + 1


def test_values_beyond_half_precision_stay() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = 1e6
    net = nn.Sequential(layer, nn.Linear(4, 2))
    plan = quantize_weights(program_of(net, torch.randn(1, 4)), "fp16")
    assert [e.edge for e in plan.edges] == ["1.weight"]
    assert "half precision" in plan.kept_float[0][1]


def test_nothing_to_quantize_and_nan_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no convolution"):
        quantize_weights(program_of(nn.ReLU(), torch.randn(1, 4)), "w8")
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(BadData, match="NaN"):
        quantize_weights(program_of(layer, torch.randn(1, 4)), "w8")


def test_what_shares_a_scale_depends_on_the_layer_and_the_runtime(picture: Any, words: Any) -> None:
    module = graph_module(picture)
    plan = quantize_weights(picture, "w8a8-dyn")
    assert [(d.layer.split("/")[0], d.per) for d in plan.dynamic] == [
        ("first", "sample"),
        ("point", "pixel"),
    ]
    assert [reason for _, reason in plan.kept_float]  # the depthwise one, and why
    assert dynamic_layers(module, {e.node for e in plan.edges}) == plan.dynamic

    class Other:
        dynamic = PER_TENSOR

    class Same:
        dynamic = PER_ROW

    assert as_computed(module, plan, Other).dynamic == ()
    assert as_computed(module, plan, Same) == plan
    assert as_computed(module, plan, object()) == plan
    rows = quantize_weights(words, "w8a8-dyn")
    assert [d.per for d in as_computed(graph_module(words), rows, Other).dynamic] == ["tensor"] * 2


@pytest.mark.parametrize(
    ("per", "shape", "count"),
    [
        ("row", (2, 3, 5), 6),
        ("pixel", (1, 4, 3, 3), 9),
        ("sample", (2, 4, 3), 2),
        ("tensor", (4, 5), 1),
    ],
)
def test_values_are_rounded_to_256_steps_of_their_own(per: str, shape: Any, count: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
    got = fake_dynamic(x, per)
    axes = {"row": [-1], "pixel": [1], "sample": [1, 2], "tensor": [0, 1]}[per]
    low, high = x.amin(axes, keepdim=True).clamp_max(0), x.amax(axes, keepdim=True).clamp_min(0)
    step = (high - low) / 255
    assert step.numel() == count
    assert bool(((got - x).abs() <= 1.01 * step).all())
    whole = got / step
    assert torch.allclose(whole, whole.round(), atol=1e-3)
    assert torch.equal(fake_dynamic(torch.zeros(shape), per), torch.zeros(shape))
    next_to_nothing = torch.full(shape, 1e-43)  # over whose range 255 is infinite
    assert torch.equal(fake_dynamic(next_to_nothing, per), torch.zeros(shape))
    assert bool((fake_dynamic(x.abs() + 1, per) >= 0).all())


def test_evaluation_and_noise_take_inputs_quantized_at_run_time(picture: Any) -> None:
    plan = quantize_weights(picture, "w8a8-dyn")
    module = render(picture, plan, "fake")
    x = np.random.default_rng(0).normal(size=(6, 1, 4, 6, 6)).astype(np.float32)
    together = evaluate(module, {"x": x}, ["x"], ["y"])["y"]
    with torch.no_grad():
        alone = np.stack([module(torch.from_numpy(row)).numpy() for row in x])
    np.testing.assert_allclose(together, alone, atol=0.05)
    floor = evaluate(with_rounding_noise(module, 1e-2), {"x": x}, ["x"], ["y"])["y"]
    assert not np.array_equal(floor, together)
    silent = render(picture, dataclasses.replace(plan, dynamic=()), "fake")
    assert not np.array_equal(evaluate(silent, {"x": x}, ["x"], ["y"])["y"], together)


def test_rounding_together_helps_int4() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    mix = torch.randn(64, 64) / 8
    feeds = [(torch.randn(1, 64) @ mix + 0.3,) for _ in range(96)]
    program = program_of(net, *feeds[0])
    plan = quantize_weights(program, "w4")
    assert round_weights(program, plan, feeds[:1]).plan == plan  # nothing to learn from
    off = Methods(rounding=False, bias_correction=False)
    assert round_weights(program, plan, feeds, off).program is program
    made = round_weights(program, plan, feeds[:64], calibration={"source": "x", "digest": "0"})
    assert made.plan.calibration["n"] == 64
    errors = []
    for graph in (render(program, plan, "fake"), render(made.program, made.plan, "fake")):
        with torch.no_grad():
            parts = [
                graph(*f)[0] if isinstance(graph(*f), tuple | list) else graph(*f) for f in feeds
            ]
            want = [net(*f) for f in feeds]
        pairs = list(zip(parts, want, strict=True))[64:]
        errors.append(sum(float((p.flatten() - w.flatten()).square().sum()) for p, w in pairs))
    assert errors[1] < 0.6 * errors[0], errors
    for edge in made.plan.edges:
        assert edge.dtype == "int4" and edge.quant_max == 7


def test_int4_is_packed_two_a_byte_low_half_first() -> None:
    values = np.array([[-7, 7, 0], [1, -1, -8], [5, 3, -2]], np.int8)
    packed = pack_int4(values)
    assert packed.size == 5 and packed[0] == (7 << 4 | 9)
    assert np.array_equal(unpack_int4(packed, [3, 3]), values)


def test_weights_are_found_in_any_layout(picture: Any) -> None:
    plan = quantize_weights(picture, "w8")
    weights = Weights(picture, plan)
    module = graph_module(picture)
    for node in module.graph.nodes:
        edge, value = plan.constants().get(node.name), tensor_of(module, node)
        if edge is None or value is None:
            continue
        real = edge.dequantize(edge.quantize(value.numpy()))
        for order in ((0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0)):
            moved = np.ascontiguousarray(real.transpose(order))
            found = weights.find(moved)
            assert found is not None and found.edge == edge and found.scale is not None
            np.testing.assert_allclose(found.stored * found.scale, moved, rtol=1e-6)
        split = real.reshape(2, -1, *real.shape[1:])  # as OpenVINO has groups
        found = weights.find(split)
        assert found is not None and found.scale is not None
        np.testing.assert_allclose(found.stored * found.scale, split, rtol=1e-6)
        assert weights.find(real + 1) is None
