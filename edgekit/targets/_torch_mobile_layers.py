"""Layers with weights as QNNPACK takes them, and the graph that the rendering writes."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import torch
from torch import fx

from edgekit.compress._lean import absorbable_pads
from edgekit.compress._nodes import COMPUTE, LINEARS, aten, tensor_of, weight_of
from edgekit.compress.annotate import is_fused_activation
from edgekit.compress.plan import Edge, QuantPlan

__all__ = ["OFFSET", "Builder", "Layers", "base_name", "grid", "limits_of", "result_of"]

OFFSET = 128
"""What is added to the plan's zero points."""

_quantized = torch.ops.quantized


class Builder:
    """The graph that is written, with its constants."""

    def __init__(self) -> None:
        self.graph, self._root = fx.Graph(), torch.nn.Module()

    def emit(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of ``op``."""
        return self.graph.call_function(op, args, kwargs)

    def pad(self, given: fx.Node, sides: list[int], dims: int) -> fx.Node:
        """Zeros around a quantized tensor, of ``dims`` spatial axes.

        Kernels give pictures with their channels last, as which they are padded, if not at the
        model's input: the kernel for quantized tensors goes through the axes in their own order,
        and took 16.1 ms instead of 6.9 for 96 x 120 x 120 (a server's core; a copy takes 2).
        """
        pad = aten.constant_pad_nd.default
        fresh = given.target is aten.quantize_per_tensor.default
        if dims != 2 or len(sides) > 4 or fresh:
            return self.emit(pad, given, sides, 0.0)
        given = self.emit(aten.permute.default, given, [0, 2, 3, 1])
        given = self.emit(pad, given, [0, 0, *sides], 0.0)
        return self.emit(aten.permute.default, given, [0, 3, 1, 2])

    def clamp(self, given: fx.Node, low: float, high: float, dims: int) -> fx.Node:
        """A quantized tensor within limits, of ``dims`` axes.

        QNNPACK's kernel (torch 2.13) takes a picture with its channels last as it lies and says of
        what it gives that they come first. So its axes are moved, which moves no data.
        """
        clamp = aten.hardtanh.default
        if dims != 4:
            return self.emit(clamp, given, low, high)
        given = self.emit(aten.permute.default, given, [0, 2, 3, 1])
        given = self.emit(clamp, given, low, high)
        return self.emit(aten.permute.default, given, [0, 3, 1, 2])

    def attribute(self, name: str, value: Any) -> fx.Node:
        """A constant: a tensor, or packed weights."""
        while hasattr(self._root, name):
            name += "_"
        if isinstance(value, torch.Tensor):
            self._root.register_buffer(name, value)
        else:
            setattr(self._root, name, value)
        return self.graph.get_attr(name)

    def module(self) -> fx.GraphModule:
        """All of it."""
        self.graph.lint()
        return fx.GraphModule(self._root, self.graph, class_name="Model")


class Layers:
    """The layers of a canonical graph under a plan.

    Attributes:
        bare_pads: pads that give what they are given, since the convolutions behind them pad.
    """

    def __init__(self, module: fx.GraphModule, plan: QuantPlan, out: Builder) -> None:
        self._module, self._out = module, out
        self._constants, edges = plan.constants(), plan.activations()
        self.bare_pads = {
            pad
            for pad in absorbable_pads(module, edges)
            if all(str(u.args[1]) in self._constants and result_of(u, edges) for u in pad.users)
        }

    def prepared(self, node: fx.Node, given: fx.Node) -> tuple[str, Any, fx.Node]:
        """The kernel of a layer, its packed constants, and what it is given."""
        weight, bias = self.weight(node.args[1]), self.bias(node)
        if node.target in LINEARS:
            return "linear", _quantized.linear_prepack(weight, bias), given
        values: list[Any] = [[1], [0], [1], 1]
        values[: len(node.args[3:])] = node.args[3:]
        if node.target is aten.conv_transpose2d.input:
            return self._transposed(node, given)
        stride, padding, dilation, groups = values
        source = node.args[0]
        if source in self.bare_pads:
            padding, given = self._padding(source, padding, given)
        if node.target is aten.conv1d.default:
            packed = _quantized.conv1d_prepack(weight, bias, stride, padding, dilation, groups)
            return "conv1d", packed, given
        pairs = [_pair(v) for v in (stride, padding, dilation)]
        return "conv2d", _quantized.conv2d_prepack(weight, bias, *pairs, groups), given

    def _padding(self, pad: Any, padding: list[int], given: fx.Node) -> tuple[list[int], fx.Node]:
        """Zeros before a convolution as its own padding, if they are as many on both sides."""
        sides = list(pad.args[1])
        starts, ends = sides[0::2][::-1], sides[1::2][::-1]
        dims = pad.meta["val"].dim() - 2
        own = [*padding] * (dims // len(padding))
        if starts == ends and len(starts) == dims:
            return [a + b for a, b in zip(own, starts, strict=True)], given
        return own, self._out.pad(given, sides, dims)

    def _transposed(self, node: fx.Node, given: fx.Node) -> tuple[str, Any, fx.Node]:
        """A transposed convolution as a convolution with its kernel turned round.

        QNNPACK's own takes no scale for each channel. Zeros are put between the pixels where it has
        steps of more than one.
        """
        values: list[Any] = [[1], [0], [0], 1, [1]]
        values[: len(node.args[3:])] = node.args[3:]
        stride, padding, more, _, dilation = values[:5]
        stride, padding, more, dilation = map(_pair, (stride, padding, more, dilation))
        weight = weight_of(node)
        edge, value = self._constants[weight.name], tensor_of(self._module, weight)
        assert value is not None and isinstance(node.args[0], fx.Node)
        integers = edge.quantize(value.numpy()).swapaxes(0, 1)[..., ::-1, ::-1]
        reach = [d * (k - 1) for d, k in zip(dilation, integers.shape[2:], strict=True)]
        channels, height, width = node.args[0].meta["val"].shape[1:]
        shape = [1, channels, height, 1, width, 1]
        if stride != [1, 1]:
            given = self._out.emit(aten.reshape.default, given, shape)
            ends = [0, stride[1] - 1, 0, 0, 0, stride[0] - 1]
            given = self._out.emit(aten.constant_pad_nd.default, given, ends, 0.0)
            grown = [1, channels, height * stride[0], width * stride[1]]
            given = self._out.emit(aten.reshape.default, given, grown)
        # The zeros behind the last pixel count as part of what is padded there.
        ends = [
            r - p + m - (s - 1) for r, p, m, s in zip(reach, padding, more, stride, strict=True)
        ]
        starts = [r - p for r, p in zip(reach, padding, strict=True)]
        own = [0, 0]
        if starts == ends and min(starts) >= 0:
            own = starts
        else:
            sides = [starts[1], ends[1], starts[0], ends[0]]
            given = self._out.pad(given, sides, 2)
        packed = _quantized.conv2d_prepack(
            _per_channel(integers, edge.scale), self.bias(node), [1, 1], own, dilation, 1
        )
        return "conv2d", packed, given

    def weight(self, node: Any) -> torch.Tensor:
        value, edge = tensor_of(self._module, node), self._constants[node.name]
        assert value is not None
        return _per_channel(edge.quantize(value.numpy()), edge.scale, edge.axis or 0)

    def bias(self, node: fx.Node) -> torch.Tensor | None:
        bias = node.args[2] if len(node.args) > 2 else None
        value = tensor_of(self._module, bias)
        if value is None or not isinstance(bias, fx.Node):
            return None
        edge = self._constants.get(bias.name)
        return value.clone() if edge is None else torch.from_numpy(edge.round(value.numpy()))


def result_of(node: fx.Node, edges: Container[str]) -> fx.Node | None:
    """Where the output of an operator is quantized: itself, or the activation fused with it."""
    if node.name in edges:
        return node
    users = list(node.users)
    fuses = node.target in (*COMPUTE, aten.add.Tensor)
    if fuses and len(users) == 1 and is_fused_activation(users[0]) and users[0].name in edges:
        return users[0]
    return None


def grid(edge: Edge) -> tuple[float, int]:
    """An activation's scale and zero point, in the runtime's terms."""
    return float(np.float32(edge.scale[0])), edge.zero_point[0] + OFFSET


def limits_of(clamp: fx.Node) -> tuple[float, float]:
    """The low and high end of a ReLU or clamp."""
    if clamp.target is aten.relu.default:
        return 0.0, float("inf")
    low = clamp.args[1] if len(clamp.args) > 1 else -1.0
    high = clamp.args[2] if len(clamp.args) > 2 else 1.0
    return float(low), float(high)  # type: ignore[arg-type]


def base_name(node: fx.Node) -> str:
    """A constant's name as an attribute."""
    return str(node.target).replace(".", "_")


def _pair(values: list[int]) -> list[int]:
    return [*values] * (2 // len(values))


def _per_channel(
    integers: np.ndarray[Any, Any], scale: tuple[float, ...], axis: int = 0
) -> torch.Tensor:
    values = torch.from_numpy(np.ascontiguousarray(integers))
    scales = torch.tensor(scale, dtype=torch.float32).double()
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    return torch._make_per_channel_quantized_tensor(values, scales, zeros, axis)
