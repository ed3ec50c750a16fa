"""Placement: what is quantized where, by what integer kernels of mobile runtimes can fuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.graph import canonical
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize

pytestmark = pytest.mark.usefixtures("one_thread")


class Graph(nn.Module):
    """Three convolutions and a linear layer, wired by a function of a test."""

    def __init__(self, wire: Callable[[Graph, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.wire = wire
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.transposed = nn.ConvTranspose2d(3, 3, 2, groups=3)
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wire(self, x)


def plan_of(wire: Callable[[Graph, torch.Tensor], torch.Tensor], scale: float = 1.0) -> QuantPlan:
    """The plan of such a graph, calibrated on noise of deviation ``scale``."""
    torch.manual_seed(0)
    feeds = [(scale * torch.randn(1, 3, 4, 4),) for _ in range(8)]
    program = canonical(torch.export.export(Graph(wire).eval(), feeds[0], strict=False))
    return quantize(program, feeds)


def nodes(plan: QuantPlan) -> list[str]:
    """Names of the quantized activations in execution order."""
    return list(plan.activations())


def reach(plan: QuantPlan, node: str) -> tuple[float, float]:
    """The real range of an activation's integers."""
    low, high = plan.activations()[node].dequantize(np.array([-128, 127], np.int8))
    return float(low), float(high)


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (torch.relu, "relu"),
        (nn.functional.relu6, "hardtanh"),
        (lambda x: nn.functional.hardtanh(x, -1.0, 1.0), "hardtanh"),
        (lambda x: x.clamp(0.0, 3.0), "hardtanh"),
        (nn.functional.hardsigmoid, "hardtanh"),
    ],
    ids=["relu", "relu6", "clamp-to-one", "clamp-from-zero", "hard-sigmoid"],
)
def test_a_fused_activation_is_quantized_after_it_only(
    activation: Callable[[torch.Tensor], torch.Tensor], name: str
) -> None:
    plan = plan_of(lambda m, x: m.b(activation(m.a(x))))
    assert nodes(plan) == ["x", name, "conv2d_1"]


def test_an_activation_is_not_fused_where_its_input_is_used_elsewhere() -> None:
    plan = plan_of(lambda m, x: (y := m.a(x)) + torch.relu(y))
    assert nodes(plan) == ["x", "conv2d", "relu", "add"]


def test_a_clamp_that_kernels_do_not_fuse_has_both_sides_quantized() -> None:
    plan = plan_of(lambda m, x: m.b(nn.functional.hardtanh(m.a(x), -0.5, 3.0)))
    assert nodes(plan) == ["x", "conv2d", "hardtanh", "conv2d_1"]


def test_the_range_before_hardswish_is_cut_where_it_is_flat() -> None:
    plan = plan_of(lambda m, x: m.b(nn.functional.hardswish(m.a(x))), scale=20.0)
    low, high = reach(plan, "conv2d")
    assert -3.1 <= low <= -2.9 and high > 6
    assert nodes(plan) == ["x", "conv2d", "hardswish", "conv2d_1"]


def test_the_range_before_hardsigmoid_is_cut_on_both_sides() -> None:
    # A weight that is used twice can't take the hard-sigmoid's factor.
    plan = plan_of(lambda m, x: m.a(nn.functional.hardsigmoid(m.a(x))), scale=20.0)
    low, high = reach(plan, "conv2d")
    assert -3.1 <= low <= -2.9 and 2.9 <= high <= 3.1


