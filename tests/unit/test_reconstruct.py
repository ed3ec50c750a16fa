"""Layer by layer behind quantized layers: closer answers, on the plan's own grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import fx, nn

from edgekit.compress.graph import canonical, compute_nodes, graph_module, program_digest, tensor_of
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import INT32_ROOM, quantize
from edgekit.compress.reconstruct import _matrix, reconstruct
from edgekit.compress.render import render

pytestmark = pytest.mark.usefixtures("one_thread")

Program = torch.export.ExportedProgram
Feeds = list[tuple[torch.Tensor, ...]]
PICTURE = (1, 3, 10, 10)


class Residual(nn.Module):
    """ReLU6, depthwise with stride and asymmetric zeros, dilation, groups, a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU6())
        self.down = nn.Sequential(nn.ZeroPad2d((0, 1, 1, 0)), nn.Conv2d(12, 12, 3, 2, groups=12))
        self.wide = nn.Conv2d(12, 12, 3, padding=(2, 1), dilation=(2, 1), groups=2)
        self.point = nn.Conv2d(12, 12, 1, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.down(self.stem(x)))
        x = self.point(torch.relu(self.wide(x))) + x
        result: torch.Tensor = self.head(x.mean((2, 3)))
        return result


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, PICTURE),
    "one axis": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 12, 5, stride=2, padding=2),
            nn.Hardswish(),
            nn.Conv1d(12, 12, 3, groups=3, dilation=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, 5),
        ),
        (1, 3, 24),
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(4, 4, 1)
        ),
        PICTURE,
    ),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8, bias=False)),
        (1, 6, 8),
    ),
    "no batch": (
        lambda: nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        PICTURE,
    ),
}


