"""The program with torch's own layers in place of operators, for quantizers that look for modules.

Apple's quantizer, like all of torch's FX graph mode, finds what it quantizes by class
(`torch.nn.Conv2d`) and function (`torch.cat`). An exported program has operators instead. Operators
that no such quantizer knows, as reshapes and layer norm, stay as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from edgekit.compress.graph import LINEARS, graph_module, tensor_of

__all__ = ["layered"]

aten = torch.ops.aten

_FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.matmul.default: torch.matmul,
    aten.cat.default: torch.cat,
    aten.mean.dim: torch.mean,
    aten.flatten.using_ints: torch.flatten,
}

# From an operator's arguments after the first.
_MODULES: Mapping[Any, Callable[..., nn.Module]] = {
    aten.relu.default: nn.ReLU,
    aten.hardswish.default: nn.Hardswish,
    aten.hardsigmoid.default: nn.Hardsigmoid,
    aten.sigmoid.default: nn.Sigmoid,
    aten.silu.default: nn.SiLU,
    aten.mish.default: nn.Mish,
    aten.tanh.default: nn.Tanh,
    aten.gelu.default: nn.GELU,
    aten.leaky_relu.default: nn.LeakyReLU,
    aten.softmax.int: lambda dim, dtype=None: nn.Softmax(dim),
    aten.log_softmax.int: lambda dim, dtype=None: nn.LogSoftmax(dim),
    aten.adaptive_avg_pool2d.default: nn.AdaptiveAvgPool2d,
    aten.max_pool2d.default: lambda size, stride=None, padding=0, dilation=1, ceil=False: (
        nn.MaxPool2d(size, stride or None, padding, dilation, ceil_mode=ceil)
    ),
    aten.avg_pool2d.default: lambda size, stride=None, *rest: nn.AvgPool2d(
        size, stride or None, *rest
    ),
}

_CONVS: Mapping[Any, Callable[..., nn.Module]] = {
    aten.conv1d.default: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
}
_TRANSPOSED: Mapping[Any, Callable[..., nn.Module]] = {
    aten.conv_transpose1d.default: nn.ConvTranspose1d,
    aten.conv_transpose2d.input: nn.ConvTranspose2d,
    aten.conv_transpose3d.input: nn.ConvTranspose3d,
}


def layered(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """``program`` with layers for modules; same inputs and values (to float rounding).

    What the canonical form took apart is put together again, so that a quantizer meets what the
    model's author wrote: a product of ``x`` and ``sigmoid(x)`` is a SiLU, a layer with a clamp to
    0..1 behind it six times that layer with a hard-sigmoid, and a reshape to rows a flatten.

    Args:
        program: the canonical float program; its tensors may be shared with the result.

    Returns:
        A module that takes the program's inputs by position and gives its outputs as a flat tuple.
    """
    source = graph_module(program)
    graph = source.graph
    for node in list(graph.nodes):
        if node.op == "output":
            node.args = (tuple(v for v in tree_leaves(node.args) if isinstance(v, fx.Node)),)
        elif node.op == "call_function" and node.target in _REWRITES:
            _REWRITES[node.target](source, node)
        elif node.op == "call_function" and node.target in _FUNCTIONS and _is_float(node):
            if "alpha" not in node.kwargs:
                node.target = _FUNCTIONS[node.target]
        elif node.op == "call_function" and node.target in _MODULES:
            _put(source, node, _MODULES[node.target](*node.args[1:], **node.kwargs))
    graph.eliminate_dead_code()
    graph.set_codegen(fx.graph.CodeGen())
    return fx.GraphModule(source, graph)


def _put(source: fx.GraphModule, node: fx.Node, layer: nn.Module) -> None:
    """Has ``layer`` compute ``node`` from its first argument."""
    name = f"layer_{node.name}"
    source.add_submodule(name, layer)
    node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def _fill(layer: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    filled: nn.Module = layer
    return filled


def _layer(source: fx.GraphModule, node: fx.Node) -> None:
    """A convolution or linear layer, where its weights are constants."""
    weight = tensor_of(source, node.args[1])
    given = node.args[2] if len(node.args) > 2 else None
    bias = tensor_of(source, given)
    if weight is not None and (bias is None) == (given is None):
        _put(source, node, _fill(_empty(node, weight, bias is not None), weight, bias))


def _empty(node: fx.Node, weight: torch.Tensor, bias: bool) -> nn.Module:
    """The layer without its tensors; ``node`` has them as arguments 1 and 2."""
    rows, columns, size = weight.shape[0], weight.shape[1], weight.shape[2:]
    if node.target in LINEARS:
        return nn.Linear(columns, rows, bias, device="meta")
    if node.target in _CONVS:
        stride, padding, dilation, groups = _given(node, 3, (1, 0, 1, 1))
        first = (columns * groups, rows, size, stride, padding, dilation, groups, bias)
        return _CONVS[node.target](*first, device="meta")
    stride, padding, extra, groups, dilation = _given(node, 3, (1, 0, 0, 1, 1))
    given = (rows, columns * groups, size, stride, padding, extra, groups, bias, dilation)
    return _TRANSPOSED[node.target](*given, device="meta")


def _given(node: fx.Node, first: int, defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    """A node's arguments from number ``first`` on, those left out by default."""
    return (*node.args[first:], *defaults[len(node.args[first:]) :])


