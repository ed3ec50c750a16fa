"""Reading and rewriting ``.tflite`` files through their flatbuffer schema.

The schema's generated classes come with the LiteRT wheel. Spec: the TensorFlow Lite schema,
file identifier ``TFL3``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadData

_IDENTIFIER = b"TFL3"


def schema() -> Any:
    """The generated schema module."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def read(path: Path) -> Any:
    """The model as mutable objects (``ModelT``).

    Raises:
        BadData: not a TFLite file.
    """
    data = path.read_bytes()
    if data[4:8] != _IDENTIFIER:
        raise BadData(f"{path.name} is not a TFLite file")
    return schema().ModelT.InitFromPackedBuf(data, 0)


def write(model: Any, path: Path) -> None:
    """Packs and writes a model."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    path.write_bytes(bytes(builder.Output()))


def op_name(model: Any, op: Any) -> str:
    """The operator's builtin name, ``CUSTOM`` for custom ones."""
    code = model.operatorCodes[op.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return str(_op_names()[number])


def dtype_name(tensor: Any) -> str:
    """numpy-style dtype name of a tensor."""
    names = {v: k for k, v in vars(schema().TensorType).items() if isinstance(v, int)}
    return str(names[tensor.type]).lower()


def constant(model: Any, tensor: Any) -> np.ndarray[Any, Any] | None:
    """A constant tensor's values, or None where the tensor is computed."""
    data = model.buffers[tensor.buffer].data if tensor.buffer else None
    if data is None or len(data) == 0:
        return None
    dtype = np.dtype(
        {"float32": "f4", "int8": "i1", "int32": "i4", "int64": "i8"}[dtype_name(tensor)]
    )
    return np.frombuffer(np.asarray(data, np.uint8).tobytes(), dtype).reshape(
        [int(n) for n in tensor.shape]
    )


def weights(model: Any) -> set[int]:
    """Indexes of the main subgraph's tensors that are the weight or bias of a layer."""
    layers = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
    return {
        int(index)
        for op in model.subgraphs[0].operators
        if op_name(model, op) in layers
        for index in op.inputs
    }


def float_boundary(model: Any) -> None:
    """Gives int8 inputs and outputs of the main subgraph a float32 boundary, in place.

    A ``QUANTIZE`` operator takes each float input to the integer tensor the graph starts from, and
    a ``DEQUANTIZE`` each integer result to float.
    """
    api = schema()
    graph = model.subgraphs[0]
    graph.inputs, graph.outputs = list(graph.inputs), list(graph.outputs)
    before, after = [], []
    for position, index in enumerate(graph.inputs):
        tensor = graph.tensors[index]
        if tensor.type != api.TensorType.INT8:
            continue
        graph.inputs[position] = _add_float(graph, tensor, b"_float")
        op = _operator(model, "QUANTIZE", [graph.inputs[position]], [index])
        before.append(op)
        _move_signature(model, "inputs", index, graph.inputs[position])
    for position, index in enumerate(graph.outputs):
        tensor = graph.tensors[index]
        if tensor.type != api.TensorType.INT8:
            continue
        graph.outputs[position] = _add_float(graph, tensor, b"_float")
        after.append(_operator(model, "DEQUANTIZE", [index], [graph.outputs[position]]))
        _move_signature(model, "outputs", index, graph.outputs[position])
    graph.operators = [*before, *graph.operators, *after]


def hard_swish_in_float(model: Any) -> None:
    """Puts a ``DEQUANTIZE`` before and a ``QUANTIZE`` behind every int8 ``HARD_SWISH``, in place.

    XNNPACK has that operator in float only: an int8 one cuts the graph in two, and runs in a kernel
    that costs more than all the convolutions around it (MobileNetV3-Small: 7.6 ms with it, 0.9 ms
    so). The answer is the plan's own, which the integer kernel's is not to the last step.
    """
    api = schema()
    graph = model.subgraphs[0]
    operators = []
    for op in graph.operators:
        ends = [graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]] if len(op.inputs) else []
        integers = ends and all(t.type == api.TensorType.INT8 for t in ends)
        if op_name(model, op) != "HARD_SWISH" or not integers:
            operators.append(op)
            continue
        source, result = op.inputs[0], op.outputs[0]
        op.inputs = [_add_float(graph, ends[0], b"_float")]
        op.outputs = [_add_float(graph, ends[1], b"_float")]
        operators.append(_operator(model, "DEQUANTIZE", [source], op.inputs))
        operators.append(op)
        operators.append(_operator(model, "QUANTIZE", op.outputs, [result]))
    graph.operators = operators


def rename_boundary(model: Any, inputs: list[str], outputs: list[str]) -> None:
    """Names the main subgraph's inputs and outputs, in the tensors and in its SignatureDef."""
    graph = model.subgraphs[0]
    for side, names in (("inputs", inputs), ("outputs", outputs)):
        indexes = list(getattr(graph, side))
        for index, name in zip(indexes, names, strict=True):
            graph.tensors[index].name = name.encode()
        for definition in model.signatureDefs or []:
            for entry in getattr(definition, side):
                entry.name = names[indexes.index(entry.tensorIndex)].encode()


def _add_float(graph: Any, like: Any, suffix: bytes) -> int:
    api = schema()
    tensor = api.TensorT()
    tensor.shape = list(like.shape)
    tensor.shapeSignature = None if like.shapeSignature is None else list(like.shapeSignature)
    tensor.type = api.TensorType.FLOAT32
    tensor.buffer = 0
    tensor.name = bytes(like.name) + suffix
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(model: Any, kind: str, inputs: list[int], outputs: list[int]) -> Any:
    api = schema()
    number = getattr(api.BuiltinOperator, kind)
    known = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    if number not in known:
        code = api.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = number
        code.version = 2 if kind == "DEQUANTIZE" else 1
        model.operatorCodes.append(code)
        known.append(number)
    op = api.OperatorT()
    op.opcodeIndex = known.index(number)
    op.inputs, op.outputs = inputs, outputs
    return op


def _move_signature(model: Any, side: str, old: int, new: int) -> None:
    for definition in model.signatureDefs or []:
        for entry in getattr(definition, side):
            if entry.tensorIndex == old:
                entry.tensorIndex = new


def _op_names() -> dict[int, str]:
    return {v: k for k, v in vars(schema().BuiltinOperator).items() if isinstance(v, int)}
