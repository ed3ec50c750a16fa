"""A canonical program and its plan, as a graph of the operators that torch's QNNPACK kernels have.

Activations are ``quint8``: the plan's int8 with the zero point moved by 128, which stands for the
very same values. A tensor is kept in the form, integers or float, that it was made in; the other
one is made of it where something reads that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from edgekit.compress._lean import absorbable_pads
from edgekit.compress._nodes import (
    COMPUTE,
    LINEARS,
    MOVES,
    PASS_THROUGH,
    TABLES,
    aten,
    tensor_of,
)
from edgekit.compress.annotate import is_fused_activation
from edgekit.compress.graph import graph_module, program_digest
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.errors import UnsupportedError, UsageError

__all__ = ["OFFSET", "lower"]

OFFSET = 128
"""What is added to the plan's zero points."""

_LEAST, _MOST = 2.0**-14, 2.0**8
"""QNNPACK adds tensors whose scales are within these factors of the result's."""

_PROBABILITY = (1.0 / 256, 0)
"""The scale and zero point that QNNPACK's sigmoid and hard-sigmoid give."""

_quantized = torch.ops.quantized


def lower(program: torch.export.ExportedProgram, plan: QuantPlan) -> fx.GraphModule:
    """Renders ``plan`` onto ``program``.

    Args:
        program: the canonical program.
        plan: its quantization, with this runtime's arithmetic (`edgekit.compress.dynamic`).

    Returns:
        A module with float inputs and outputs.

    Raises:
        UsageError: the plan was made from another program.
        UnsupportedError: an operator that builds for phones can't be relied on to have.
    """
    if plan.program_digest != program_digest(program):
        raise UsageError(
            "this plan was made from another program",
            hint="quantize again, or give the program the plan was made from",
        )
    return _Lowering(copy.deepcopy(graph_module(program)), plan).run()


