"""Layers in place of operators: the same answers, of the classes that quantizers look for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekit.compress.graph import canonical
from edgekit.engines._layers import layered


class Call(nn.Module):
    """A module that is a function of its input and its layers."""

    def __init__(self, compute: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.compute = compute

    def forward(self, x: torch.Tensor) -> Any:
        return self.compute(x, *self.layers)


def kinds(net: nn.Module, x: torch.Tensor) -> list[str]:
    """What ``layered`` calls, after seeing that it answers as ``net`` does."""
    torch.manual_seed(0)
    net = net.eval()
    made = layered(canonical(torch.export.export(net, (x,))))
    with torch.no_grad():
        right, got = net(x), made(x)
    right = right if isinstance(right, tuple) else (right,)
    assert isinstance(got, tuple)
    for mine, its in zip(got, right, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)
    return [
        type(made.get_submodule(str(n.target))).__name__
        if n.op == "call_module"
        else getattr(n.target, "__name__", str(n.target))
        for n in made.graph.nodes
        if n.op.startswith("call_")
    ]


IMAGE = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2))


FOR_IMAGES = (
    nn.Conv2d(4, 6, 3, 2, 1),
    nn.Conv2d(4, 4, (3, 1), padding="same", groups=4, bias=False),
    nn.Conv2d(4, 8, 3, dilation=2, groups=2),
    nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2),
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(-0.5, 2.0),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.SiLU(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Mish(),
    nn.GELU("tanh"),
    nn.LeakyReLU(0.2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(2),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.AdaptiveAvgPool2d(1),
)
FOR_ROWS = (
    nn.Conv1d(3, 5, 3, padding=1),
    nn.ConvTranspose1d(3, 5, 2, stride=2),
    nn.Linear(8, 5, bias=False),
    nn.Softmax(-1),
    nn.LogSoftmax(1),
)


@pytest.mark.parametrize(("layers", "x"), [(FOR_IMAGES, IMAGE), (FOR_ROWS, ROWS)])
def test_an_operator_becomes_the_layer_that_it_was(
    layers: tuple[nn.Module, ...], x: torch.Tensor
) -> None:
    net = Call(lambda x, *layers: tuple(layer(x) for layer in layers), *layers)
    assert kinds(net, x) == [type(layer).__name__ for layer in layers]


def test_an_embedding_is_one() -> None:
    ids = torch.tensor([[1, 0, 2]])
    assert kinds(nn.Embedding(5, 4, padding_idx=0), ids) == ["Embedding"]


def test_batch_norm_is_in_the_layer_before_it() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU6())
    assert kinds(net, IMAGE) == ["Conv2d", "ReLU6"]


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 1), nn.Linear(8, 5, bias=False)])
def test_a_hard_sigmoid_is_one_again(layer: nn.Module) -> None:
    x = 3 * IMAGE if isinstance(layer, nn.Conv2d) else 3 * ROWS
    assert kinds(nn.Sequential(layer, nn.Hardsigmoid()), x) == [
        type(layer).__name__,
        "Hardsigmoid",
    ]


def test_a_clamp_to_one_stays_where_others_read_the_layer() -> None:
    both = Call(lambda x, conv: (lambda y: y + y.clamp(0, 1))(conv(x)), nn.Conv2d(4, 4, 1))
    assert kinds(both, IMAGE) == ["Conv2d", "Hardtanh", "add"]


def test_a_clamp_to_one_behind_no_layer_stays() -> None:
    assert kinds(Call(lambda x: x.relu().clamp(0, 1)), IMAGE) == ["ReLU", "Hardtanh"]


def test_a_product_with_another_ones_sigmoid_is_a_product() -> None:
    net = Call(lambda x, a, b: a(x) * b(x).sigmoid(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    assert kinds(net, IMAGE) == ["Conv2d", "Conv2d", "Sigmoid", "mul"]


def test_a_sigmoid_with_two_readers_is_no_silu() -> None:
    net = Call(lambda x: (lambda s: (x * s, s))(x.sigmoid()))
    assert kinds(net, IMAGE) == ["Sigmoid", "mul"]


def test_a_reshape_to_rows_is_a_flatten() -> None:
    assert kinds(Call(lambda x: x.view(1, -1)), IMAGE) == ["flatten"]
    assert kinds(Call(lambda x: x.reshape(2, -1)), IMAGE) == ["view.default"]


def test_what_no_quantizer_knows_stays_an_operator() -> None:
    net = Call(lambda x: functional.layer_norm(x.transpose(1, 2), (3,)))
    assert kinds(net, ROWS) == ["transpose.int", "layer_norm.default"]


def test_sums_products_and_joins_are_functions() -> None:
    net = Call(lambda x: torch.cat([x + 1.5, x - x.mean(1, keepdim=True)], 1))
    assert kinds(net, IMAGE) == ["add", "mean", "sub", "cat"]


def test_a_sum_of_integers_is_left_alone() -> None:
    net = Call(lambda ids, table: table(ids + 1), nn.Embedding(5, 4))
    assert kinds(net, torch.tensor([[1, 0, 2]])) == ["add.Tensor", "Embedding"]


def test_outputs_keep_their_order_and_number() -> None:
    net = Call(lambda x, conv: (conv(x), x.relu(), conv(x)), nn.Conv2d(4, 4, 1))
    assert kinds(net, IMAGE).count("ReLU") == 1
    same = Call(lambda x: (lambda y: (y, y))(x.relu()))
    assert kinds(same, IMAGE) == ["ReLU"]