def test_the_range_is_not_cut_where_something_else_reads_it() -> None:
    def wire(m: Graph, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        return nn.functional.hardswish(y) + m.b(y)

    low, _ = reach(plan_of(wire, scale=20.0), "conv2d")
    assert low < -6


def test_hardswish_and_hardsigmoid_together_cut_the_low_side_only() -> None:
    def wire(m: Graph, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        return nn.functional.hardswish(y) * nn.functional.hardsigmoid(y)

    low, high = reach(plan_of(wire, scale=20.0), "conv2d")
    assert -3.1 <= low <= -2.9 and high > 6


def test_a_residual_addition_takes_and_gives_integers() -> None:
    plan = plan_of(lambda m, x: m.b(m.a(x) + x))
    assert nodes(plan) == ["x", "conv2d", "add", "conv2d_1"]
    plan = plan_of(lambda m, x: m.b(torch.relu(m.a(x) + x)))
    assert nodes(plan) == ["x", "conv2d", "relu", "conv2d_1"], "relu is fused with the addition"


def test_concatenation_gives_all_its_tensors_one_scale() -> None:
    plan = plan_of(lambda m, x: torch.cat([m.a(x), torch.relu(m.b(x)), m.c(x)], 1))
    edges = plan.activations()
    members = ["conv2d", "relu", "conv2d_2", "cat"]
    assert {edges[n].group for n in members} == {min(members)}
    assert len({(edges[n].scale, edges[n].zero_point) for n in members}) == 1
    assert edges["x"].group is None


def test_max_pooling_and_data_movement_pass_the_scale_on() -> None:
    def wire(m: Graph, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.max_pool2d(torch.relu(m.a(x)), 2)
        return m.linear(y.permute(0, 2, 3, 1).reshape(1, 4, 3))

    edges = plan_of(wire).activations()
    movers = [n for n in edges if n not in ("x", "linear")]
    assert movers == ["relu", "max_pool2d", "permute", "view"]
    assert {edges[n].group for n in movers} == {min(movers)}
    assert len({(edges[n].scale, edges[n].zero_point) for n in movers}) == 1


@pytest.mark.parametrize(
    "move",
    [
        lambda x: nn.functional.pad(x, (1, 1, 1, 1)),
        lambda x: nn.functional.interpolate(x, scale_factor=2),
        lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: nn.functional.avg_pool2d(x, 2),
        lambda x: nn.functional.pixel_unshuffle(x, 2).view(1, 3, 4, 4),
        lambda x: torch.chunk(x, 2, 2)[1],
        lambda x: x.transpose(1, 2).reshape(1, 3, 4, 4),
    ],
    ids=["pad", "nearest", "bilinear", "average", "unshuffle", "chunk", "shuffle"],
)
def test_integers_move_without_a_new_scale(move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    plan = plan_of(lambda m, x: m.b(move(torch.relu(m.a(x)))))
    edges = plan.activations()
    members = [n for n in edges if n not in ("x", "conv2d_1")]
    assert len(members) >= 2 and not plan.kept_float
    assert len({(edges[n].scale, edges[n].zero_point) for n in members}) == 1


def test_padding_with_another_number_than_zero_stays_in_float() -> None:
    plan = plan_of(lambda m, x: m.b(nn.functional.pad(m.a(x), (1, 1), value=99.0)))
    assert reasons(plan)["constant_pad_nd"] == "it pads with a number other than zero"
    edges = plan.activations()
    assert edges["conv2d"].scale[0] < 0.1 < edges["constant_pad_nd"].scale[0]


def test_probabilities_have_the_scale_that_litert_demands() -> None:
    plan = plan_of(lambda m, x: m.b(m.a(x).softmax(1)))
    edge = plan.activations()["softmax"]
    assert edge.scale == (1 / 256,) and edge.zero_point == (-128,)


def test_a_mean_has_a_scale_of_its_own() -> None:
    edges = plan_of(lambda m, x: m.linear(m.a(x).mean((2, 3)))).activations()
    assert list(edges) == ["x", "conv2d", "adaptive_avg_pool2d", "reshape", "linear"]
    assert edges["adaptive_avg_pool2d"].scale[0] < edges["conv2d"].scale[0]
    edges = plan_of(lambda m, x: m.a(x).mean(3, keepdim=True) * m.b(x)).activations()
    assert list(edges) == ["x", "conv2d", "mean", "conv2d_1", "mul"]
    assert edges["mean"].scale[0] < edges["conv2d"].scale[0]


def test_data_movement_between_float_operators_stays_in_float() -> None:
    plan = plan_of(lambda m, x: m.a(x).sigmoid().permute(0, 2, 3, 1).exp())
    assert nodes(plan) == ["x", "conv2d"]
    assert reasons(plan)["sigmoid"] == "nothing behind it takes integers"


@pytest.mark.parametrize("gate", [nn.functional.gelu, torch.sigmoid])
def test_a_curve_between_integers_takes_and_gives_them(
    gate: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    plan = plan_of(lambda m, x: gate(m.a(x)) * m.b(x))
    name = getattr(gate, "__name__", "")
    assert nodes(plan) == ["x", "conv2d", name, "conv2d_1", "mul"]
    if gate is torch.sigmoid:
        edge = plan.activations()[name]
        assert (edge.scale, edge.zero_point) == ((1 / 256,), (-128,)), "LiteRT allows no other"


def test_silu_is_a_product_with_a_sigmoid() -> None:
    plan = plan_of(lambda m, x: m.b(nn.functional.silu(m.a(x))))
    assert nodes(plan) == ["x", "conv2d", "sigmoid", "mul", "conv2d_1"]
    assert plan.activations()["sigmoid"].scale == (1 / 256,)


def reasons(plan: QuantPlan) -> dict[str, str]:
    """Why each operator that was kept in float was."""
    return dict(plan.kept_float)


def test_what_stays_in_float_says_why() -> None:
    def wire(m: Graph, x: torch.Tensor) -> torch.Tensor:
        y = m.norm(m.a(x).permute(0, 2, 3, 1))
        z = m.linear(nn.functional.elu(y) + 1.0)
        return torch.cat([z, z.exp()], -1)

    kept = reasons(plan_of(wire))
    assert kept["layer_norm"] == "no integer form of aten.layer_norm.default in the rules"
    assert "aten.elu" in kept["elu"] and "aten.exp" in kept["exp"]
    assert kept["add"] == "one operand is a plain number"
    assert kept["cat"] == "one of its inputs stays in float"
    assert "linear" not in kept and "conv2d" not in kept


class Words(nn.Module):
    """Two embeddings, added, and a head that may share the first one's table."""

    def __init__(self, wire: Callable[[Words, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.kinds = nn.Embedding(10, 4, padding_idx=0), nn.Embedding(3, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 10)
        self.wire = wire

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.wire(self, ids)


def plan_of_words(
    wire: Callable[[Words, torch.Tensor], torch.Tensor], *, tied: bool = False
) -> QuantPlan:
    module = Words(wire).eval()
    if tied:
        module.head.weight = module.words.weight
    ids = torch.tensor([[1, 2, 0]])
    return quantize(canonical(torch.export.export(module, (ids,), strict=False)), [(ids,)])


def test_an_embeddings_table_is_quantized_row_by_row() -> None:
    plan = plan_of_words(lambda m, x: m.head(m.norm(m.words(x) + m.kinds(x.clamp(max=2)))))
    tables = [e for e in plan.edges if e.kind == "weight" and "head" not in e.edge]
    assert [(e.edge, e.axis, len(e.scale)) for e in tables] == [
        ("words.weight", 0, 10),
        ("kinds.weight", 0, 3),
    ]
    assert tables[0].scale[0] == 1.0, "a row of zeros"
    weight = Words(lambda m, x: x).words.weight.detach()
    expected = weight[1:].abs().amax(1) / 127
    torch.testing.assert_close(torch.tensor(tables[0].scale[1:]), expected, rtol=1e-6, atol=0)
    kept = reasons(plan)
    assert "rows" in kept["embedding"] and "rows" in kept["embedding_1"]
    assert nodes(plan) == ["layer_norm", "linear"], "the sum of both, and the norm, stay in float"


def test_a_table_that_a_layer_shares_has_one_scale_a_row() -> None:
    plan = plan_of_words(lambda m, x: m.head(m.norm(m.words(x))), tied=True)
    weights = [e for e in plan.edges if e.kind == "weight"]
    assert {(e.axis, len(e.scale)) for e in weights} == {(0, 10)}
    assert len({e.scale for e in weights}) == 1


def test_a_table_that_is_read_in_float_elsewhere_stays_in_float() -> None:
    plan = plan_of_words(lambda m, x: m.head(m.norm(m.words(x) + m.words.weight[x])))
    assert reasons(plan)["embedding"] == "its table is read in float elsewhere"
    assert [e.edge for e in plan.edges if e.kind == "weight"] == ["head.weight"]


def test_a_layer_right_behind_an_embedding_takes_integers() -> None:
    plan = plan_of_words(lambda m, x: m.head(m.words(x)))
    assert nodes(plan) == ["embedding", "linear"]


def test_layers_that_no_rule_covers_say_why() -> None:
    kept = reasons(plan_of(lambda m, x: m.transposed(m.a(x))))
    assert kept["conv_transpose2d"] == "no integer form of a grouped transposed convolution"

    def computed(m: Graph, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(m.a(x).flatten(1), x.flatten(1))

    assert "its weight is not a constant" in reasons(plan_of(computed)).values()


def test_every_layer_has_its_weight_and_bias_quantized() -> None:
    plan = plan_of(lambda m, x: m.linear(m.b(m.a(x)).mean((2, 3))))
    kinds = [e.kind for e in plan.edges if e.kind != "activation"]
    assert kinds == ["weight", "bias"] * 3
    assert not plan.kept_float
