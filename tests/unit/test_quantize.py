"""Making plans by calibration: ranges, weights, biases, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.graph import canonical, compute_nodes, graph_module, tensor_of
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.ptq import post_training
from edgekit.compress.quantize import (
    INT32_ROOM,
    ROOM,
    affine_int8,
    quantize,
    symmetric_int16,
    whole_bend,
)
from edgekit.compress.render import render
from edgekit.compress.saturation import at_risk
from edgekit.errors import BadData, UnsupportedError

pytestmark = pytest.mark.usefixtures("one_thread")

Feeds = list[tuple[torch.Tensor, ...]]


def plan_of(module: nn.Module, feeds: Feeds) -> tuple[torch.export.ExportedProgram, QuantPlan]:
    """The canonical program of a module, and its plan."""
    program = canonical(torch.export.export(module.eval(), feeds[0], strict=False))
    return program, quantize(program, feeds)


def normal(*shape: int, n: int = 4) -> Feeds:
    """``n`` samples of standard normal noise."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(*shape, generator=generator),) for _ in range(n)]


def integers(program: torch.export.ExportedProgram, plan: QuantPlan) -> dict[str, Any]:
    """The stored integers of every constant, by its readable name."""
    module, constants = graph_module(program), plan.constants()
    found = {}
    for node in module.graph.nodes:
        value = tensor_of(module, node)
        if node.name in constants and value is not None:
            found[constants[node.name].edge] = constants[node.name].quantize(value.numpy())
    return found


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 1.0), (0.0, 1.0), (0.0, 6.0), (-1.0, 0.0), (-3.0, 10.0), (-2.0, 1.0), (-5.0, 5.0001)],
)
def test_a_range_holds_both_its_ends(low: float, high: float) -> None:
    scale, zero = affine_int8(low, high)
    assert scale == np.float32(scale) and -128 <= zero <= 127
    assert scale <= 1.02 * (high - low) / 255
    farther = max(low, high, key=abs)
    steps = farther / scale
    assert abs(steps - round(steps)) < 0.01, "the farther end is on the grid"
    for value in (low, high):
        stored = round(value / scale) + zero
        assert -128 - 0.5 <= stored <= 127 + 0.5
        clipped = min(max(stored, -128), 127)
        assert abs((clipped - zero) * scale - value) <= scale


def test_the_ends_of_a_picture_are_not_between_two_integers() -> None:
    """-1 and 1 at scale 2 / 255 would be: runtimes that round half up and half to even differ."""
    scale, zero = affine_int8(-1.0, 1.0)
    for value in (-1.0, 1.0):
        steps = value / scale + zero
        assert abs(steps - round(steps)) < 1e-4


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (-2.0, -0.5)])
def test_a_range_always_holds_zero(low: float, high: float) -> None:
    scale, zero = affine_int8(low, high)
    assert zero == (-128 if low > 0 else 127)
    assert np.isclose(scale, 2.0 / 255)


def test_a_constant_zero_has_a_usable_scale() -> None:
    assert affine_int8(0.0, 0.0) == (1.0, 0)
    assert affine_int8(-1e-40, 1e-40) == (1.0, 0)


def test_a_short_side_costs_no_resolution() -> None:
    for low in (-0.001, -0.003, -0.0055, -0.02):
        scale, _ = affine_int8(low, 1.0)
        assert scale <= 1.02 * (1.0 - low) / 255


def test_ranges_are_what_calibration_saw() -> None:
    feeds: Feeds = [(torch.full((1, 2), v),) for v in (-1.0, 0.25, 3.0)]
    _, plan = plan_of(nn.Linear(2, 2), feeds)
    edge = plan.edges[0]
    low, high = edge.dequantize(np.array([-128, 127], np.int8))
    assert low <= -1.0 + edge.scale[0] / 2
    assert np.isclose(high, 3.0, rtol=1e-6)


def test_weights_are_symmetric_per_channel() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 3)
    with torch.no_grad():
        layer.weight[1] *= 1000
    program, plan = plan_of(layer, normal(1, 8))
    [edge] = [e for e in plan.edges if e.kind == "weight"]
    assert edge.axis == 0 and edge.zero_point == (0, 0, 0)
    reach = layer.weight.detach().abs().amax(1).numpy()
    np.testing.assert_allclose(edge.scale, reach / 127, rtol=1e-6)
    stored = integers(program, plan)["weight"]
    assert np.abs(stored.astype(int)).max(1).tolist() == [127, 127, 127]


def test_transposed_convolutions_have_their_channels_on_axis_one() -> None:
    torch.manual_seed(0)
    _, plan = plan_of(nn.ConvTranspose2d(3, 5, 2), normal(1, 3, 4, 4))
    [weight] = [e for e in plan.edges if e.kind == "weight"]
    assert weight.axis == 1 and len(weight.scale) == 5


