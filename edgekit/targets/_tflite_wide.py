"""Activations of 16 bits in ``.tflite`` files: what the converter has no form of, before and after.

TensorFlow Lite calls them 16x8: int16 with zero in the middle, int8 weights per channel and int64
biases ("Post-training integer quantization with int16 activations" in its guide). Kernels are
those of LiteRT itself, as XNNPACK has none for 16 bits. The converter (litert-torch 0.10) writes
most of it, with these gaps:

- It refuses int16 at a concatenation, hard-swish, GELU, a ReLU6 that no layer takes in and where a
  max pooling pads, unless with zeros, which is as good where nothing is negative. `shield`
  puts products with a number a hair above 1 around these, so that they stay float between
  conversions, and `widen` takes them away again.
- LiteRT does concatenate int16: there the conversions go. Hard-swish becomes products and a sum of
  integers, as with 8 bits (`edgekit.targets._tflite_curves`): ``x / 6`` keeps x's integers and
  gives them the scale ``s / 6``; a half is added, with ReLU and integers that end at 1; and x is
  multiplied with that. GELU and such a ReLU6 have no kernel of 16 bits, and stay in float.
- Biases are written as int32, which only some kernels take; with int64 sums can't overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress._nodes import aten
from edgekit.targets._tflite_file import (
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

    from edgekit.compress.plan import Edge

_SHIELD = float(np.nextafter(np.float32(1), np.float32(2)))
_REFUSED = (aten.cat.default, aten.hardswish.default, aten.gelu.default, aten.hardtanh.default)
_ONE_SCALE = (aten.cat.default, aten.max_pool2d.default)
"""Operators that the converter would quantize for the sake of either end."""
_NOT_NEGATIVE = (aten.relu.default, aten.sigmoid.default)
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_VERSIONS = {
    **{"CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7},
    **{"CONCATENATION": 2, "QUANTIZE": 2, "DEQUANTIZE": 3, "ADD": 3, "MUL": 4},
}
"""The first version of an operator that takes int16, and an int64 bias where it has one."""
_NO_KERNEL = "LiteRT has no kernel of it for 16 bits"
_KNOWN = {
    "GELU": _NO_KERNEL,
    "RELU6": _NO_KERNEL,
    "HARD_SWISH": _NO_KERNEL,
    "MAX_POOL_2D": "it pads with the lowest number, which the converter has no form of for 16 bits",
}
_SIXTH = (float(np.float32(1 / 6)), 1)
_HALF = (2.0**-15, 2**14)
_GATE = float(np.float32(1 / (2**15 - 1)))
"""The scale of hard-swish's factor, whose largest integer is 1."""


def shield(module: fx.GraphModule, edges: Mapping[str, Edge]) -> None:
    """Prepares a rendered graph for the converter, in place.

    Clamps from zero up whose upper limit is where the integers of their result end anyway become
    ReLU, which every kernel takes in.

    Args:
        module: `edgekit.compress.render.render` in the form ``qdq``.
        edges: the plan's activations by the name of their node.
    """
    for node in list(module.graph.nodes):
        edge = edges.get(node.name)
        if edge is None or edge.dtype != "int16":
            continue
        if node.target is aten.hardtanh.default and _ends(node, edge):
            node.target, node.args = aten.relu.default, node.args[:1]
        pooled = node.target is aten.max_pool2d.default and _pads(node)
        if node.target not in _REFUSED and not (pooled and not _pad_with_zeros(module, node)):
            continue
        for source in node.all_input_nodes:
            if "dequantize" in str(source.target):
                node.replace_input_with(source, _shielded(module, source))
        if node.target in _ONE_SCALE:
            readers = list(node.users)
            after = _shielded(module, node)
            for reader in readers:
                reader.replace_input_with(node, after)
    module.recompile()


def _pads(pool: fx.Node) -> bool:
    """Whether a max pooling pads, or may look beyond the end."""
    return any(np.ravel(_argument(pool, 3))) or bool(_argument(pool, 5))


def _argument(node: fx.Node, place: int) -> Any:
    return node.args[place] if len(node.args) > place else 0


