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

from edgekit.compress._nodes import (
    COMPUTE,
    LINEARS,
    MOVES,
    PASS_THROUGH,
    TABLES,
    aten,
    tensor_of,
    weight_of,
)
from edgekit.compress.graph import graph_module, program_digest
from edgekit.compress.picture import by_rows
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.errors import UnsupportedError, UsageError
from edgekit.targets._torch_mobile_layers import (
    Builder,
    Layers,
    base_name,
    grid,
    limits_of,
    result_of,
)

__all__ = ["lower"]

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
    module = copy.deepcopy(graph_module(program))
    by_rows(module, contiguous=False)  # QNNPACK takes channels last
    return _Lowering(module, plan).run()


class _Lowering:
    def __init__(self, module: fx.GraphModule, plan: QuantPlan) -> None:
        self._module = module
        self._acts, self._constants = plan.activations(), plan.constants()
        self._dynamic = {d.node for d in plan.dynamic}
        self._out = Builder()
        self._layers = Layers(module, plan, self._out)
        self._floats: dict[fx.Node, Any] = {}
        self._integers: dict[fx.Node, fx.Node] = {}
        self._done: set[fx.Node] = set()

    def run(self) -> fx.GraphModule:
        for node in self._module.graph.nodes:
            if node.op == "placeholder":
                self._floats[node] = self._out.graph.placeholder(str(node.target))
                self._settle(node)
            elif node.op == "output":
                results = fx.map_arg(node.args[0], self._float)
                self._out.graph.output(tuple(results) if isinstance(results, list) else results)
            elif node.op == "call_function" and node not in self._done:
                self._call(node)
        return self._out.module()

    # -- the two forms of a tensor ----------------------------------------------------------------

    def _float(self, node: fx.Node) -> Any:
        """``node`` in float, rounded where the plan rounds it."""
        if node not in self._floats:
            if node.op == "get_attr":
                self._floats[node] = self._constant(node)
            else:
                self._floats[node] = self._out.emit(aten.dequantize.self, self._integers[node])
        return self._floats[node]

    def _settle(self, node: fx.Node) -> None:
        """Quantizes a tensor that was made in float, where the plan does."""
        edge = self._acts.get(node.name)
        if edge is None:
            return
        source = self._floats.pop(node)
        self._integers[node] = self._out.emit(
            aten.quantize_per_tensor.default, source, *grid(edge), torch.quint8
        )

    def _constant(self, node: fx.Node) -> fx.Node:
        """A constant as float operators read it; stored as integers where the plan has them."""
        value, edge = tensor_of(self._module, node), self._constants.get(node.name)
        assert value is not None
        if edge is None or edge.kind == "bias":
            rounded = value if edge is None else torch.from_numpy(edge.round(value.numpy()))
            return self._out.attribute(
                base_name(node), rounded.clone(memory_format=torch.contiguous_format)
            )
        return self._out.emit(
            aten.dequantize.self, self._out.attribute(base_name(node), self._layers.weight(node))
        )

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
            self._floats[node] = self._out.emit(target, *args, **kwargs)
        self._settle(node)

    def _on_integers(self, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
        """The node whose result an integer kernel gives, and that result; None without a kernel."""
        result = result_of(node, self._acts)
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
        elif node in self._layers.bare_pads:
            value = self._integers[sources[0]]
        elif node.target in PASS_THROUGH:
            value = self._pass(node, edge)
        else:
            kernel = _KERNELS.get(node.target)
            value = None if kernel is None else kernel(self, node, edge)
        return None if value is None else (result, value)

    def _clamped(self, value: fx.Node, clamp: fx.Node | None, edge: Edge, low: bool) -> fx.Node:
        """``value`` within a clamp's limits, unless the integers end there by themselves.

        ``low`` says whether the kernel that made it left out what is below zero.
        """
        if clamp is None:
            return value
        limits = limits_of(clamp)
        below, above = edge.quantize(np.array(limits))
        low = low or below == edge.quant_min
        if low and above == edge.quant_max:
            return value
        if limits == (0.0, float("inf")):
            return self._out.emit(aten.relu.default, value)
        return self._out.clamp(value, *limits, clamp.meta["val"].dim())

    # -- layers -----------------------------------------------------------------------------------

    def _layer(self, node: fx.Node, edge: Edge, clamp: fx.Node | None) -> fx.Node | None:
        source, weight = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
        if weight.name not in self._constants:
            return None
        relu = (
            clamp is not None and limits_of(clamp)[0] == 0 and edge.zero_point[0] > edge.quant_min
        )
        kind, packed, given = self._layers.prepared(node, self._integers[source])
        op = getattr(_quantized, f"{kind}_relu" if relu else kind)
        op = op.new if kind == "conv2d" else op.default
        value = self._out.emit(
            op, given, self._out.attribute(f"{base_name(weight)}_packed", packed), *grid(edge)
        )
        return self._clamped(value, clamp, edge, relu)

    def _dynamic_linear(self, node: fx.Node) -> fx.Node:
        source, weight = node.args[0], weight_of(node)
        assert isinstance(source, fx.Node)
        packed = _quantized.linear_prepack(self._layers.weight(weight), self._layers.bias(node))
        given = self._out.attribute(f"{base_name(weight)}_packed", packed)
        return self._out.emit(_quantized.linear_dynamic.default, self._float(source), given)

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
        base = base_name(table)
        found = [
            self._out.emit(
                aten.embedding.default, self._out.attribute(f"{base}_{what}", part), where
            )
            for what, part in (("int8", integers), ("scale", scales))
        ]
        rows = self._out.emit(aten.to.dtype, found[0], torch.float32)
        return self._out.emit(aten.mul.Tensor, rows, found[1])

    # -- kernels without weights ------------------------------------------------------------------

    def _add(self, node: fx.Node, edge: Edge, clamp: fx.Node | None) -> fx.Node | None:
        if len(node.args) != 2 or node.kwargs:
            return None
        sources = [n for n in node.args if isinstance(n, fx.Node)]
        factors = [self._acts[n.name].scale[0] / edge.scale[0] for n in sources]
        if len(sources) != 2 or not all(_LEAST <= f < _MOST for f in factors):
            return None
        relu = (
            clamp is not None and limits_of(clamp)[0] == 0 and edge.zero_point[0] > edge.quant_min
        )
        op = _quantized.add_relu.default if relu else _quantized.add.default
        value = self._out.emit(op, *(self._integers[n] for n in sources), *grid(edge))
        return self._clamped(value, clamp, edge, relu)

    def _multiply(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        sources = [n for n in node.args if isinstance(n, fx.Node)]
        if len(sources) != 2:
            return None
        return self._out.emit(
            _quantized.mul.default, *(self._integers[n] for n in sources), *grid(edge)
        )

    def _concatenate(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        inputs = node.args[0]
        assert isinstance(inputs, list | tuple)
        axis = node.args[1] if len(node.args) > 1 else 0
        if not all(isinstance(n, fx.Node) and n in self._integers for n in inputs):
            return None
        given = [self._integers[n] for n in inputs if isinstance(n, fx.Node)]
        return self._out.emit(_quantized.cat.default, given, axis, *grid(edge))

    def _hard_swish(self, node: fx.Node, edge: Edge) -> fx.Node:
        return self._out.emit(_quantized.hardswish.default, self._source(node), *grid(edge))

    def _sigmoid(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        if grid(edge) != _PROBABILITY:
            return None
        return self._out.emit(_quantized.sigmoid.default, self._source(node), *grid(edge))

    def _hard_sigmoid(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        if grid(edge) != _PROBABILITY:
            return None
        return self._out.emit(aten.hardsigmoid.default, self._source(node))

    def _clamp(self, node: fx.Node, edge: Edge) -> fx.Node:
        """A clamp by itself, on the integers of its result: rounding keeps their order."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        value = self._integers[source]
        if grid(self._acts[source.name]) != grid(edge):
            value = self._out.emit(
                aten.quantize_per_tensor.default, self._float(source), *grid(edge), torch.quint8
            )
        return self._clamped(value, node, edge, low=False)

    def _pass(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if grid(self._acts[source.name]) != grid(edge) or not _pools_as_asked(node):
            return None
        if node.target is aten.constant_pad_nd.default:
            sides: Any = node.args[1]
            return self._out.pad(self._integers[source], [*sides], node.meta["val"].dim() - 2)
        target = aten.reshape.default if node.target is aten.view.default else node.target
        return self._out.emit(target, self._integers[source], *node.args[1:], **node.kwargs)

    def _pool(self, node: fx.Node, edge: Edge) -> fx.Node | None:
        """Global pooling, whose kernel on integers gives no scale but its input's.

        As a product with ones it takes any, but that moves the picture first: 70 us for 1280 x 7 x
        7 on a server's core, where pooling in float took 16. So only the model's last one, which it
        runs once, is done so; those of squeeze-and-excite blocks are many.
        """
        source, value = self._source(node), node.meta["val"]
        before = node.args[0]
        assert isinstance(before, fx.Node)
        if grid(self._acts[before.name]) == grid(edge):
            return self._out.emit(aten.adaptive_avg_pool2d.default, source, node.args[1])
        if list(value.shape[2:]) != [1, 1]:
            return None
        channels, height, width = before.meta["val"].shape[-3:]
        if height * width > 1 and _is_last(node):
            ones = torch.ones(1, height * width, dtype=torch.int8)
            mean = torch._make_per_tensor_quantized_tensor(ones, 1 / (height * width), 0)
            packed = self._out.attribute(f"{node.name}_ones", _quantized.linear_prepack(mean, None))
            rows = self._out.emit(aten.reshape.default, source, [channels, height * width])
            sums = self._out.emit(_quantized.linear.default, rows, packed, *grid(edge))
            return self._out.emit(aten.reshape.default, sums, list(value.shape))
        pooled = self._float(before)
        if height * width > 1:
            pooled = self._out.emit(aten.avg_pool2d.default, pooled, [height, width])
        return self._out.emit(aten.quantize_per_tensor.default, pooled, *grid(edge), torch.quint8)

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