def test_biases_lie_on_the_accumulators_grid() -> None:
    torch.manual_seed(0)
    program, plan = plan_of(nn.Linear(8, 3), normal(1, 8))
    by_kind = {e.kind: e for e in plan.edges}
    source = plan.edges[0].scale[0]
    expected = np.float32(by_kind["weight"].scale) * np.float32(source)
    assert np.array_equal(np.float32(by_kind["bias"].scale), expected)
    assert integers(program, plan)["bias"].dtype == np.int32


def test_the_bias_of_a_channel_without_weights_fits_int32() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        layer.weight[1] = 0.0
        layer.weight[2] = 1e-20
        layer.bias.copy_(torch.tensor([0.1, 50.0, -50.0, 0.2]))  # type: ignore[union-attr]
    program, plan = plan_of(layer, normal(1, 3, 6, 6))
    bias = next(e for e in plan.edges if e.kind == "bias")
    stored = integers(program, plan)["bias"]
    assert np.abs(stored.astype(np.int64)).max() <= INT32_ROOM * (1 + 1e-6)
    restored = bias.dequantize(stored)
    np.testing.assert_allclose(restored, [0.1, 50.0, -50.0, 0.2], rtol=1e-3)
    assert integers(program, plan)["weight"][1].any() == np.False_


def test_channels_of_nothing_at_all_have_normal_scales() -> None:
    layer = nn.Linear(4, 2)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, 1e-42)
    _, plan = plan_of(layer, normal(1, 4))
    tiny = np.finfo(np.float32).tiny
    assert all(s > tiny for e in plan.edges for s in e.scale)


def test_a_weight_used_by_two_layers_has_one_scale_and_two_biases() -> None:
    class Tied(nn.Module):
        """One layer on inputs of very different range; a channel that only its bias feeds."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            with torch.no_grad():
                self.layer.weight[3] = 0.0
                self.layer.bias[3] = 5.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(self.layer(x) * 0.01 + x)
            return result

    torch.manual_seed(0)
    program, plan = plan_of(Tied(), normal(1, 4))
    weights = [e for e in plan.edges if e.kind == "weight"]
    biases = [e for e in plan.edges if e.kind == "bias"]
    assert len(weights) == 1 and len(biases) == 2
    acts = plan.activations()
    for layer, bias in zip(compute_nodes(graph_module(program)), biases, strict=True):
        source = layer.args[0]
        assert isinstance(source, torch.fx.Node)
        step = np.float32(acts[source.name].scale[0])
        assert np.array_equal(np.float32(bias.scale), np.float32(weights[0].scale) * step)
    for name, stored in integers(program, plan).items():
        if "bias" in name:
            assert np.abs(stored.astype(np.int64)).max() <= INT32_ROOM * (1 + 1e-6)


@pytest.mark.parametrize("high", [2.0, 6.0, 9.9, 20.0, 40.0])
def test_hard_swish_bends_at_whole_steps(high: float) -> None:
    scale, zero = whole_bend(-3.0, high)
    exact, _ = affine_int8(-3.0, high)
    assert exact <= scale <= 1.1 * exact
    bend = round(3 / scale)
    assert scale == np.float32(3 / bend) and zero == -128 + bend
    assert high / scale + zero <= 127.5


def test_a_range_that_hardly_bends_stays_as_it_is() -> None:
    assert whole_bend(-3.0, 400.0) == affine_int8(-3.0, 400.0), "3 is less than two steps"
    scale, zero = whole_bend(-1.0, 0.5)
    assert scale <= 1.1 * affine_int8(-1.0, 0.5)[0], "not made to reach -3"
    assert (-1.0 / scale + zero) >= -128.5
    scale, zero = whole_bend(-2.9, 6.0)
    assert zero == -128 + round(3 / scale), "-3 is near enough to be taken in"


def test_more_samples_change_ranges_but_not_weights() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    few, many = (plan_of(module, normal(1, 4, n=n))[1] for n in (1, 64))
    assert few.edges[0].scale[0] < many.edges[0].scale[0]

    def weights(plan: QuantPlan) -> list[Edge]:
        return [e for e in plan.edges if e.kind == "weight"]

    assert [e.scale for e in weights(few)] == [e.scale for e in weights(many)]


def test_progress_and_count() -> None:
    torch.manual_seed(0)
    seen: list[int] = []
    feeds = normal(1, 4, n=3)
    program, _ = plan_of(nn.Linear(4, 2), feeds)
    plan = quantize(program, iter(feeds), progress=seen.append)
    assert seen == [1, 2, 3] and plan.calibration["n"] == 3


def test_no_samples_are_refused() -> None:
    program, _ = plan_of(nn.Linear(4, 2), normal(1, 4))
    nothing: Iterable[tuple[torch.Tensor, ...]] = []
    with pytest.raises(BadData, match="no samples"):
        quantize(program, nothing)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_calibration_names_the_first_tensor_that_is_not_finite(value: float) -> None:
    torch.manual_seed(0)
    program, _ = plan_of(nn.Linear(4, 2), normal(1, 4))
    bad = torch.zeros(1, 4)
    bad[0, 2] = value
    with pytest.raises(BadData, match=r"NaN or infinity at input"):
        quantize(program, [*normal(1, 4), (bad,), *normal(1, 4)])


def test_a_layer_that_overflows_is_named() -> None:
    class Overflow(nn.Module):
        """Finite weights, finite inputs, and a product beyond float32."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            with torch.no_grad():
                self.stem.weight.fill_(1e38)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.stem(x))
            return result

    program = canonical(torch.export.export(Overflow().eval(), (torch.ones(1, 4),), strict=False))
    with pytest.raises(BadData, match="stem"):
        quantize(program, [(torch.full((1, 4), 100.0),)])


