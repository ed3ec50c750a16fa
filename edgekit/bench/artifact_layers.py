"""The layers of artifacts in a bundle, which keeps no program: read from ONNX or LiteRT files.

Quantize and dequantize operators are looked through, so that an int8 file gives the layers of the
model that it was made from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from edgekit.bench.layers import Layer
from edgekit.errors import UnsupportedError

__all__ = ["Counted", "onnx_layers"]

Shapes = Mapping[str, tuple[int, ...]]
Counted = tuple[list[Layer], int, int]
"""Layers, stored numbers, and most elements that live at one time."""

_THROUGH: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "Identity", "Cast"})
_FREE: Final = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Constant", "Shape", "Dropout", "Split", "Size"}
)
_FUSED: Final = frozenset({"Relu", "Clip"})
_OTHER: Final = {
    "move": "Transpose Slice Concat Pad Gather Expand Tile DepthToSpace SpaceToDepth "
    "GatherElements GatherND ConstantOfShape Range Where ScatterND",
    "pool": "MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean ReduceSum ReduceMax "
    "ReduceMin ArgMax ArgMin TopK CumSum ReduceL2",
    "norm": "Softmax LogSoftmax LayerNormalization GroupNormalization BatchNormalization "
    "InstanceNormalization RMSNormalization",
    "elementwise": "Add Sub Mul Div Sigmoid HardSigmoid HardSwish Tanh Erf Gelu Exp Log Sqrt Pow "
    "Neg Abs Max Min LeakyRelu PRelu Elu Softplus Reciprocal Equal Less Greater Not And Or Floor "
    "Ceil Round Sin Cos Mish Sign Resize Upsample Mod LessOrEqual GreaterOrEqual Swish",
}
_KIND: Final = {name: kind for kind, names in _OTHER.items() for name in names.split()}


def onnx_layers(path: Path, name: str) -> Counted:
    """What an ONNX file computes.

    Args:
        path: the file.
        name: the model's, for messages.

    Raises:
        UnsupportedError: an operator of which nothing is known, or a shape that is not fixed.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    graph = model.graph
    shapes = _shapes(graph)
    constants = {t.name for t in graph.initializer}
    behind: dict[str, str] = {}
    layers: list[Layer] = []
    made: dict[str, Any] = {}
    for node in graph.node:
        if node.op_type in _THROUGH and node.input:
            source = behind.get(node.input[0], node.input[0])
            behind[node.output[0]] = source
            if source in constants or (source not in shapes and node.input[0] in constants):
                constants.add(node.output[0])
            continue
        inputs = [behind.get(i, i) for i in node.input if i]
        layers += _layer(node, inputs, shapes, constants, made, name)
        for output in node.output:
            made[output] = node.op_type
    stored = sum(math.prod(t.dims) for t in graph.initializer if math.prod(t.dims) > 1)
    return layers, stored, _live(graph, behind, shapes, constants)


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    found = {t.name: tuple(t.dims) for t in graph.initializer}
    for info in [*graph.input, *graph.value_info, *graph.output]:
        dims = info.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            found[info.name] = tuple(d.dim_value for d in dims)
    return found


def _layer(
    node: Any,
    inputs: list[str],
    shapes: Shapes,
    constants: set[str],
    made: Mapping[str, str],
    model: str,
) -> list[Layer]:
    kind, title = node.op_type, node.name or node.output[0]
    if kind in _FREE or all(i in constants for i in inputs):
        return []
    if kind in _FUSED and made.get(inputs[0]) in ("Conv", "Gemm", "MatMul", "Add"):
        return []
    out = _shape(node.output[0], shapes, model)
    read = sum(math.prod(shapes.get(i, ())) for i in inputs if i not in constants)
    if kind in ("Conv", "ConvTranspose"):
        return [_conv(node, inputs, shapes, out, model)]
    if kind in ("Gemm", "MatMul"):
        return [_product(title, inputs, shapes, constants, out, node)]
    if kind not in _KIND:
        raise UnsupportedError(
            f"the latency of operator {kind} ({title}) in {model!r} can't be estimated: "
            "no measurement says what it costs",
            hint="measure it: edgekit bench on the device",
        )
    return [Layer.other(title, _KIND[kind], read, math.prod(out))]


def _shape(name: str, shapes: Shapes, model: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UnsupportedError(
            f"model {model!r} has a shape that is not fixed: {name}",
            hint="an estimate is of one size: estimate the model that the bundle was made from",
        )
    return shapes[name]


def _conv(node: Any, inputs: list[str], shapes: Shapes, out: tuple[int, ...], model: str) -> Layer:
    into, weight = _shape(inputs[0], shapes, model), _shape(inputs[1], shapes, model)
    attributes = {a.name: a for a in node.attribute}
    groups = attributes["group"].i if "group" in attributes else 1
    title = node.name or node.output[0]
    if node.op_type == "ConvTranspose":
        macs = math.prod(weight) * math.prod(into[2:]) * into[0]
        taps = math.prod(weight[2:])
        return Layer(
            title, "conv", macs, math.prod(weight), math.prod(into), math.prod(out), taps, out[1]
        )
    strides = attributes["strides"].ints if "strides" in attributes else [1]
    kernel = (1, weight[2]) if len(weight) == 3 else (weight[2], weight[3])
    size = (out[0], out[2]) if len(out) == 3 else (out[0] * out[2], out[3])
    return Layer.conv(title, into[1], weight[0], kernel, strides[0], groups, size, math.prod(into))


def _product(
    title: str,
    inputs: list[str],
    shapes: Shapes,
    constants: set[str],
    out: tuple[int, ...],
    node: Any,
) -> Layer:
    a, b = shapes.get(inputs[0], ()), shapes.get(inputs[1], ())
    if inputs[1] in constants and len(b) == 2:
        swapped = any(x.name == "transB" and x.i for x in node.attribute)
        features, wide = (b[1], b[0]) if swapped else (b[0], b[1])
        return Layer.linear(title, features, wide, math.prod(out) // wide)
    rows, columns = (out[-2] if len(out) > 1 else 1), out[-1]
    return Layer.product(
        title, rows, a[-1] if a else 1, columns, math.prod(out) // (rows * columns)
    )


def _live(graph: Any, behind: Mapping[str, str], shapes: Shapes, constants: Iterable[str]) -> int:
    """Most elements of computed tensors that live at one time."""
    skip = set(constants)
    owner = dict(behind)

    def root(name: str) -> str:
        while name in owner:
            name = owner[name]
        return name

    last: dict[str, int] = {}
    born: dict[str, int] = {i.name: -1 for i in graph.input if i.name not in skip}
    for step, node in enumerate(graph.node):
        inputs = [root(i) for i in node.input if i]
        for i in inputs:
            last[i] = step
        free = node.op_type in _FREE | _FUSED
        for output in node.output:
            if output in owner or output in skip:
                continue
            if free and inputs:
                owner[output] = inputs[0]
            else:
                born[output] = step
    for output in graph.output:
        last[root(output.name)] = len(graph.node)
    most = 0
    for step in range(-1, len(graph.node)):
        living = (n for n, at in born.items() if at <= step <= last.get(n, at))
        most = max(most, sum(math.prod(shapes.get(n, (0,))) for n in living))
    return most