def correlated(*shape: int, n: int = 24, seed: int = 0) -> Feeds:
    """Samples whose neighbours are alike, as those of pictures are, some brighter than others."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, *shape, generator=generator)
    smooth = noise + noise.roll(1, -1) + noise.roll(1, -2)
    return [(x,) for x in 0.5 * smooth + torch.randn(n, *[1] * len(shape), generator=generator)]


def program_of(module: nn.Module, feeds: Feeds) -> Program:
    return canonical(torch.export.export(module.eval(), feeds[0], strict=False))


def coarse(program: Program, feeds: Feeds) -> QuantPlan:
    """A plan whose weights have 4 bits: their errors then rule over those of activations."""
    plan = quantize(program, feeds)
    edges = {e.node: e for e in plan.edges}
    for edge in plan.edges:
        if edge.kind == "weight":
            scale = tuple((np.float32(edge.scale) * np.float32(127 / 7)).tolist())
            edges[edge.node] = dataclasses.replace(edge, scale=scale, quant_min=-7, quant_max=7)
    for layer in compute_nodes(graph_module(program)):
        source, weight, bias = (str(a) for a in (*layer.args, None)[:3])
        if bias in edges:
            product = np.float32(edges[weight].scale) * np.float32(edges[source].scale)
            edges[bias] = dataclasses.replace(edges[bias], scale=tuple(product.tolist()))
    return dataclasses.replace(plan, edges=tuple(edges.values()))


def sqnr(program: Program, made: tuple[Program, QuantPlan], feeds: Feeds) -> float:
    """Of a rendered plan's answers against the float model's, in dB."""
    float_, fake = graph_module(program), render(*made, "fake")
    with torch.no_grad():
        expected, got = (torch.stack([m(*f) for f in feeds]) for m in (float_, fake))
    return 10 * float(torch.log10(expected.square().sum() / (got - expected).square().sum()))


def check(program: Program, plan: QuantPlan) -> None:
    """That a program's weights lie on its plan's grid, and biases fit theirs."""
    assert plan.program_digest == program_digest(program)
    module, constants = graph_module(program), plan.constants()
    for node in compute_nodes(module):
        source, weight, bias = (*node.args, None)[:3]
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
        if weight.name not in constants:
            continue
        edge, value = constants[weight.name], tensor_of(module, weight)
        assert value is not None and value.dtype == torch.float32
        np.testing.assert_array_equal(edge.dequantize(edge.quantize(value.numpy())), value.numpy())
        if not isinstance(bias, fx.Node):
            continue
        step = np.float32(plan.activations()[source.name].scale[0])
        expected = np.float32(edge.scale) * step
        np.testing.assert_array_equal(np.float32(constants[bias.name].scale), expected)
        held = tensor_of(module, bias)
        assert held is not None
        stored = np.rint(held.double().numpy() / np.float64(constants[bias.name].scale))
        assert np.abs(stored).max() < 1.5 * INT32_ROOM


@pytest.mark.parametrize("name", MODELS)
def test_answers_come_closer_on_samples_never_seen(name: str) -> None:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    feeds, fresh = correlated(*shape), correlated(*shape, n=32, seed=1)
    program = program_of(build(), feeds)
    plan = coarse(program, feeds)
    digests = program_digest(program), plan.digest()
    done: list[int] = []
    made = reconstruct(program, plan, feeds, progress=done.append)
    check(*made)
    layers = [n for n in compute_nodes(graph_module(program))]
    assert done == [1] * len(layers)
    assert (program_digest(program), plan.digest()) == digests, "neither is changed"
    before, after = sqnr(program, (program, plan), fresh), sqnr(program, made, fresh)
    assert after > before + 2, (before, after)
    assert [e.node for e in made[1].edges] == [e.node for e in plan.edges]
    assert made[1].activations() == plan.activations()


@pytest.mark.parametrize(("rounding", "bias"), [(True, False), (False, True), (False, False)])
def test_each_part_works_alone(rounding: bool, bias: bool) -> None:
    torch.manual_seed(0)
    feeds, fresh = correlated(*PICTURE), correlated(*PICTURE, n=32, seed=1)
    program = program_of(Residual(), feeds)
    plan = coarse(program, feeds)
    made = reconstruct(program, plan, feeds, rounding=rounding, bias=bias)
    check(*made)
    before, after = sqnr(program, (program, plan), fresh), sqnr(program, made, fresh)
    if rounding or bias:
        assert after > before + 1, (before, after)
    else:
        assert np.isclose(after, before), "weights that are rounded already, and nothing else"
    old, new = graph_module(program), graph_module(made[0])
    for node in old.graph.nodes:
        if node.name.endswith("bias") and not bias:
            assert torch.equal(tensor_of(old, node), tensor_of(new, node))  # type: ignore[arg-type]
    if not rounding:
        assert made[1].edges == plan.edges


def test_eight_bits_lose_nothing_by_it() -> None:
    torch.manual_seed(0)
    feeds, fresh = correlated(*PICTURE), correlated(*PICTURE, n=32, seed=1)
    program = program_of(Residual(), feeds)
    plan = quantize(program, feeds)
    made = reconstruct(program, plan, feeds)
    check(*made)
    assert sqnr(program, made, fresh) > sqnr(program, (program, plan), fresh) - 1


def test_a_mean_that_no_bias_takes_up_counts() -> None:
    """Inputs about 3 at a coarse step: without a bias the weights alone can make up for it."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    feeds: Feeds = [(3 + 0.3 * torch.randn(1, 4, 16, generator=generator),) for _ in range(16)]
    program = program_of(nn.Linear(16, 8, bias=False), feeds)
    plan = quantize(program, feeds)
    made = reconstruct(program, plan, feeds)
    check(*made)
    assert sqnr(program, made, feeds) > sqnr(program, (program, plan), feeds)
    exact, new = (
        tensor_of(m, next(compute_nodes(m)).args[1]) for m in map(graph_module, (program, made[0]))
    )
    assert exact is not None and new is not None
    mean = torch.stack([f for (f,) in feeds]).mean((0, 1, 2))
    assert ((new - exact) @ mean).abs().max() < 0.02 * (exact @ mean).abs().max()