def test_weights_that_are_not_finite_are_refused_by_layer() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        layer[2].weight[0, 0] = float("nan")
    program = canonical(torch.export.export(layer.eval(), (torch.ones(1, 4),), strict=False))
    with pytest.raises(BadData, match=r"\b2\b.*NaN|NaN.*\b2\b"):
        quantize(program, normal(1, 4))


def test_a_model_without_layers_is_refused() -> None:
    program = canonical(torch.export.export(nn.GELU().eval(), (torch.ones(1, 4),), strict=False))
    with pytest.raises(UnsupportedError, match="nothing in this model can be quantized"):
        quantize(program, normal(1, 4))


# -- 16 bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(-1.0, 0.5), (0.0, 6.0), (-3.0, 10.0), (0.0, 0.0)])
def test_a_range_of_16_bits_has_zero_in_its_middle(low: float, high: float) -> None:
    scale, zero = symmetric_int16(low, high)
    assert zero == 0 and scale == np.float32(scale) > 0
    reach = max(-low, high)
    assert reach == 0 or round(reach / scale) == 2**15 - 1


class Wide(nn.Module):
    """A clamp, a sigmoid beside what it came from, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(4 * self.first(x))
        y = self.second(x)
        return x + y * torch.sigmoid(y)


def test_activations_of_16_bits_and_their_room() -> None:
    torch.manual_seed(0)
    feeds = normal(1, 2, 6, 6, n=6)
    program = canonical(torch.export.export(Wide().eval(), feeds[0], strict=False))
    plan, narrow = (quantize(program, feeds, scheme=s) for s in ("w8a16", "w8a8"))
    edges = plan.activations()
    assert plan.scheme == "w8a16" and edges.keys() == narrow.activations().keys()
    for edge in edges.values():
        assert (edge.dtype, edge.zero_point, edge.quant_min, edge.quant_max) == (
            "int16", (0,), -(2**15), 2**15 - 1,
        )  # fmt: skip
    most = {name: (2**15 - 1) * edge.scale[0] for name, edge in edges.items()}
    seen: dict[str, float] = {}
    for feed in feeds:
        for name, value in values_of(program, feed).items():
            seen[name] = max(seen.get(name, 0.0), float(value.detach().abs().max()))
    assert most["x"] == pytest.approx(seen["x"], rel=1e-4), "inputs keep their range"
    assert most["hardtanh"] == pytest.approx(min(6.0, ROOM * seen["hardtanh"]), rel=1e-4)
    assert most["add"] == pytest.approx(ROOM * seen["add"], rel=1e-4)
    assert edges["sigmoid"].scale == (2.0**-15,)
    weights = {e.node: e.scale for e in plan.edges if e.kind == "weight"}
    assert weights == {e.node: e.scale for e in narrow.edges if e.kind == "weight"}
    bias = next(e for e in plan.edges if e.edge == "second.bias")
    product = np.float32(weights["second_weight"]) * np.float32(edges["hardtanh"].scale[0])
    np.testing.assert_allclose(bias.scale, product, rtol=1e-6)
    assert at_risk(program, plan) == () and QuantPlan.from_json(plan.to_json()) == plan


def test_16_bits_cost_next_to_nothing_beside_the_weights() -> None:
    torch.manual_seed(0)
    feeds = normal(1, 2, 6, 6, n=6)
    program = canonical(torch.export.export(Wide().eval(), feeds[0], strict=False))
    noise = {}
    for scheme in ("w8a8", "w8a16"):
        made = post_training(program, feeds, scheme=scheme)
        assert made.plan.scheme == scheme
        methods = made.plan.calibration["methods"]
        assert (methods["smoothing"], methods["ranges"]) == (
            (True, "mse") if scheme == "w8a8" else (False, "minmax")
        )
        module = render(made.program, made.plan, "fake")
        with torch.no_grad():
            deltas = [module(*f) - graph_module(program)(*f) for f in feeds]
        noise[scheme] = float(torch.stack(deltas).square().mean())
    assert noise["w8a16"] < noise["w8a8"] / 4


def values_of(
    program: torch.export.ExportedProgram, feed: tuple[torch.Tensor, ...]
) -> dict[str, torch.Tensor]:
    """What every node of the float graph gives, by its name."""
    found: dict[str, torch.Tensor] = {}

    class Reader(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                found[n.name] = value
            return value

    with torch.no_grad():
        Reader(graph_module(program)).run(*feed)
    return found
