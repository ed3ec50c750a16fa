"""Saturation on x86 without VNNI: the bound, the override that answers it, the simulation."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.evaluate import evaluate
from edgekit.compress.graph import canonical, compute_nodes, graph_module, tensor_of
from edgekit.compress.plan import QuantPlan, plan_name
from edgekit.compress.ptq import PLAIN, Methods, Quantized, post_training
from edgekit.compress.render import render
from edgekit.compress.saturation import (
    at_risk,
    compare,
    limited,
    overrides,
    remaining,
    render_saturating,
    worst_pairs,
)
from edgekit.errors import UnsupportedError
from edgekit.names import NO_VNNI, OVERRIDES
from edgekit.schemas import validate

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (1, 6, 7, 7)


def planted(layer: nn.Module) -> nn.Module:
    """A layer whose weights all lie near the largest, of random sign: half of all pairs agree."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = layer.weight
        sign = torch.sign(torch.randn(weight.shape, generator=generator))
        weight.copy_(sign * (0.7 + 0.3 * torch.rand(weight.shape, generator=generator)))
        layer.bias.zero_()
    return layer


def quantized(
    *layers: nn.Module, methods: Methods = PLAIN, variants: tuple[str, ...] = (NO_VNNI,)
) -> tuple[Quantized, dict[str, np.ndarray]]:
    """A plan of ReLU6 and the layers, and inputs that mostly saturate the ReLU6."""
    generator = torch.Generator().manual_seed(1)
    shape = SHAPE if not isinstance(layers[0], nn.Linear) else (1, 5, 12)
    feeds = [(8 * torch.rand(shape, generator=generator) ** 0.3,) for _ in range(16)]
    module = nn.Sequential(nn.ReLU6(), *layers).eval()
    program = canonical(torch.export.export(module, feeds[0], strict=False))
    made = post_training(program, feeds, methods, variants=variants)
    return made, {"x": np.stack([x.numpy() for (x,) in feeds])}


def answers(module: torch.fx.GraphModule, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return evaluate(module, feeds, ["x"], ["y"])


def test_the_bound_is_that_of_the_worst_pair_of_all() -> None:
    rng = np.random.default_rng(0)
    integers = rng.integers(-127, 128, (20, 7))
    low, high = worst_pairs(integers)
    for row, least, most in zip(integers, low, high, strict=True):
        sums = [
            a * int(x) + b * int(y)
            for x, y in itertools.combinations(row, 2)
            for a, b in itertools.product((0, 255), repeat=2)
        ]
        assert (min(sums), max(sums)) == (least, most)
    assert [v.tolist() for v in worst_pairs(np.array([[127], [-3]]))] == [[0, -765], [32385, 0]]


@pytest.mark.parametrize(
    ("integers", "saturates"),
    [
        ([64, 64, -64, -64], False),
        ([127, 1, 1, 0], False),
        ([65, 64, 0, 0], True),
        ([127, -127, 1, -1], False),
        ([127, -127, 1, -2], True),
        ([-64, -65, 0, 0], True),
    ],
)
def test_64_is_the_largest_limit_that_is_safe(integers: list[int], saturates: bool) -> None:
    low, high = worst_pairs(np.array([integers]))
    assert bool(low[0] < -(2**15) or high[0] > 2**15 - 1) is saturates


def _conv(*args: int, **options: int) -> nn.Module:
    return planted(nn.Conv2d(*args, **options))  # type: ignore[arg-type]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "1x1": lambda: _conv(6, 4, 1),
    "strided": lambda: _conv(6, 4, 3, stride=2, padding=1),
    "dilated": lambda: _conv(6, 4, 3, dilation=2),
    "groups": lambda: _conv(6, 4, 3, groups=2),
    "depth multiplier": lambda: _conv(6, 12, 3, groups=6),
    "rows": lambda: planted(nn.Linear(12, 7)),
}


@functools.cache
def one(name: str) -> tuple[Quantized, dict[str, np.ndarray]]:
    """The plan of one of `LAYERS`."""
    return quantized(LAYERS[name]())


