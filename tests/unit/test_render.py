"""Rendering: three forms of one arithmetic, which is the integers' own."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from edgekit.compress.fake import fake_quantize
from edgekit.compress.graph import canonical, graph_module, program_digest, tensor_of
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import Form, render, render_program
from edgekit.compress.unrounded import Unrounded
from edgekit.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS: tuple[Form, ...] = ("fake", "qdq", "qdq-folded")


class Mixed(nn.Module):
    """One of each: depthwise, residual, concatenation, pooling, hard-swish, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6())
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.squeeze = nn.Conv2d(6, 6, 1)
        self.up = nn.ConvTranspose2d(12, 4, 2, stride=2)
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = nn.functional.hardswish(self.depthwise(x)) + x
        gate = nn.functional.hardsigmoid(self.squeeze(nn.functional.adaptive_avg_pool2d(y, 1)))
        z = torch.cat([y * gate, nn.functional.max_pool2d(x, 3, 1, 1)], 1)
        pooled = self.up(z).mean((2, 3))
        result: torch.Tensor = self.head(torch.relu(self.shared(self.shared(pooled))))
        return result


@pytest.fixture(scope="module")
def samples() -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1, 3, 8, 8, generator=generator),) for _ in range(8)]


@pytest.fixture(scope="module")
def program(samples: list[tuple[torch.Tensor, ...]]) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return canonical(torch.export.export(Mixed().eval(), samples[0], strict=False))


@pytest.fixture(scope="module")
def plan(
    program: torch.export.ExportedProgram, samples: list[tuple[torch.Tensor, ...]]
) -> QuantPlan:
    return quantize(program, samples)


