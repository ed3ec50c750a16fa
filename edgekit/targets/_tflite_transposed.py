"""Transposed convolutions in ``.tflite`` files, before conversion and after it.

The converter (litert-torch 0.10) takes few of them, and gives none an integer form:

- It refuses most that cut their borders off, and fills ``output_padding`` with zeros instead of
  what the layer computes there. `prepare` writes these whole, and cuts behind them. One with a
  stride of 1 is a convolution whose kernel is turned round, and is written as that.
- It folds the dequantized weight of the others into a float constant. `store_weights` puts the
  plan's integers there again, and `compute_on_integers` takes the conversions around a layer away:
  ``TRANSPOSE_CONV`` takes int8 weights with a scale for each output channel, between int8 (XNNPACK)
  or int16 (a kernel of LiteRT itself). What stands between anything but conversions stays in float,
  behind a ``DEQUANTIZE`` of its weight, which XNNPACK computes once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress._nodes import add_constant, aten, groups, tensor_of
from edgekit.targets._tflite_file import (
    add_float,
    constant,
    drop_unread,
    dtype_name,
    op_name,
    operator,
    schema,
    set_buffer,
)

if TYPE_CHECKING:
    from torch import fx

    from edgekit.targets._weights import Weights

_KIND = "TRANSPOSE_CONV"
_WEIGHT, _SOURCE, _BIAS = 1, 2, 3
"""Places among the inputs of a ``TRANSPOSE_CONV``; the shape of its result comes first."""
_CLAMPS = (aten.relu.default, aten.hardtanh.default)
_LIMITS = {
    "NONE": (-np.inf, np.inf),
    "RELU": (0.0, np.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
    "RELU_0_TO_1": (0.0, 1.0),
}
_VERSIONS = {_KIND: (4, 4), "SLICE": (2, 4), "STRIDED_SLICE": (2, 4)}
"""The first version of an operator that takes int8, and int16."""


def prepare(module: fx.GraphModule) -> None:
    """Writes transposed convolutions as the converter can take them, in place.

    Args:
        module: `edgekit.compress.render.render` in the form ``qdq``.
    """
    for node in list(module.graph.nodes):
        if node.target is not aten.conv_transpose2d.input or len(node.meta["val"].shape) != 4:
            continue
        path = _path(module, node.args[1])
        if not path:
            continue
        stride, padding, more, dilation = (_pair(node, place, of) for place, of in _ARGUMENTS)
        kernel = [int(n) for n in path[-1].meta["val"].shape[2:]]
        if stride == [1, 1] and not any(more) and groups(node) == 1:
            ends = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
            if min(ends) >= 0:
                source, bias = node.args[0], (*node.args, None)[2]
                node.target = aten.conv2d.default
                node.args = (source, _turned(module, path), bias, [1, 1], ends, dilation)
        elif dilation == [1, 1] and any(padding + more):
            whole = [k - 2 * p == s for k, p, s in zip(kernel, padding, stride, strict=True)]
            if any(more) or not all(whole):
                _cut_behind(module, node, stride, padding, more)
    module.graph.eliminate_dead_code()
    module.recompile()


_ARGUMENTS = ((3, 1), (4, 0), (5, 0), (7, 1))
"""Places of stride, padding, output padding and dilation, and what they are by themselves."""


def _pair(node: fx.Node, place: int, default: int) -> list[int]:
    value: Any = node.args[place] if len(node.args) > place else default
    both: list[int] = np.broadcast_to(np.ravel(value), 2).tolist()
    return both


def _path(module: fx.GraphModule, weight: Any) -> list[fx.Node]:
    """The nodes from a weight back to its constant; none where it is computed."""
    path = [weight]
    while "quantize_per_channel" in str(path[-1].target):
        path.append(path[-1].args[0])
    return path if tensor_of(module, path[-1]) is not None else []


def _turned(module: fx.GraphModule, path: list[fx.Node]) -> fx.Node:
    """The weight [in, out, H, W] of a transposed convolution as that of a convolution."""
    *steps, source = path
    value = tensor_of(module, source)
    assert value is not None
    name = f"{source.name}_turned"
    if not hasattr(module, name):
        turned = value.transpose(0, 1).flip(2, 3).contiguous()
        last = add_constant(module, name, turned, steps[-1] if steps else source)
    else:
        with module.graph.inserting_before(steps[-1] if steps else source):
            last = module.graph.get_attr(name)
    for step in reversed(steps):
        with module.graph.inserting_before(step):
            args = (last, *step.args[1:3], 0, *step.args[4:])
            last = module.graph.call_function(step.target, args)  # type: ignore[arg-type]
    return last


def _cut_behind(
    module: fx.GraphModule,
    node: fx.Node,
    stride: list[int],
    padding: list[int],
    more: list[int],
) -> None:
    """Lets a layer compute its borders too, and cuts them off behind it and its clamp."""
    rest = [p - m for p, m in zip(padding, more, strict=True)]
    if min(rest) < 0:
        _lengthen(module, node, [n < 0 for n in rest])
        rest = [n + s if n < 0 else n for n, s in zip(rest, stride, strict=True)]
    node.args = (*node.args[:4], [0, 0], [0, 0], *node.args[6:])
    last = node
    if len(node.users) == 1 and next(iter(node.users)).target in _CLAMPS:
        last = next(iter(node.users))
    readers = list(last.users)
    # Zeros put in front and behind, a number below none: one operator for both axes.
    ends = [e for start, end in zip(padding, rest, strict=True) for e in (-start, -end)]
    with module.graph.inserting_after(last):
        args = (last, [*ends[2:], *ends[:2]])
        cut = module.graph.call_function(aten.constant_pad_nd.default, args)
    cut.meta = {k: v for k, v in node.meta.items() if k != "val"}
    for reader in readers:
        reader.replace_input_with(last, cut)


def _lengthen(module: fx.GraphModule, node: fx.Node, axes: list[bool]) -> None:
    """Puts a zero behind what a layer reads, so that its result is longer by a stride."""
    source: Any = node.args[0]
    ends = [0, int(axes[1]), 0, int(axes[0])]
    graph, last = module.graph, source
    with graph.inserting_before(node):
        last = graph.call_function(aten.constant_pad_nd.default, (source, ends))
        last.meta = {k: v for k, v in source.meta.items() if k != "val"}
        if "dequantize" in str(source.target):
            for step in (source.all_input_nodes[0], source):
                last = graph.call_function(step.target, (last, *step.args[1:]))
    node.args = (last, *node.args[1:])


def store_weights(model: Any, weights: Weights) -> None:
    """Gives transposed convolutions the plan's integers as weights, in place of floats.

    A file is only whole after `compute_on_integers` or `edgekit.targets._tflite_weights.place`.

    Args:
        model: as `edgekit.targets._tflite_file.read` gives it.
        weights: those of the plan that was converted, by their float values.
    """
    graph, done = model.subgraphs[0], dict[int, int]()
    for op in _layers(model):
        index = int(op.inputs[_WEIGHT])
        tensor = graph.tensors[index]
        value = constant(model, tensor)
        if index not in done and value is not None and value.dtype == np.float32:
            found = weights.find(value)
            if found is None or found.scale is None or found.scale.shape != (len(value), 1, 1, 1):
                continue
            name = bytes(tensor.name) + b"_int8"
            done[index] = _add(model, name, found.stored, found.scale.reshape(-1))
        _read(op, _WEIGHT, done.get(index, index))
    drop_unread(model)


def compute_on_integers(model: Any) -> None:
    """Takes the conversions around transposed convolutions away, in place.

    Those whose weights are integers and that can't do without them get theirs by ``DEQUANTIZE``.
    """
    graph, operators = model.subgraphs[0], []
    chains = _Chains(model)
    for op in graph.operators:
        if op_name(model, op) == _KIND and not _join(model, op, chains):
            index = int(op.inputs[_WEIGHT])
            if dtype_name(graph.tensors[index]) == "int8":
                _read(op, _WEIGHT, add_float(graph, graph.tensors[index], b"_float"))
                operators.append(operator(model, "DEQUANTIZE", [index], [op.inputs[_WEIGHT]]))
        operators.append(op)
    graph.operators = operators
    drop_unread(model)


class _Chains:
    """Which operator makes a tensor of the main subgraph, and which read it."""

    def __init__(self, model: Any) -> None:
        self._model, graph = model, model.subgraphs[0]
        self._maker = {int(i): op for op in graph.operators for i in op.outputs}
        self._results = {int(i) for i in graph.outputs}
        self._readers: dict[int, list[Any]] = {}
        for op in graph.operators:
            for index in op.inputs:
                self._readers.setdefault(int(index), []).append(op)

    def before(self, index: int) -> Any:
        """The operator that makes a tensor, or None."""
        return self._maker.get(int(index))

    def behind(self, op: Any) -> list[tuple[str, Any]]:
        """The operators behind ``op`` up to a ``QUANTIZE``; none where others read in between."""
        found: list[tuple[str, Any]] = []
        while not found or found[-1][0] != "QUANTIZE":
            index = int(op.outputs[0])
            readers = self._readers.get(index, [])
            if len(readers) != 1 or index in self._results:
                return []
            op = readers[0]
            kind = op_name(self._model, op)
            if kind not in (*_LIMITS, *_VERSIONS, "QUANTIZE") or kind == _KIND:
                return []
            found.append((kind, op))
        return found


def _join(model: Any, op: Any, chains: _Chains) -> bool:
    """Lets a layer take and give integers, if nothing but cuts and a clamp stands in between."""
    graph, behind = model.subgraphs[0], chains.behind(op)
    restore = chains.before(op.inputs[_SOURCE])
    if dtype_name(graph.tensors[op.inputs[_WEIGHT]]) != "int8":
        return False
    if not behind or restore is None or op_name(model, restore) != "DEQUANTIZE":
        return False
    result = int(behind[-1][1].outputs[0])
    source, target = graph.tensors[restore.inputs[0]], graph.tensors[result]
    if dtype_name(source) not in ("int8", "int16") or source.type != target.type:
        return False
    cuts = [step for kind, step in behind if kind in _VERSIONS]
    clamp = _clamp(op, [kind for kind, _ in behind if kind in _LIMITS], target)
    bias = _bias(model, op, source)
    if clamp is None or bias is None:
        return False
    op.builtinOptions.fusedActivationFunction = clamp
    op.inputs = [*op.inputs[:_SOURCE], int(restore.inputs[0]), *bias]
    for kind, step in behind:
        if kind not in _VERSIONS:
            step.outputs = []
    for before, after in zip([op, *cuts], cuts, strict=False):
        between = graph.tensors[before.outputs[0]]
        between.type, between.quantization = target.type, target.quantization
        _read(after, 0, before.outputs[0])
    [op, *cuts][-1].outputs = [result]
    for each in (op, *cuts):
        code = model.operatorCodes[each.opcodeIndex]
        first = _VERSIONS[op_name(model, each)][dtype_name(target) == "int16"]
        code.version = max(code.version, first)
    return True


def _clamp(op: Any, kinds: list[str], target: Any) -> int | None:
    """What to fuse with a layer so that it clamps as it did; None if there is no such thing.

    Where the integers of the result end at the limits, that is nothing.
    """
    known = schema().ActivationFunctionType
    names = {v: k for k, v in vars(known).items() if isinstance(v, int)}
    kinds = [k for k in (names[op.builtinOptions.fusedActivationFunction], *kinds) if k != "NONE"]
    if len(kinds) > 1 or any(k not in _LIMITS for k in kinds):
        return None
    kind = kinds[0] if kinds else "NONE"
    scale, zero = float(target.quantization.scale[0]), int(target.quantization.zeroPoint[0])
    low, high = (np.rint(limit / scale) + zero for limit in _LIMITS[kind])
    integers = np.iinfo(dtype_name(target))
    if low <= integers.min and high >= integers.max:
        return int(known.NONE)
    return int(getattr(known, kind)) if hasattr(known, kind) else None


def _bias(model: Any, op: Any, source: Any) -> list[int] | None:
    """The bias of a layer as integers, an index or nothing; None if it has no such form."""
    if len(op.inputs) <= _BIAS or op.inputs[_BIAS] < 0:
        return []
    graph = model.subgraphs[0]
    tensor, weight = graph.tensors[op.inputs[_BIAS]], graph.tensors[op.inputs[_WEIGHT]]
    value = constant(model, tensor)
    if value is None or value.dtype != np.float32:
        return None
    scale = np.float32(source.quantization.scale[0]) * np.asarray(weight.quantization.scale)
    integers = np.rint(value.astype(np.float64) / scale.astype(np.float64)).astype(np.int64)
    if dtype_name(source) == "int8":
        if np.abs(integers).max() > np.iinfo(np.int32).max:
            return None
        integers = integers.astype(np.int32)
    return [_add(model, bytes(tensor.name) + b"_" + str(integers.dtype).encode(), integers, scale)]


def _read(op: Any, place: int, index: int) -> None:
    inputs = [int(i) for i in op.inputs]
    op.inputs = [*inputs[:place], int(index), *inputs[place + 1 :]]


def _layers(model: Any) -> list[Any]:
    return [op for op in model.subgraphs[0].operators if op_name(model, op) == _KIND]


def _add(model: Any, name: bytes, value: np.ndarray[Any, Any], scale: Any) -> int:
    """Adds a constant of integers, with a scale for each entry of its first axis."""
    api, graph = schema(), model.subgraphs[0]
    tensor = api.TensorT()
    tensor.name, tensor.shape = name, list(value.shape)
    tensor.type = getattr(api.TensorType, str(value.dtype).upper())
    tensor.quantization = api.QuantizationParametersT()
    tensor.quantization.scale = np.asarray(scale, np.float32)
    tensor.quantization.zeroPoint = np.zeros(len(scale), np.int64)
    tensor.quantization.quantizedDimension = 0
    model.buffers.append(api.BufferT())
    tensor.buffer = len(model.buffers) - 1
    set_buffer(model, tensor, value)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
