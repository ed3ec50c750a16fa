"""A picture at the border of a ``.tflite`` file, its channels last: ``[1, H, W, C]``.

The transpose that a model with its channels first begins with falls away. Of uint8 pixels,
``DEQUANTIZE`` takes pixels to float, a ``CONV_2D`` of one weight per channel multiplies and adds,
and in an integer graph ``QUANTIZE`` rounds, in int8 to the plan's integers (`fitted` of
`edgekit.compress.picture` sees to it); a step of int16 is no larger than what float32 arithmetic
errs by, so there a pixel may be one off. Of float32 values that are normalized already,
``QUANTIZE`` is left, and the convolution where colours have to be reordered and no layer can do it.

XNNPACK takes all three: on one thread of an x86-64 with AVX-512, MobileNetV2 at 224 x 224 pixels
takes 3.42 ms of processor time so, and 3.41 ms with its own tensor and the transpose (float: 7.26
and 7.21). ``MUL`` and ``ADD`` in place of the convolution took 1.0 ms more, and a ``QUANTIZE`` from
uint8 to int8 is one that XNNPACK (LiteRT 2.3) leaves out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.targets import _tflite_file as file

if TYPE_CHECKING:
    from edgekit.compress.picture import Prelude

__all__ = ["border", "take_picture"]

Array = np.ndarray[Any, Any]

_NHWC, _NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


def take_picture(model: Any, position: int, prelude: Prelude) -> None:
    """Makes an input of the main subgraph a picture, NHWC, in place.

    Args:
        model: as `_tflite_file.read` gives it, with a float32 boundary, of the graph without its
            prelude.
        position: of the picture among the inputs.
        prelude: what turns the picture into what the model takes.
    """
    graph = model.subgraphs[0]
    graph.inputs, graph.operators = list(graph.inputs), list(graph.operators)
    old = int(graph.inputs[position])
    name = bytes(graph.tensors[old].name)
    readers = _readers(graph, old)
    rounds = len(readers) == 1 and file.op_name(model, readers[0]) == "QUANTIZE"
    core = old
    if rounds:
        graph.operators.remove(readers[0])
        core = int(readers[0].outputs[0])
    last = core if prelude.permute is None else _channels_last(model, core)
    picture, chain = _chain(model, last, prelude, rounds=rounds)
    graph.tensors[picture].name = name
    graph.inputs[position] = picture
    graph.operators = [*chain, *graph.operators]
    for definition in model.signatureDefs or []:
        for entry in definition.inputs:
            if entry.tensorIndex == old:
                entry.tensorIndex = picture


def border(model: Any) -> list[Any]:
    """The operators that make a model's input out of a picture, in order; none where there are
    none. Of a float picture those are the ones that reorder its colours."""
    graph = model.subgraphs[0]
    pictures = [int(i) for i in graph.inputs if len(graph.tensors[int(i)].shape) == 4]
    pixels = {i for i in pictures if file.dtype_name(graph.tensors[i]) == "uint8"}
    values = {i for i in pictures if file.dtype_name(graph.tensors[i]) == "float32"}
    given, found = set(pixels), []
    for op in graph.operators:
        if not len(op.inputs):
            continue
        kind, source = file.op_name(model, op), int(op.inputs[0])
        if kind == "CONV_2D":
            orders = source in values and _of_pixels(model, op, only_orders=True)
            steps = orders or (source in given and _of_pixels(model, op))
        else:
            steps = source in given and kind in ("DEQUANTIZE", "QUANTIZE")
        if not steps:
            continue
        found.append(op)
        if kind != "QUANTIZE":
            given |= {int(i) for i in op.outputs}
    return found


def _of_pixels(model: Any, op: Any, *, only_orders: bool = False) -> bool:
    """Whether a convolution only scales and orders channels: one weight for each that it makes.

    With ``only_orders``, whether it changes no value.
    """
    tensors = model.subgraphs[0].tensors
    weight, *bias = (file.constant(model, tensors[int(i)]) for i in op.inputs[1:3] if i >= 0)
    if weight is None or weight.dtype != np.float32 or weight.shape[1:3] != (1, 1):
        return False
    same = np.isin(weight, (0, 1)).all() and all(b is not None and not b.any() for b in bias)
    if only_orders and not same:
        return False
    return weight.shape[0] == weight.shape[3] and bool(((weight != 0).sum(3) == 1).all())


def _readers(graph: Any, index: int) -> list[Any]:
    return [op for op in graph.operators if index in [int(i) for i in op.inputs]]


def _channels_last(model: Any, core: int) -> int:
    """The tensor that holds what ``core`` does with its channels last; ``core`` is made of it where
    something still reads it."""
    graph = model.subgraphs[0]
    moves = [op for op in _readers(graph, core) if _moves_last(model, op, core)]
    shape = graph.tensors[core].shape
    if moves:
        last = int(moves[0].outputs[0])
    else:
        last = _like(graph, core, b"_last", [int(shape[i]) for i in _NHWC])
    same = {int(op.outputs[0]) for op in moves}
    graph.operators = [op for op in graph.operators if op not in moves]
    for op in graph.operators:
        op.inputs = [last if int(i) in same else int(i) for i in op.inputs]
    results = [int(i) for i in graph.outputs]
    graph.outputs = [last if i in same else i for i in results]
    for definition in model.signatureDefs or []:
        for entry in definition.outputs:
            entry.tensorIndex = last if entry.tensorIndex in same else entry.tensorIndex
    if _readers(graph, core) or core in results:
        order = _constant(model, b"channels_first", np.asarray(_NCHW, np.int32))
        back = file.operator(model, "TRANSPOSE", [last, order], [core])
        graph.operators = [back, *graph.operators]
    return last


def _moves_last(model: Any, op: Any, core: int) -> bool:
    """Whether an operator puts the channels of [1, C, H, W] last; a reshape may, of one."""
    graph, kind = model.subgraphs[0], file.op_name(model, op)
    shape = [int(n) for n in graph.tensors[core].shape]
    if kind == "TRANSPOSE":
        order = file.constant(model, graph.tensors[int(op.inputs[1])])
        return order is not None and order.tolist() == _NHWC
    made = [int(n) for n in graph.tensors[int(op.outputs[0])].shape]
    return kind == "RESHAPE" and shape[1] == 1 and made == [shape[i] for i in _NHWC]


def _chain(model: Any, last: int, prelude: Prelude, *, rounds: bool) -> tuple[int, list[Any]]:
    """The picture's tensor, and the operators from it to ``last``."""
    api, graph = file.schema(), model.subgraphs[0]
    shape = [int(n) for n in graph.tensors[last].shape]
    result = _like(graph, last, b"_float", shape, api.TensorType.FLOAT32) if rounds else last
    behind = [file.operator(model, "QUANTIZE", [result], [last])] if rounds else []
    if prelude.normalized and prelude.flip is None:
        return result, behind
    plain = _like(graph, last, b"_picture", shape, api.TensorType.FLOAT32)
    convolution = _channel_by_channel(model, plain, result, prelude)
    if prelude.normalized:
        return plain, [convolution, *behind]
    pixels = _like(graph, last, b"", shape, api.TensorType.UINT8)
    graph.tensors[pixels].quantization = _quantization(1.0, 0)
    return pixels, [file.operator(model, "DEQUANTIZE", [pixels], [plain]), convolution, *behind]