def _pad_with_zeros(module: fx.GraphModule, pool: fx.Node) -> bool:
    """Pads before a max pooling of what is never negative; whether that could be done."""
    restore = pool.all_input_nodes[0]
    if "dequantize" not in str(restore.target) or _argument(pool, 5):
        return False
    made: Any = restore.all_input_nodes[0].all_input_nodes[0]
    while made.target is aten.max_pool2d.default:
        made = made.all_input_nodes[0]
        while "quantize_per_tensor" in str(made.target):
            made = made.all_input_nodes[0]
    clamped = made.target is aten.hardtanh.default and made.args[1] >= 0
    if made.target not in _NOT_NEGATIVE and not clamped:
        return False
    height, width = np.broadcast_to(np.ravel(_argument(pool, 3)), 2).tolist()
    graph, last = module.graph, restore
    ends = [width, width, height, height]
    with graph.inserting_before(pool):
        last = graph.call_function(aten.constant_pad_nd.default, (restore, ends))
        last.meta = {k: v for k, v in restore.meta.items() if k != "val"}
        for step in (restore.all_input_nodes[0], restore):
            last = graph.call_function(step.target, (last, *step.args[1:]))  # type: ignore[arg-type]
    pool.args = (last, *pool.args[1:3], [0, 0], *pool.args[4:])
    return True