def saturated_by_hand(made: Quantized, x: np.ndarray, target: str) -> np.ndarray:
    """The layer's output by VPMADDUBSW, window by window and pair by pair."""
    module, constants = graph_module(made.program), made.plan.constants()
    [node] = compute_nodes(module)
    name = str(node.args[1])
    weight = tensor_of(module, node.args[1])
    source = made.plan.activations()[node.all_input_nodes[0].name]
    assert weight is not None
    stored = constants[name].quantize(weight.numpy()).astype(np.int64)
    zero = source.zero_point[0] + 128
    unsigned = source.quantize(np.clip(x, 0, 6)).astype(np.int64) + 128
    scale = np.asarray(constants[name].scale) * source.scale[0]
    if stored.ndim == 2:
        rows = _pairs(unsigned.reshape(-1, x.shape[-1]), stored, zero) * scale
        return rows.reshape(*x.shape[:-1], len(stored))
    given = [*node.args[3:], *([1], [0], [1], 1)[len(node.args) - 3 :]]
    (stride, *_), (padding, *_), (dilation, *_), groups = given
    edges = (padding, padding)
    padded = np.pad(unsigned, ((0, 0), (0, 0), edges, edges), constant_values=zero)
    n, part, each = len(x), x.shape[1] // groups, len(stored) // groups
    reach = (stored.shape[2] - 1) * dilation
    places = range(0, padded.shape[2] - reach, stride)
    out = np.zeros((n, len(stored), len(places), len(places)))
    more = (0, -part % 4 if target == "openvino" and groups == 1 else 0)
    fill = ((0, 0), (0, 0), (0, 0), more)
    for (i, top), (j, left), g in itertools.product(
        enumerate(places), enumerate(places), range(groups)
    ):
        window = padded[:, :, top : top + reach + 1 : dilation, left : left + reach + 1 : dilation]
        patch = np.pad(window[:, g * part : (g + 1) * part].transpose(0, 2, 3, 1), fill)
        mine = slice(g * each, (g + 1) * each)
        kernel = np.pad(stored[mine].transpose(0, 2, 3, 1), fill)
        out[:, mine, i, j] = _pairs(patch.reshape(n, -1), kernel.reshape(each, -1), zero)
    return out * scale.reshape(1, -1, 1, 1)