def run(module: fx.GraphModule, feeds: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """The first output for every sample."""
    with torch.no_grad():
        answers = [module(*feed) for feed in feeds]
    return torch.stack([a[0] if isinstance(a, tuple) else a for a in answers])


@pytest.mark.parametrize("form", ["qdq", "qdq-folded"])
def test_the_forms_agree_bit_for_bit(
    form: Form,
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    samples: list[tuple[torch.Tensor, ...]],
) -> None:
    fake = run(render(program, plan, "fake"), samples)
    assert torch.equal(run(render(program, plan, form), samples), fake)
    again = graph_module(render_program(program, plan, form))
    assert torch.equal(run(again, samples), fake), "exported once more"


def test_the_rendered_plan_is_close_to_the_float_model(
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    samples: list[tuple[torch.Tensor, ...]],
) -> None:
    expected = run(graph_module(program), samples)
    got = run(render(program, plan, "fake"), samples)
    assert not torch.equal(got, expected)
    assert (got - expected).square().mean() < 1e-3 * expected.square().mean()  # 30 dB


def test_an_empty_plan_is_the_float_model(
    program: torch.export.ExportedProgram, samples: list[tuple[torch.Tensor, ...]]
) -> None:
    empty = QuantPlan("fp32", program_digest(program))
    expected = run(graph_module(program), samples)
    for form in FORMS:
        assert torch.equal(run(render(program, empty, form), samples), expected)


def test_rendering_changes_neither_program_nor_plan(
    program: torch.export.ExportedProgram, plan: QuantPlan
) -> None:
    digests = program_digest(program), plan.digest()
    for form in FORMS:
        render(program, plan, form)
    assert (program_digest(program), plan.digest()) == digests


def test_a_plan_of_another_program_is_refused(
    program: torch.export.ExportedProgram, plan: QuantPlan
) -> None:
    foreign = dataclasses.replace(plan, program_digest="0" * 64)
    for form in FORMS:
        with pytest.raises(UsageError, match="another program"):
            render(program, foreign, form)


def test_activations_are_the_plans_and_on_its_grid(
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    samples: list[tuple[torch.Tensor, ...]],
) -> None:
    found = [n for n in render(program, plan, "fake").graph.nodes if n.target is fake_quantize]
    stated = [(n.args[1], n.args[2]) for n in found]
    assert stated == [(e.scale[0], e.zero_point[0]) for e in plan.activations().values()]
    last = [e for e in plan.edges if e.kind == "activation"][-1]
    steps = run(render(program, plan, "fake"), samples).double() / last.scale[0]
    assert (steps - steps.round()).abs().max() < 1e-3


def test_folded_weights_are_stored_as_the_plans_integers(
    program: torch.export.ExportedProgram, plan: QuantPlan
) -> None:
    source, module = graph_module(program), render(program, plan, "qdq-folded")
    weights = {n: e for n, e in plan.constants().items() if e.kind == "weight"}
    stored = {k: v for k, v in module.named_buffers() if k.endswith("_int8")}
    assert len(stored) == len(weights) == 6
    for node in source.graph.nodes:
        if node.name in weights:
            value = tensor_of(source, node)
            assert value is not None
            name = str(node.target).replace(".", "_") + "_int8"
            assert np.array_equal(stored[name].numpy(), weights[node.name].quantize(value.numpy()))


def constants(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """Every constant that the graph reads, by node name."""
    found = {n.name: tensor_of(module, n) for n in module.graph.nodes if n.op == "get_attr"}
    return {name: value for name, value in found.items() if value is not None}


def test_biases_are_rounded_unless_asked_not_to(
    program: torch.export.ExportedProgram, plan: QuantPlan
) -> None:
    biases = {n: e for n, e in plan.constants().items() if e.kind == "bias"}
    original = constants(graph_module(program))
    rounded = constants(render(program, plan, "fake"))
    kept = constants(render(program, plan, "fake", bias=False))
    assert len(biases) == 7, "the shared layer has two"
    for name, edge in biases.items():
        steps = rounded[name].double().numpy() / np.array(edge.scale)
        # Within float32's own rounding of a large integer.
        assert (np.abs(steps - np.rint(steps)) < 0.01 + np.abs(steps) * 2.0**-23).all()
        assert torch.equal(kept[name], original[name])


def test_a_layer_is_the_integers_own_arithmetic() -> None:
    """int8 x int8 summed in integers, plus an int32 bias, rescaled once: every output is equal."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(32, 16), nn.ReLU())
    feeds: list[tuple[torch.Tensor, ...]] = [(torch.randn(1, 32),) for _ in range(64)]
    program = canonical(torch.export.export(layer.eval(), feeds[0], strict=False))
    plan = quantize(program, feeds)
    source, target = plan.activations().values()
    integers: dict[str, Any] = {}
    module = graph_module(program)
    for node in module.graph.nodes:
        if node.name in plan.constants():
            edge, value = plan.constants()[node.name], tensor_of(module, node)
            assert value is not None
            integers[edge.kind] = edge.quantize(value.numpy()).astype(np.int64)
            integers[f"{edge.kind} scale"] = np.array(edge.scale)
    x = source.quantize(np.concatenate([f[0].numpy() for f in feeds])).astype(np.int64)
    total = (x - source.zero_point[0]) @ integers["weight"].T + integers["bias"]
    steps = np.rint(total * integers["bias scale"] / target.scale[0]) + target.zero_point[0]
    expected = np.clip(steps, max(-128, target.zero_point[0]), 127)
    got = run(render(program, plan, "fake"), feeds).numpy()[:, 0]
    restored = np.rint(got / target.scale[0]) + target.zero_point[0]
    # Two sums that differ in the 7th digit may fall on either side of a half; nothing else may.
    assert np.abs(restored - expected).max() <= 1
    assert (restored != expected).mean() < 0.002


def test_convolutions_can_be_left_unrounded(
    program: torch.export.ExportedProgram, plan: QuantPlan
) -> None:
    fewer = Unrounded((1,)).without(program, plan)
    changed = [e for e, own in zip(fewer.edges, plan.edges, strict=True) if e != own]
    assert [(e.node, e.rounded) for e in changed] == [("conv2d_1", False)]
    assert QuantPlan.from_json(fewer.to_json()) == fewer != plan
    # What is left of the rounding is its range.
    [node] = [n for n in render(program, fewer, "fake").graph.nodes if n.target is torch.clamp]
    edge = plan.activations()["conv2d_1"]
    lowest, highest = edge.dequantize(np.array([edge.quant_min, edge.quant_max]))
    assert node.args[0].name == "conv2d_1"
    assert node.args[1:] == pytest.approx((lowest, highest), rel=1e-6)
    assert Unrounded().without(program, plan).edges == plan.edges