def _shielded(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    with module.graph.inserting_after(node):
        product = module.graph.call_function(aten.mul.Tensor, (node, _SHIELD))
    product.meta = dict(node.meta)
    return product


def _ends(node: fx.Node, edge: Edge) -> bool:
    low, high = (float(v) for v in node.args[1:3])  # type: ignore[arg-type]
    return low == 0 and int(edge.quantize(np.array(high))) == edge.quant_max


def widen(model: Any) -> None:
    """Finishes a file that was converted behind `shield`, in place."""
    _take_shields_away(model)
    _concatenate(model)
    _hard_swish(model)
    drop_unread(model)
    _widen_biases(model)
    for op in model.subgraphs[0].operators:
        if any(_wide(model, int(i)) for i in (*op.inputs, *op.outputs) if i >= 0):
            code = model.operatorCodes[op.opcodeIndex]
            code.version = max(code.version, _VERSIONS.get(op_name(model, op), 1))


def derived(model: Any) -> set[int]:
    """Indexes of the tensors that `widen` made with scales that follow from the plan's.

    Only those that are what they should be, so that another one is compared with the plan.
    """
    graph, found = model.subgraphs[0], set()
    for op in graph.operators:
        if op_name(model, op) not in ("MUL", "ADD") or len(op.inputs) != 2:
            continue
        source, other, result = (graph.tensors[i] for i in (*op.inputs, op.outputs[0]))
        value = constant(model, other)
        if value is None or value.size != 1 or value.dtype != np.int16:
            continue
        number = (_scale(other), int(value.reshape(())))
        sixth = float(np.float32(_scale(source) / 6))
        if op_name(model, op) == "MUL":
            right = number == _SIXTH and _scale(result) == sixth
        else:
            clamped = op.builtinOptions.fusedActivationFunction == _relu()
            right = number == _HALF and _scale(result) == _GATE and clamped
            right = right and int(op.inputs[0]) in found
        if right:
            found.add(int(op.outputs[0]))
    return found


def known(model: Any) -> dict[str, str]:
    """Why operators of a file with int16 compute in float, by type; empty for other files."""
    wide = any(dtype_name(tensor) == "int16" for tensor in model.subgraphs[0].tensors)
    return dict(_KNOWN) if wide else {}


def _take_shields_away(model: Any) -> None:
    graph, kept, renamed = model.subgraphs[0], [], {}
    for op in graph.operators:
        if op_name(model, op) == "MUL":
            values = [constant(model, graph.tensors[i]) for i in op.inputs]
            shields = [v is not None and v.size == 1 and v.item() == _SHIELD for v in values]
            if any(shields):
                renamed[int(op.outputs[0])] = int(op.inputs[int(shields[0])])
                continue
        kept.append(op)
    for op in kept:
        op.inputs = [renamed.get(int(i), int(i)) for i in op.inputs]
    graph.outputs = [renamed.get(int(i), int(i)) for i in graph.outputs]
    graph.operators = kept


def _concatenate(model: Any) -> None:
    """Lets concatenations between conversions take and give the integers themselves."""
    for op, sources, quantize in _between(model, "CONCATENATION"):
        scales = {_scale(model.subgraphs[0].tensors[i]) for i in (*sources, quantize.outputs[0])}
        if len(scales) == 1:
            op.inputs, op.outputs = sources, list(quantize.outputs)
            quantize.outputs = []


def _hard_swish(model: Any) -> None:
    graph = model.subgraphs[0]
    made: dict[int, list[Any]] = {}
    for op, sources, quantize in _between(model, "HARD_SWISH"):
        made[id(op)] = _on_integers(model, sources[0], int(quantize.outputs[0]))
        quantize.outputs = []
    graph.operators = [new for op in graph.operators for new in made.get(id(op), [op])]


def _between(model: Any, kind: str) -> list[tuple[Any, list[int], Any]]:
    """Operators of one kind that stand alone between conversions from and to int16.

    With the integer tensors that they read, and the ``QUANTIZE`` behind them.
    """
    graph = model.subgraphs[0]
    maker = {int(i): op for op in graph.operators for i in op.outputs}
    readers: dict[int, list[Any]] = {int(i): [] for i in graph.outputs}
    outputs = set(readers)
    for op in graph.operators:
        for index in op.inputs:
            readers.setdefault(int(index), []).append(op)
    found = []
    for op in graph.operators:
        if op_name(model, op) != kind:
            continue
        before = [maker.get(int(i)) for i in op.inputs]
        after = readers.get(int(op.outputs[0]), [])
        if int(op.outputs[0]) in outputs or len(after) != 1:
            continue
        if op_name(model, after[0]) != "QUANTIZE" or not _wide(model, after[0].outputs[0]):
            continue
        if all(b is not None and op_name(model, b) == "DEQUANTIZE" for b in before):
            sources = [int(b.inputs[0]) for b in before if b is not None]
            if all(_wide(model, i) for i in sources):
                found.append((op, sources, after[0]))
    return found


def _on_integers(model: Any, source: int, result: int) -> list[Any]:
    api, graph = schema(), model.subgraphs[0]
    like = graph.tensors[source]
    name, shape = bytes(like.name), [int(n) for n in like.shape]
    step = float(np.float32(_scale(like) / 6))
    sixth = _int16(model, name + b"_sixth", [1], *_SIXTH)
    half = _int16(model, name + b"_half", [1], *_HALF)
    part = _int16(model, name + b"_part", shape, step)
    gate = _int16(model, name + b"_gate", shape, _GATE)
    made = []
    for kind, inputs, output in (
        ("MUL", [source, sixth], part),
        ("ADD", [part, half], gate),
        ("MUL", [source, gate], result),
    ):
        title = kind.capitalize()
        one = operator(model, kind, inputs, [output])
        one.builtinOptions = getattr(api, f"{title}OptionsT")()
        one.builtinOptions.fusedActivationFunction = _relu() if kind == "ADD" else 0
        if kind == "ADD":
            one.builtinOptions.potScaleInt16 = False
        one.builtinOptionsType = getattr(api.BuiltinOptions, f"{title}Options")
        made.append(one)
    return made


def _int16(
    model: Any, name: bytes, shape: list[int], scale: float, value: int | None = None
) -> int:
    """Adds an int16 tensor to the main subgraph, constant if it has a value; gives its index."""
    api = schema()
    tensor = api.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, api.TensorType.INT16, 0
    tensor.quantization = api.QuantizationParametersT()
    tensor.quantization.scale = np.asarray([scale], np.float32)
    tensor.quantization.zeroPoint = np.zeros(1, np.int64)
    if value is not None:
        buffer = api.BufferT()
        buffer.data = np.asarray([value], np.int16).view(np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    graph = model.subgraphs[0]
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _widen_biases(model: Any) -> None:
    api, graph = schema(), model.subgraphs[0]
    for op in graph.operators:
        kind = op_name(model, op)
        if kind not in _LAYERS or not _wide(model, op.outputs[0]):
            continue
        if len(op.inputs) < 3 or op.inputs[2] < 0:
            continue
        tensor = graph.tensors[op.inputs[2]]
        value = constant(model, tensor)
        if value is None or value.dtype != np.int32:
            continue
        set_buffer(model, tensor, value.astype(np.int64))
        tensor.type = api.TensorType.INT64


def _wide(model: Any, index: int) -> bool:
    return dtype_name(model.subgraphs[0].tensors[index]) == "int16"


def _scale(tensor: Any) -> float:
    params = tensor.quantization
    if params is None or params.scale is None or len(params.scale) != 1:
        return float("nan")
    return float(params.scale[0])


def _relu() -> int:
    return int(schema().ActivationFunctionType.RELU)
