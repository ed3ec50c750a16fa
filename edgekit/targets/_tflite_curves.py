"""Hard-swish in TFLite files, as products and a sum of integers where the scale allows it.

XNNPACK has ``HARD_SWISH`` in float only: an int8 one cuts the graph in two, and runs in a kernel
that costs more than all the convolutions around it. Where 3 is a whole number k of steps of x (the
plan sees to it), three of XNNPACK's int8 kernels compute the plan's answer to the last step:
``x / 6`` keeps x's integers and gives them the scale ``s / 6``; adding a half, with the clamp to
[-1, 1] that is fused with an addition and integers that end at zero, makes the factor
``clip(x + 3, 0, 6) / 6``; and x is multiplied with it. 64 x 56 x 56 values took 20 us so, 43 us in
float with a conversion at either end, and 874 us in the integer kernel (AVX-512, one thread).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.targets._tflite_file import add_float, constant, op_name, operator, schema

_BEND = 3.0
_SLOPE = 6.0
_MOST = 127
"""Steps from 0 to 3, at most: the factor has twice as many."""


def hard_swish(model: Any) -> None:
    """Rewrites every int8 ``HARD_SWISH``: on integers, or in float between conversions."""
    api = schema()
    graph = model.subgraphs[0]
    operators = []
    for op in graph.operators:
        ends = [graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]] if len(op.inputs) else []
        integers = ends and all(t.type == api.TensorType.INT8 for t in ends)
        if op_name(model, op) != "HARD_SWISH" or not integers:
            operators.append(op)
        elif (bend := _bend(ends[0])) is not None:
            operators += _on_integers(model, op, bend)
        else:
            source, result = op.inputs[0], op.outputs[0]
            op.inputs = [add_float(graph, ends[0], b"_float")]
            op.outputs = [add_float(graph, ends[1], b"_float")]
            operators.append(operator(model, "DEQUANTIZE", [source], op.inputs))
            operators.append(op)
            operators.append(operator(model, "QUANTIZE", op.outputs, [result]))
    graph.operators = operators


def derived(model: Any) -> set[int]:
    """Indexes of the tensors that `hard_swish` made with scales that follow from the plan's.

    Only those that are what they should be, so that another one is compared with the plan.
    """
    graph = model.subgraphs[0]
    found: set[int] = set()
    for op in graph.operators:
        kind = op_name(model, op)
        if kind not in ("MUL", "ADD") or len(op.inputs) != 2:
            continue
        source, other = (graph.tensors[i] for i in op.inputs)
        value = constant(model, other)
        if value is None or value.size != 1 or value.dtype != np.int8:
            continue
        scale, zero = _params(source)
        if kind == "MUL":
            bend = _bend(source)
            right = bend is not None and (int(value.reshape(())), _params(other)) == (1, _SIXTH)
            wanted = (float(np.float32(scale / _SLOPE)), zero)
        else:
            clamped = op.builtinOptions.fusedActivationFunction == _clamp()
            half = (int(value.reshape(())), _params(other)) == (zero + 128, (scale, 0))
            right = clamped and half and int(op.inputs[0]) in found
            wanted = (scale, -128)
        if right and _params(graph.tensors[op.outputs[0]]) == wanted:
            found.add(int(op.outputs[0]))
    return found


_SIXTH = (float(np.float32(1 / _SLOPE)), 0)


def _clamp() -> int:
    return int(schema().ActivationFunctionType.RELU_N1_TO_1)


def _params(tensor: Any) -> tuple[float, int]:
    """Scale and zero point of a tensor that has one of each; NaN for any other."""
    params = tensor.quantization
    if params is None or params.scale is None or len(params.scale) != 1:
        return float("nan"), 0
    return float(params.scale[0]), int(params.zeroPoint[0])


def _bend(tensor: Any) -> int | None:
    """How many steps 3 is, where that and -3 are among the tensor's integers; else None."""
    scale, zero = _params(tensor)
    if not scale > 0:
        return None
    bend = round(_BEND / scale)
    whole = abs(bend * scale - _BEND) <= 1e-6 * _BEND
    return bend if whole and 1 <= bend <= _MOST and zero == bend - 128 else None


def _on_integers(model: Any, op: Any, bend: int) -> list[Any]:
    api = schema()
    graph = model.subgraphs[0]
    source, result = int(op.inputs[0]), int(op.outputs[0])
    like = graph.tensors[source]
    scale, zero = _params(like)
    step = float(np.float32(scale / _SLOPE))
    sixth = _int8(model, bytes(like.name) + b"_sixth", [1], _SIXTH, 1)
    half = _int8(model, bytes(like.name) + b"_half", [1], (step, 0), bend)
    shape = [int(n) for n in like.shape]
    part = _int8(model, bytes(like.name) + b"_part", shape, (step, zero))
    gate = _int8(model, bytes(like.name) + b"_gate", shape, (step, -128))
    made = []
    for kind, inputs, output in (
        ("MUL", [source, sixth], part),
        ("ADD", [part, half], gate),
        ("MUL", [source, gate], result),
    ):
        name = kind.capitalize()
        one = operator(model, kind, inputs, [output])
        one.builtinOptions = getattr(api, f"{name}OptionsT")()
        one.builtinOptions.fusedActivationFunction = _clamp() if kind == "ADD" else 0
        one.builtinOptionsType = getattr(api.BuiltinOptions, f"{name}Options")
        made.append(one)
    return made


def _int8(
    model: Any, name: bytes, shape: list[int], params: tuple[float, int], value: int | None = None
) -> int:
    """Adds an int8 tensor to the main subgraph, constant if it has a value, and gives its index."""
    api = schema()
    tensor = api.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, api.TensorType.INT8, 0
    tensor.quantization = api.QuantizationParametersT()
    tensor.quantization.scale = np.asarray([params[0]], np.float32)
    tensor.quantization.zeroPoint = np.asarray([params[1]], np.int64)
    if value is not None:
        buffer = api.BufferT()
        buffer.data = np.asarray([value], np.int8).view(np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    graph = model.subgraphs[0]
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