def _channel_by_channel(model: Any, plain: int, result: int, prelude: Prelude) -> Any:
    """The convolution that multiplies, adds to and orders the channels of ``plain``."""
    api, channels = file.schema(), len(prelude.factor)
    weight = np.zeros((channels, 1, 1, channels), np.float32)
    for made in range(channels):
        weight[made, 0, 0, made if prelude.flip is None else channels - 1 - made] = prelude.factor[
            made
        ]
    constants = [
        _constant(model, b"picture_factor", weight),
        _constant(model, b"picture_offset", prelude.offset.astype(np.float32)),
    ]
    convolution = file.operator(model, "CONV_2D", [plain, *constants], [result])
    options = api.Conv2DOptionsT()
    options.strideH = options.strideW = 1
    options.dilationHFactor = options.dilationWFactor = 1
    options.padding = api.Padding.VALID
    convolution.builtinOptionsType = api.BuiltinOptions.Conv2DOptions
    convolution.builtinOptions = options
    return convolution


def _like(graph: Any, index: int, suffix: bytes, shape: list[int], dtype: int | None = None) -> int:
    """Adds a computed tensor, of another's type and quantization unless a type is given."""
    other = graph.tensors[index]
    tensor = file.schema().TensorT()
    tensor.shape, tensor.buffer = shape, 0
    tensor.type = other.type if dtype is None else dtype
    tensor.quantization = other.quantization if dtype is None else None
    tensor.name = bytes(other.name) + suffix
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _constant(model: Any, name: bytes, value: Array) -> int:
    api, graph = file.schema(), model.subgraphs[0]
    tensor, buffer = api.TensorT(), api.BufferT()
    tensor.shape, tensor.name = list(value.shape), name
    types = {"float32": api.TensorType.FLOAT32, "int32": api.TensorType.INT32}
    tensor.type = types[value.dtype.name]
    buffer.data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _quantization(scale: float, zero_point: int) -> Any:
    params = file.schema().QuantizationParametersT()
    params.scale = np.asarray([scale], np.float32)
    params.zeroPoint = np.asarray([zero_point], np.int64)
    return params