class _Lowering:
    def __init__(self, module: fx.GraphModule, plan: QuantPlan) -> None:
        self._module = module
        self._acts, self._constants = plan.activations(), plan.constants()
        self._dynamic = {d.node for d in plan.dynamic}
        self._bare_pads = absorbable_pads(module, self._acts)
        self._graph, self._root = fx.Graph(), torch.nn.Module()
        self._floats: dict[fx.Node, Any] = {}
        self._integers: dict[fx.Node, fx.Node] = {}
        self._done: set[fx.Node] = set()

    def run(self) -> fx.GraphModule:
        for node in self._module.graph.nodes:
            if node.op == "placeholder":
                self._floats[node] = self._graph.placeholder(str(node.target))
                self._settle(node)
            elif node.op == "output":
                results = fx.map_arg(node.args[0], self._float)
                self._graph.output(tuple(results) if isinstance(results, list) else results)
            elif node.op == "call_function" and node not in self._done:
                self._call(node)
        self._graph.lint()
        return fx.GraphModule(self._root, self._graph, class_name="Model")

    # -- the two forms of a tensor ----------------------------------------------------------------

    def _float(self, node: fx.Node) -> Any:
        """``node`` in float, rounded where the plan rounds it."""
        if node not in self._floats:
            if node.op == "get_attr":
                self._floats[node] = self._constant(node)
            else:
                self._floats[node] = self._emit(aten.dequantize.self, self._integers[node])
        return self._floats[node]

    def _settle(self, node: fx.Node) -> None:
        """Quantizes a tensor that was made in float, where the plan does."""
        edge = self._acts.get(node.name)
        if edge is None:
            return
        source = self._floats.pop(node)
        self._integers[node] = self._emit(
            aten.quantize_per_tensor.default, source, *_grid(edge), torch.quint8
        )

    def _constant(self, node: fx.Node) -> fx.Node:
        """A constant as float operators read it; stored as integers where the plan has them."""
        value, edge = tensor_of(self._module, node), self._constants.get(node.name)
        assert value is not None
        if edge is None or edge.kind == "bias":
            rounded = value if edge is None else torch.from_numpy(edge.round(value.numpy()))
            return self._attribute(node, rounded.clone(memory_format=torch.contiguous_format))
        return self._emit(aten.dequantize.self, self._attribute(node, self._weight(node)))

    def _attribute(self, node: fx.Node | str, value: Any) -> fx.Node:
        name = node if isinstance(node, str) else str(node.target).replace(".", "_")
        while hasattr(self._root, name):
            name += "_"
        if isinstance(value, torch.Tensor):
            self._root.register_buffer(name, value)
        else:
            setattr(self._root, name, value)
        return self._graph.get_attr(name)

    def _emit(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self._graph.call_function(op, args, kwargs)

    # -- operators --------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> None:
        made = self._on_integers(node)
        if made is not None:
            result, value = made
            self._integers[result] = value
            self._done.add(result)
            return
        if node.target in TABLES and self._is_table(node):
            self._floats[node] = self._rows(node)
        elif node.name in self._dynamic:
            self._floats[node] = self._dynamic_linear(node)
        else:
            _refuse_unknown(node)
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._float)
            target = aten.reshape.default if node.target is aten.view.default else node.target
            self._floats[node] = self._emit(target, *args, **kwargs)
        self._settle(node)

    def _on_integers(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """The node whose result an integer kernel gives, and that result; None without a kernel."""
        result = self._result(node)
        sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if node.target in COMPUTE:
            sources = sources[:1]
        if result is None or not sources or any(n not in self._integers for n in sources):
            return None
        edge, clamp = self._acts[result.name], None if result is node else result
        if node.target in COMPUTE:
            value = self._layer(node, edge, clamp)
        elif node.target is aten.add.Tensor:
            value = self._add(node, edge, clamp)
        elif node in self._bare_pads:
            value = self._integers[sources[0]]
        elif node.target in PASS_THROUGH:
            value = self._pass(node, edge)
        else:
            kernel = _KERNELS.get(node.target)
            value = None if kernel is None else kernel(self, node, edge)
        return None if value is None else (result, value)

    def _result(self, node: fx.Node) -> fx.Node | None:
        """Where the output of an operator is quantized: itself, or the activation fused with it."""
        if node.name in self._acts:
            return node
        users = list(node.users)
        fuses = node.target in (*COMPUTE, aten.add.Tensor)
        if fuses and len(users) == 1 and is_fused_activation(users[0]):
            return users[0] if users[0].name in self._acts else None
        return None

    def _clamped(self, value: fx.Node, clamp: fx.Node | None, edge: Edge, low: bool) -> fx.Node:
        """``value`` within a clamp's limits, unless the integers end there by themselves.

        ``low`` says whether the kernel that made it left out what is below zero.
        """
        if clamp is None:
            return value
        limits = _limits(clamp)
        below, above = edge.quantize(np.array(limits))
        low = low or below == edge.quant_min
        if low and above == edge.quant_max:
            return value
        if limits == (0.0, float("inf")):
            return self._emit(aten.relu.default, value)
        return self._emit(aten.hardtanh.default, value, *limits)

    # -- layers -----------------------------------------------------------------------------------

    def _layer(self, node: fx.Node, edge: Edge, clamp: fx.Node | None) -> fx.Node | None:
        source, weight = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
        if weight.name not in self._constants:
            return None
        relu = clamp is not None and _limits(clamp)[0] == 0 and edge.zero_point[0] > edge.quant_min
        kind, packed, given = self._prepared(node, self._integers[source])
        op = getattr(_quantized, f"{kind}_relu" if relu else kind)
        op = op.new if kind == "conv2d" else op.default
        value = self._emit(
            op, given, self._attribute(f"{_base(weight)}_packed", packed), *_grid(edge)
        )
        return self._clamped(value, clamp, edge, relu)

    def _prepared(self, node: fx.Node, given: fx.Node) -> tuple[str, Any, fx.Node]:
        """The kernel of a layer, its packed constants, and what it is given."""
        weight, bias = self._weight(node.args[1]), self._bias(node)
        if node.target in LINEARS:
            return "linear", _quantized.linear_prepack(weight, bias), given
        values: list[Any] = [[1], [0], [1], 1]
        values[: len(node.args[3:])] = node.args[3:]
        if node.target is aten.conv_transpose2d.input:
            return self._transposed(node, given)
        stride, padding, dilation, groups = values
        source = node.args[0]
        if source in self._bare_pads:
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
        return own, self._emit(aten.constant_pad_nd.default, given, sides, 0.0)

    def _transposed(self, node: fx.Node, given: fx.Node) -> tuple[str, Any, fx.Node]:
        """A transposed convolution as a convolution with its kernel turned round.

        QNNPACK's own takes no scale for each channel. Zeros are put between the pixels where it has
        steps of more than one.
        """
        values: list[Any] = [[1], [0], [0], 1, [1]]
        values[: len(node.args[3:])] = node.args[3:]
        stride, padding, more, _, dilation = values[:5]
        stride, padding, more, dilation = map(_pair, (stride, padding, more, dilation))
        weight = node.args[1]
        edge, value = self._constants[weight.name], tensor_of(self._module, weight)
        assert value is not None and isinstance(node.args[0], fx.Node)
        integers = edge.quantize(value.numpy()).swapaxes(0, 1)[..., ::-1, ::-1]
        reach = [d * (k - 1) for d, k in zip(dilation, integers.shape[2:], strict=True)]
        channels, height, width = node.args[0].meta["val"].shape[1:]
        shape = [1, channels, height, 1, width, 1]
        if stride != [1, 1]:
            given = self._emit(aten.reshape.default, given, shape)
            ends = [0, stride[1] - 1, 0, 0, 0, stride[0] - 1]
            given = self._emit(aten.constant_pad_nd.default, given, ends, 0.0)
            grown = [1, channels, height * stride[0], width * stride[1]]
            given = self._emit(aten.reshape.default, given, grown)
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
            given = self._emit(aten.constant_pad_nd.default, given, sides, 0.0)
        packed = _quantized.conv2d_prepack(
            _per_channel(integers, edge.scale), self._bias(node), [1, 1], own, dilation, 1
        )
        return "conv2d", packed, given

    def _weight(self, node: Any) -> torch.Tensor:
        value, edge = tensor_of(self._module, node), self._constants[node.name]
        assert value is not None
        return _per_channel(edge.quantize(value.numpy()), edge.scale, edge.axis or 0)

    def _bias(self, node: fx.Node) -> torch.Tensor | None:
        bias = node.args[2] if len(node.args) > 2 else None
        value = tensor_of(self._module, bias)
        if value is None or not isinstance(bias, fx.Node):
            return None
        edge = self._constants.get(bias.name)
        return value.clone() if edge is None else torch.from_numpy(edge.round(value.numpy()))

    def _dynamic_linear(self, node: fx.Node) -> fx.Node:
        source, weight = node.args[0], node.args[1]
        assert isinstance(source, fx.Node)
        packed = _quantized.linear_prepack(self._weight(weight), self._bias(node))
        given = self._attribute(f"{_base(weight)}_packed", packed)
        return self._emit(_quantized.linear_dynamic.default, self._float(source), given)

    def _is_table(self, node: fx.Node) -> bool:
        table = node.args[0]
        return isinstance(table, fx.Node) and table.name in self._constants

    def _rows(self, node: fx.Node) -> fx.Node:
        """Rows of an int8 table by the scale of each."""
        table, ids = node.args[:2]
        assert isinstance(table, fx.Node) and isinstance(ids, fx.Node)
        value, edge = tensor_of(self._module, table), self._constants[table.name]
        assert value is not None
        integers = torch.from_numpy(edge.quantize(value.numpy()))
        scales = torch.tensor(edge.scale, dtype=torch.float32)[:, None]
        where = self._float(ids)
        base = _base(table)
        found = [
            self._emit(aten.embedding.default, self._attribute(f"{base}_{what}", part), where)
            for what, part in (("int8", integers), ("scale", scales))
        ]
        rows = self._emit(aten.to.dtype, found[0], torch.float32)
        return self._emit(aten.mul.Tensor, rows, found[1])

    # -- kernels without weights ------------------------------------------------------------------

    def _add(self, node: fx.Node, edge: Edge, clamp: fx.Node | None) -> fx.Node | None:
        if len(node.args) != 2 or node.kwargs:
            return None
        sources = [n for n in node.args if isinstance(n, fx.Node)]
        factors = [self._acts[n.name].scale[0] / edge.scale[0] for n in sources]
        if len(sources) != 2 or not all(_LEAST <= f < _MOST for f in factors):
            return None
        relu = clamp is not None and _limits(clamp)[0] == 0 and edge.zero_point[0] > edge.quant_min
        op = _quantized.add_relu.default if relu else _quantized.add.default
        value = self._emit(op, *(self._integers[n] for n in sources), *_grid(edge))
        return self._clamped(value, clamp, edge, relu)

    def _multiply(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        sources = [n for n in node.args if isinstance(n, fx.Node)]
        if len(sources) != 2:
            return None
        return self._emit(
            _quantized.mul.default, *(self._integers[n] for n in sources), *_grid(edge)
        )

    def _concatenate(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        inputs = node.args[0]
        assert isinstance(inputs, list | tuple)
        axis = node.args[1] if len(node.args) > 1 else 0
        if not all(isinstance(n, fx.Node) and n in self._integers for n in inputs):
            return None
        given = [self._integers[n] for n in inputs if isinstance(n, fx.Node)]
        return self._emit(_quantized.cat.default, given, axis, *_grid(edge))

    def _hard_swish(self, node: fx.Node, edge: Edge) -> fx.Node:
        return self._emit(_quantized.hardswish.default, self._source(node), *_grid(edge))

    def _sigmoid(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        if _grid(edge) != _PROBABILITY:
            return None
        return self._emit(_quantized.sigmoid.default, self._source(node), *_grid(edge))

    def _hard_sigmoid(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        if _grid(edge) != _PROBABILITY:
            return None
        return self._emit(aten.hardsigmoid.default, self._source(node))

    def _clamp(self, node: fx.Node, edge: Edge) -> fx.Node:
        """A clamp by itself, on the integers of its result: rounding keeps their order."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        value = self._integers[source]
        if _grid(self._acts[source.name]) != _grid(edge):
            value = self._emit(
                aten.quantize_per_tensor.default, self._float(source), *_grid(edge), torch.quint8
            )
        return self._clamped(value, node, edge, low=False)

    def _pass(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if _grid(self._acts[source.name]) != _grid(edge) or not _pools_as_asked(node):
            return None
        target = aten.reshape.default if node.target is aten.view.default else node.target
        return self._emit(target, self._integers[source], *node.args[1:], **node.kwargs)

    def _pool(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        """Global pooling, whose kernel on integers gives no scale but its input's.

        As a product with ones it takes any, but that moves the picture first: 70 us for 1280 x 7 x
        7 on a server's core, where pooling in float took 16. So only the model's last one, which it
        runs once, is done so; those of squeeze-and-excite blocks are many.
        """
        source, value = self._source(node), node.meta["val"]
        before = node.args[0]
        assert isinstance(before, fx.Node)
        if _grid(self._acts[before.name]) == _grid(edge):
            return self._emit(aten.adaptive_avg_pool2d.default, source, node.args[1])
        if list(value.shape[2:]) != [1, 1]:
            return None
        channels, height, width = before.meta["val"].shape[-3:]
        if height * width > 1 and _is_last(node):
            ones = torch.ones(1, height * width, dtype=torch.int8)
            mean = torch._make_per_tensor_quantized_tensor(ones, 1 / (height * width), 0)
            packed = self._attribute(f"{node.name}_ones", _quantized.linear_prepack(mean, None))
            rows = self._emit(aten.reshape.default, source, [channels, height * width])
            sums = self._emit(_quantized.linear.default, rows, packed, *_grid(edge))
            return self._emit(aten.reshape.default, sums, list(value.shape))
        pooled = self._float(before)
        if height * width > 1:
            pooled = self._emit(aten.avg_pool2d.default, pooled, [height, width])
        return self._emit(aten.quantize_per_tensor.default, pooled, *_grid(edge), torch.quint8)

    def _source(self, node: fx.Node) -> fx.Node:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return self._integers[source]


_KERNELS: Mapping[Any, Callable[[_Lowering, fx.Node, Edge], fx.Node | None]] = {
    aten.mul.Tensor: _Lowering._multiply,
    aten.cat.default: _Lowering._concatenate,
    aten.hardswish.default: _Lowering._hard_swish,
    aten.sigmoid.default: _Lowering._sigmoid,
    aten.hardsigmoid.default: _Lowering._hard_sigmoid,
    aten.adaptive_avg_pool2d.default: _Lowering._pool,
    aten.relu.default: _Lowering._clamp,
    aten.hardtanh.default: _Lowering._clamp,
}


def _grid(edge: Edge) -> tuple[float, int]:
    """An activation's scale and zero point, in the runtime's terms."""
    return float(np.float32(edge.scale[0])), edge.zero_point[0] + OFFSET


def _limits(clamp: fx.Node) -> tuple[float, float]:
    if clamp.target is aten.relu.default:
        return 0.0, float("inf")
    low = clamp.args[1] if len(clamp.args) > 1 else -1.0
    high = clamp.args[2] if len(clamp.args) > 2 else 1.0
    return float(low), float(high)  # type: ignore[arg-type]


def _pair(values: list[int]) -> list[int]:
    return [*values] * (2 // len(values))


def _base(node: fx.Node) -> str:
    return str(node.target).replace(".", "_")


def _per_channel(
    integers: np.ndarray[Any, Any], scale: tuple[float, ...], axis: int = 0
) -> torch.Tensor:
    values = torch.from_numpy(np.ascontiguousarray(integers))
    scales = torch.tensor(scale, dtype=torch.float32).double()
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    return torch._make_per_channel_quantized_tensor(values, scales, zeros, axis)


def _pools_as_asked(node: fx.Node) -> bool:
    """Whether the kernel on integers does what a pooling operator asks for; True for others."""
    values: list[Any] = [None, None, [], [0], False, True, None]
    values[: len(node.args)] = node.args
    _, kernel, _, padding, ceil, _, divisor = values
    if node.target is aten.avg_pool2d.default:
        return not ceil and divisor is None and not any(padding) and set(kernel) != {1}
    return node.target is not aten.max_pool2d.default or set(kernel) != {1}


def _is_last(node: fx.Node) -> bool:
    """Whether nothing but linear layers and the model's results read a tensor."""
    return all(
        user.op == "output" or user.target in LINEARS or (user.target in MOVES and _is_last(user))
        for user in node.users
    )


def _refuse_unknown(node: fx.Node) -> None:
    """Refuses operators outside of Core ATen and what is made of it.

    The runtime of this machine has them all; a build for phones may not.
    """
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):  # an item of a tuple, say
        return
    known = torch.Tag.core in target.tags or target in _decomposed()
    if (
        known
        or target in _ALSO
        or target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    ):
        return
    raise UnsupportedError(
        f"torch-mobile: {target} is no operator of Core ATen, and a phone's build may lack it",
        hint="replace the operator in the model, or leave this target out with --target",
    )


_ALSO = (aten.adaptive_max_pool2d.default, aten.linalg_vector_norm.default)


def _decomposed() -> Mapping[Any, Any]:
    from torch._decomp import core_aten_decompositions

    return core_aten_decompositions()