def _pairs(rows: np.ndarray, weights: np.ndarray, zero: int) -> np.ndarray:
    """[rows, outputs]: sums of saturated pairs, less what the zero point adds."""
    total = np.zeros((len(rows), len(weights)))
    for k in range(0, rows.shape[1], 2):
        pair = rows[:, k : k + 2] @ weights[:, k : k + 2].T
        total += np.clip(pair, -(2**15), 2**15 - 1)
    return total - zero * weights.sum(1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("target", OVERRIDES[NO_VNNI])
def test_the_simulation_is_that_instruction(name: str, target: str) -> None:
    made, feeds = one(name)
    module = render_saturating(made.program, made.plan, target)
    got = answers(module, feeds)["y"]
    by_hand = saturated_by_hand(made, feeds["x"][:, 0], target)
    edge = next(e for e in reversed(made.plan.edges) if e.kind == "activation")
    expected = edge.dequantize(edge.quantize(by_hand.astype(np.float32)))
    off = np.abs(got[:, 0] - expected.reshape(got[:, 0].shape)) / edge.scale[0]
    assert off.max() < 1.01 and (off > 0.5).mean() < 0.01  # a tie may round the other way


@pytest.mark.parametrize("name", ["strided", "groups", "rows"])
def test_planted_weights_saturate_and_the_override_s_do_not(name: str) -> None:
    made, feeds = one(name)
    right = answers(render(made.program, made.plan, "fake"), feeds)
    for target in OVERRIDES[NO_VNNI]:
        wrong = answers(render_saturating(made.program, made.plan, target), feeds)
        assert compare(right, wrong)["y"]["sqnr_db"] < 20
    variant = made.variants[NO_VNNI]
    assert at_risk(made.program, made.plan) and not at_risk(variant.program, variant.plan)
    exact = answers(render(variant.program, variant.plan, "fake"), feeds)
    for target in OVERRIDES[NO_VNNI]:
        same = answers(render_saturating(variant.program, variant.plan, target), feeds)
        np.testing.assert_array_equal(same["y"], exact["y"])
    # A bit less for the weights: noise of a quarter of a step more, no other answers.
    assert compare(right, exact)["y"]["sqnr_db"] > 35


def test_depthwise_convolutions_are_exact() -> None:
    made, feeds = quantized(_conv(6, 6, 3, groups=6))
    assert at_risk(made.program, made.plan) == () and made.plan.overrides == {}
    right = answers(render(made.program, made.plan, "fake"), feeds)
    same = answers(render_saturating(made.program, made.plan, "openvino"), feeds)
    np.testing.assert_array_equal(same["y"], right["y"])
    # The variant is the plan itself where nothing could saturate.
    variant = made.variants[NO_VNNI]
    assert dataclasses.replace(variant.plan, variant=None) == made.plan


def test_a_layer_of_small_weights_is_not_at_risk() -> None:
    layer = _conv(6, 4, 1)
    with torch.no_grad():
        layer.weight[:, 1:] *= 0.003  # one large weight per channel, and nothing beside it
    made, _ = quantized(layer)
    assert at_risk(made.program, made.plan) == ()


@pytest.mark.parametrize("methods", [PLAIN, Methods()], ids=["plain", "all methods"])
def test_the_plan_says_what_the_override_changes(methods: Methods) -> None:
    made, _ = quantized(_conv(6, 6, 3, groups=6), nn.ReLU6(), _conv(6, 4, 1), methods=methods)
    carried = made.plan.overrides
    assert carried == overrides(made.program, made.plan)
    entry = carried[NO_VNNI]
    assert entry["targets"] == {
        "onnxruntime": {"weight_dtype": "uint8"},
        "openvino": {"weight_limit": 64},
    }
    assert entry["isa"] == ["x86_64:avx_vnni|avx512_vnni"]
    [layer] = entry["layers"]
    assert layer["layer"] == "3" and layer["channels"] == layer["of"] == 4
    assert abs(layer["worst"]) > 2**15
    variant = made.variants[NO_VNNI]
    assert variant.plan.variant == NO_VNNI and variant.plan.overrides == carried
    for plan in (made.plan, variant.plan):
        document = json.loads(json.dumps(plan.to_json()))
        validate({**document, "calibration": None})
        assert QuantPlan.from_json(document) == plan
    assert made.plan.change("openvino") == {}
    assert variant.plan.change("openvino") == {"weight_limit": 64}
    assert variant.plan.change("tflite") == {}


def test_only_layers_at_risk_lose_a_bit() -> None:
    made, _ = quantized(_conv(6, 6, 3, groups=6), nn.ReLU6(), _conv(6, 4, 1), methods=Methods())
    variant = made.variants[NO_VNNI]
    weights = {e.node: e for e in variant.plan.edges if e.kind == "weight"}
    assert [e.quant_max for e in weights.values()] == [127, 64]
    for node in compute_nodes(graph_module(variant.program)):
        value = tensor_of(graph_module(variant.program), node.args[1])
        assert value is not None
        edge = weights[str(node.args[1])]
        stored = edge.quantize(value.numpy())
        np.testing.assert_allclose(edge.dequantize(stored), value.numpy(), rtol=0, atol=1e-6)
        assert np.abs(stored).max() == edge.quant_max
    # The scale of a bias stays the product of its layer's other two.
    by_node = {e.node: e for e in variant.plan.edges}
    for node in compute_nodes(graph_module(variant.program)):
        source, weight, bias = (str(a) for a in node.args[:3])
        step = np.float32(by_node[source].scale[0])
        product = np.asarray(by_node[weight].scale, np.float32) * step
        np.testing.assert_array_equal(product, np.asarray(by_node[bias].scale, np.float32))


def test_layers_back_in_float_are_at_risk_no_more() -> None:
    made, _ = quantized(_conv(6, 8, 1), nn.ReLU6(), _conv(8, 4, 1))
    first, second = made.plan.overrides[NO_VNNI]["layers"]
    edges = tuple(e for e in made.plan.edges if e.node != first["weight"])
    plan = dataclasses.replace(made.plan, edges=edges)
    assert remaining(plan)[NO_VNNI]["layers"] == [second]
    assert remaining(made.plan) == made.plan.overrides
    edges = tuple(e for e in edges if e.node != second["weight"])
    assert remaining(dataclasses.replace(made.plan, edges=edges)) == {}


def test_scales_widen_no_more_than_the_weights_need() -> None:
    made, _ = one("1x1")
    [risk] = at_risk(made.program, made.plan)
    plan = limited(made.program, made.plan, [risk.weight], 64)
    before, after = (p.constants()[risk.weight] for p in (made.plan, plan))
    np.testing.assert_allclose(np.array(after.scale) / before.scale, 127 / 64, rtol=1e-5)
    assert limited(made.program, made.plan, [], 64) == made.plan


def test_transposed_convolutions_are_at_risk_in_openvino_alone() -> None:
    made, feeds = quantized(planted(nn.ConvTranspose2d(6, 4, 2, stride=2)))
    assert [r.of for r in at_risk(made.program, made.plan)] == [4]
    right = answers(render(made.program, made.plan, "fake"), feeds)
    same = answers(render_saturating(made.program, made.plan, "onnxruntime"), feeds)
    np.testing.assert_array_equal(same["y"], right["y"])
    with pytest.raises(UnsupportedError, match="transposed convolutions is not simulated"):
        render_saturating(made.program, made.plan, "openvino")
    with pytest.raises(UnsupportedError, match="no kernel of 'tflite'"):
        render_saturating(made.program, made.plan, "tflite")


def test_plans_of_variants_have_names_of_their_own() -> None:
    assert plan_name("openvino", "w8a8", None) == "w8a8"
    assert plan_name("openvino", "w8a8", NO_VNNI) == f"w8a8@{NO_VNNI}"
    assert plan_name("onnxruntime", "w8a8", NO_VNNI) == "w8a8"  # the same weights, as uint8