def _embedding(source: fx.GraphModule, node: fx.Node) -> None:
    """A table; what other arguments the operator has are for training."""
    table = tensor_of(source, node.args[0])
    if table is not None:
        node.args = (node.args[1],)
        _put(source, node, nn.Embedding.from_pretrained(table))


def _clamp(source: fx.GraphModule, node: fx.Node) -> None:
    """A clamp: ReLU6, what stands for a hard-sigmoid, or any other."""
    low, high = _given(node, 1, (-1.0, 1.0))
    if (low, high) == (0, 6):
        _put(source, node, nn.ReLU6())
        return
    before = node.args[0]
    assert isinstance(before, fx.Node)
    held = source.get_submodule(str(before.target)) if before.op == "call_module" else None
    computes = isinstance(held, nn.Linear | _ConvNd)
    if (low, high) != (0, 1) or len(before.users) > 1 or not computes:
        _put(source, node, nn.Hardtanh(low, high))
        return
    layer: Any = held
    bias = torch.zeros(_channels(layer)) if layer.bias is None else layer.bias.detach()
    weight = 6 * layer.weight.detach().double()
    _fill(layer, weight.float(), (6 * (bias.double() - 0.5)).float())
    _put(source, node, nn.Hardsigmoid())


def _channels(layer: Any) -> int:
    count: int = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return count


def _product(source: fx.GraphModule, node: fx.Node) -> None:
    """A product: of a value with its own sigmoid, or any other."""
    for value, gate in (node.args, node.args[::-1]):
        if not isinstance(gate, fx.Node) or not _is_sigmoid(source, gate):
            continue
        if gate.args[0] is value and len(gate.users) == 1:
            node.args = (value,)
            _put(source, node, nn.SiLU())
            return
    if _is_float(node):
        node.target = operator.mul


def _is_sigmoid(source: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(
        source.get_submodule(str(node.target)), nn.Sigmoid
    )


def _reshape(source: fx.GraphModule, node: fx.Node) -> None:
    """A reshape that keeps the first axis and makes one of the others is a flatten."""
    before = node.args[0]
    assert isinstance(before, fx.Node)
    old, new = before.meta["val"].shape, node.meta["val"].shape
    if _is_float(node) and len(new) == 2 < len(old) and new[0] == old[0]:
        node.target, node.args = torch.flatten, (before, 1)


_REWRITES: Mapping[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    **dict.fromkeys((*LINEARS, *_CONVS, *_TRANSPOSED), _layer),
    aten.embedding.default: _embedding,
    aten.hardtanh.default: _clamp,
    aten.mul.Tensor: _product,
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
}
