"""What a rendering leaves out: only what integers do by themselves, and never a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekit.compress.graph import aten, canonical, graph_module
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render

pytestmark = pytest.mark.usefixtures("one_thread")

Tensor = torch.Tensor


class Net(nn.Module):
    """Two convolutions, wired by a function of a test."""

    def __init__(self, wire: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.wire = wire
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.wire(self, x)


def prepared(
    wire: Callable[[Any, Tensor], Tensor],
) -> tuple[torch.export.ExportedProgram, QuantPlan, list[tuple[Tensor, ...]]]:
    """A program, its plan and the samples it was made with."""
    torch.manual_seed(0)
    feeds = [(3 * torch.randn(1, 3, 9, 9),) for _ in range(6)]
    program = canonical(torch.export.export(Net(wire).eval(), feeds[0], strict=False))
    return program, quantize(program, feeds), feeds


def quantized(wire: Callable[[Any, Tensor], Tensor], *, bare_pads: bool) -> dict[str, bool]:
    """Whether the result of each pad and clamp is quantized in the ``qdq`` form; those left."""
    program, plan, feeds = prepared(wire)
    lean = render(program, plan, "qdq", bare_pads=bare_pads)
    fake = render(program, plan, "fake")
    with torch.no_grad():
        for feed in feeds:
            assert torch.equal(*(_first(m(*(10 * t for t in feed))) for m in (lean, fake)))
    kinds = (aten.constant_pad_nd.default, aten.hardtanh.default)
    return {
        n.name: any("quantize_per_tensor" in str(u.target) for u in n.users)
        for n in lean.graph.nodes
        if n.target in kinds
    }


def _first(result: Any) -> Tensor:
    value: Tensor = result[0] if isinstance(result, tuple | list) else result
    return value


def _pad(x: Tensor) -> Tensor:
    return functional.pad(x, (0, 1, 2, 1))


def test_zeros_before_a_convolution_are_not_quantized_again() -> None:
    wire = lambda m, x: m.b(_pad(m.a(_pad(x))))  # noqa: E731
    assert quantized(wire, bare_pads=False) == {"constant_pad_nd": True, "constant_pad_nd_1": True}
    assert quantized(wire, bare_pads=True) == {"constant_pad_nd": False, "constant_pad_nd_1": False}


@pytest.mark.parametrize(
    "wire",
    [
        lambda m, x: m.b(y := _pad(m.a(x))) + m.b(y) + functional.max_pool2d(y, 3, 1),
        lambda m, x: m.b(functional.pad(m.a(x), (0, 0, 0, 0, 1, 0))[:, 1:]),
        lambda m, x: m.b(functional.pad(m.a(x), (-1, 1, 0, 0))),
        lambda m, x: functional.max_pool2d(_pad(m.a(x)), 2),
        lambda m, x: m.linear(functional.pad(m.a(x).mean((2, 3)), (1, 0))[:, :4]),
    ],
    ids=["another-reader", "channels", "negative", "pooling", "vector"],
)
def test_other_pads_stay_quantized(wire: Callable[[Any, Tensor], Tensor]) -> None:
    assert quantized(wire, bare_pads=True) == {"constant_pad_nd": True}


def test_a_pad_that_keeps_another_scale_stays_quantized() -> None:
    program, plan, _ = prepared(lambda m, x: m.b(functional.pad(m.a(x), (1, 1), value=2.0)))
    lean = render(program, plan, "qdq", bare_pads=True)
    [pad] = [n for n in lean.graph.nodes if n.target is aten.constant_pad_nd.default]
    assert [str(u.target) for u in pad.users] == [
        "quantized_decomposed.quantize_per_tensor.default"
    ]


def test_the_input_is_quantized_before_it_is_padded() -> None:
    _, plan, _ = prepared(lambda m, x: m.a(_pad(x)))
    edges = plan.activations()
    assert edges["x"].group == edges["constant_pad_nd"].group is not None
    _, plan, _ = prepared(lambda m, x: m.a(_pad(x)) + x.exp().mean())
    assert "x" not in plan.activations(), "something else reads it in float"


def test_moved_integers_are_not_quantized_again() -> None:
    def wire(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        y = y.view(1, 2, 2, 7, 7).transpose(1, 2).reshape(1, 4, 7, 7)
        result: Tensor = m.b(y[:, :, 1:])
        return result

    program, plan, feeds = prepared(wire)
    count = {}
    for bare in (False, True):
        lean = render(program, plan, "qdq", bare_moves=bare)
        with torch.no_grad():
            fake = render(program, plan, "fake")
            assert all(torch.equal(_first(lean(*f)), _first(fake(*f))) for f in feeds)
        count[bare] = sum("dequantize_per_tensor" in str(n.target) for n in lean.graph.nodes)
    assert count == {False: 7, True: 3}


@pytest.mark.parametrize("high", [0.5, 1.0, 3.0])
def test_a_clamp_where_the_integers_end_is_dropped(high: float) -> None:
    assert not quantized(lambda m, x: m.b(m.a(x).clamp(0, high)), bare_pads=False)


@pytest.mark.parametrize(
    "wire",
    [
        lambda m, x: m.b(functional.relu6(m.a(x))),
        lambda m, x: m.b(m.a(x).clamp(-0.31, 1.07)),
        lambda m, x: m.b(m.a(x).clamp(-1, 1)),
    ],
    ids=["relu6", "both-sides", "minus-one-to-one"],
)
def test_other_clamps_stay(wire: Callable[[Any, Tensor], Tensor]) -> None:
    assert "hardtanh" in quantized(wire, bare_pads=False)


def test_a_hard_sigmoid_goes_into_the_layer_before_it() -> None:
    torch.manual_seed(0)
    for layer in (nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1, bias=False), nn.ConvTranspose2d(3, 4, 2)):
        module, x = nn.Sequential(layer, nn.Hardsigmoid()).eval(), 9 * torch.randn(1, 3, 5, 5)
        program = canonical(torch.export.export(module, (x,), strict=False))
        targets = [n.target for n in graph_module(program).graph.nodes if n.op == "call_function"]
        assert targets[-1] is aten.hardtanh.default and aten.hardsigmoid.default not in targets
        with torch.no_grad():
            answer = _first(graph_module(program)(x))
            torch.testing.assert_close(answer, module(x), rtol=1e-5, atol=1e-6)


def test_a_hard_sigmoid_whose_layer_is_read_elsewhere_stays() -> None:
    program, plan, _ = prepared(lambda m, x: functional.hardsigmoid(y := m.a(x)) * y)
    targets = [n.target for n in graph_module(program).graph.nodes]
    assert aten.hardsigmoid.default in targets
    assert {"conv2d", "hardsigmoid"} <= set(plan.activations())


def test_a_hard_sigmoid_on_a_shared_weight_stays() -> None:
    class Twice(nn.Module):
        """One linear layer before and behind a hard-sigmoid."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(functional.hardsigmoid(self.layer(x)))
            return result

    torch.manual_seed(0)
    module, x = Twice().eval(), torch.randn(1, 4)
    program = canonical(torch.export.export(module, (x,), strict=False))
    assert aten.hardsigmoid.default in [n.target for n in graph_module(program).graph.nodes]
    torch.testing.assert_close(_first(graph_module(program)(x)), module(x))