class Shared(nn.Module):
    """One layer used twice, one bias used by two layers, and one layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.other, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.other.bias = self.twice.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.twice(x))
        result: torch.Tensor = self.last(torch.relu(self.other(self.twice(0.1 * y))))
        return result


def test_shared_weights_and_biases() -> None:
    torch.manual_seed(0)
    feeds = correlated(1, 1, 8)
    program = program_of(Shared(), feeds)
    plan = coarse(program, feeds)
    made = reconstruct(program, plan, feeds)
    check(*made)
    for edge in plan.edges:
        if edge.kind == "weight":
            plain = edge.dequantize(edge.quantize(program.state_dict[edge.edge].detach().numpy()))
            same = np.array_equal(plain, made[0].state_dict[edge.edge].detach().numpy())
            assert same == (edge.edge == "twice.weight")
    assert sqnr(program, made, feeds) > sqnr(program, (program, plan), feeds)


def test_layers_kept_in_float_keep_their_weights() -> None:
    torch.manual_seed(0)
    feeds = correlated(*PICTURE)
    layers = [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2, groups=2), nn.Conv2d(4, 2, 1)]
    program = program_of(nn.Sequential(*layers), feeds)
    plan = quantize(program, feeds)
    assert len(plan.kept_float) == 1
    done: list[int] = []
    new, made = reconstruct(program, plan, feeds, progress=done.append)
    check(new, made)
    assert made.kept_float == plan.kept_float and len(done) == 2
    old_values, values = program.state_dict, new.state_dict
    for name in ("1.weight", "1.bias"):
        assert torch.equal(values[name], old_values[name])
    assert not torch.equal(values["0.weight"], old_values["0.weight"])


def test_channels_without_weights_and_large_biases() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        layer.weight[0] = 0
        layer.weight[1] *= 1e-8
        layer.bias.copy_(torch.tensor([50.0, -50.0, 0.1, 0.2]))  # type: ignore[union-attr]
    feeds = correlated(*PICTURE)
    program = program_of(layer, feeds)
    made = reconstruct(program, quantize(program, feeds), feeds)
    check(*made)
    module = graph_module(made[0])
    weight, bias = (tensor_of(module, a) for a in next(compute_nodes(module)).args[1:3])
    assert weight is not None and bias is not None and not weight[0].any()
    torch.testing.assert_close(bias[:2], torch.tensor([50.0, -50.0]), rtol=1e-4, atol=0)


def test_a_weight_that_fades_leaves_room_for_its_bias() -> None:
    """The second input is less than a step of both: the best weight for it is smaller."""
    torch.manual_seed(0)
    step = 2 / 255
    layer = nn.Conv2d(2, 2, 1, groups=2)
    with torch.no_grad():
        layer.weight[1] = 1.0
        layer.bias[1] = 0.95 * step * INT32_ROOM / 127  # type: ignore[index]
    feeds: Feeds = [(2 * torch.rand(1, 2, 20, 20) - 1,) for _ in range(8)]
    for (x,) in feeds:
        x[:, 1] *= 0.55 * step
    program = program_of(layer, feeds)
    plan = quantize(program, feeds)
    made = reconstruct(program, plan, feeds)
    check(*made)
    before, after = (next(e for e in p.edges if e.kind == "weight").scale for p in (plan, made[1]))
    assert 0.9 * before[1] < after[1] < before[1], "no smaller than its bias allows"


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2, bias=False), (1, 4, 9, 8)),
        (nn.Conv2d(4, 4, 3, groups=4, padding=1, bias=False), (1, 4, 5, 5)),
        (nn.Conv1d(4, 6, 3, 2, 1, 2, groups=2, bias=False), (1, 4, 11)),
        (nn.Linear(5, 3, bias=False), (1, 2, 4, 5)),
        (nn.Linear(5, 3, bias=False), (5,)),
    ],
)
def test_input_vectors_times_weights_are_the_layers_answers(
    layer: nn.Conv1d | nn.Conv2d | nn.Linear, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), layer.weight.detach()
    module = graph_module(torch.export.export(layer.eval(), (x,), strict=False))
    node = next(compute_nodes(module))
    rows = _matrix(node, x, weight.shape, 1000, torch.Generator())
    parts = len(rows)
    made = rows @ weight.reshape(parts, len(weight) // parts, -1).transpose(1, 2)
    with torch.no_grad():
        expected = layer(x)
    columns = made.permute(0, 2, 1).reshape(len(weight), -1)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    torch.testing.assert_close(columns, expected.movedim(axis, 0).reshape(len(weight), -1))
    few = _matrix(node, x, weight.shape, 3, torch.Generator().manual_seed(0))
    assert few.shape[1] == min(3, rows.shape[1])
    assert all((rows[0] == row).all(1).any() for row in few[0]), "some of all rows"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_samples_do(count: int) -> None:
    torch.manual_seed(0)
    feeds = correlated(1, 6, 8, n=count)
    program = program_of(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), feeds)
    plan = quantize(program, feeds)
    made = reconstruct(program, plan, feeds)
    check(*made)
    assert sqnr(program, made, feeds) > sqnr(program, (program, plan), feeds) - 1
