"""Reading and rewriting ``.tflite`` files through their flatbuffer schema.

The schema's generated classes come with the LiteRT wheel. Spec: the TensorFlow Lite schema,
file identifier ``TFL3``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import BadData

if TYPE_CHECKING:
    from edgekit.compress.plan import Edge

_IDENTIFIER = b"TFL3"
_DEQUANTIZE_VERSION = 5
"""The first that takes int8 per channel and float16."""


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


_DTYPES = {
    "float32": "f4",
    "float16": "f2",
    "int8": "i1",
    "int16": "i2",
    "int32": "i4",
    "int64": "i8",
    "bool": "?",
}


def constant(model: Any, tensor: Any) -> np.ndarray[Any, Any] | None:
    """A constant tensor's values, or None where the tensor is computed."""
    data = model.buffers[tensor.buffer].data if tensor.buffer else None
    if data is None or len(data) == 0:
        return None
    shape = [int(n) for n in tensor.shape]
    raw, name = np.asarray(data, np.uint8), dtype_name(tensor)
    return np.frombuffer(raw.tobytes(), np.dtype(_DTYPES[name])).reshape(shape)


def readable(tensor: Any) -> str:
    """A short name of a tensor."""
    name = bytes(tensor.name).decode(errors="replace")
    return name.rsplit("/", 1)[-1].split(";")[0] or name


def weights(model: Any) -> set[int]:
    """Indexes of the main subgraph's tensors that are the weight or bias of a layer, or a table."""
    layers = (
        *("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"),
        *("FULLY_CONNECTED", "EMBEDDING_LOOKUP"),
    )
    return {
        int(index)
        for op in model.subgraphs[0].operators
        if op_name(model, op) in layers
        for index in op.inputs
    }


def float_boundary(model: Any) -> None:
    """Gives int8 and int16 inputs and outputs of the main subgraph a float32 boundary, in place.

    A ``QUANTIZE`` operator takes each float input to the integer tensor the graph starts from, and
    a ``DEQUANTIZE`` each integer result to float.
    """
    api = schema()
    graph = model.subgraphs[0]
    graph.inputs, graph.outputs = list(graph.inputs), list(graph.outputs)
    integers = (api.TensorType.INT8, api.TensorType.INT16)
    before, after = [], []
    for position, index in enumerate(graph.inputs):
        tensor = graph.tensors[index]
        if tensor.type not in integers:
            continue
        graph.inputs[position] = add_float(graph, tensor, b"_float")
        op = operator(model, "QUANTIZE", [graph.inputs[position]], [index])
        before.append(op)
        _move_signature(model, "inputs", index, graph.inputs[position])
    for position, index in enumerate(graph.outputs):
        tensor = graph.tensors[index]
        if tensor.type not in integers:
            continue
        graph.outputs[position] = add_float(graph, tensor, b"_float")
        after.append(operator(model, "DEQUANTIZE", [index], [graph.outputs[position]]))
        _move_signature(model, "outputs", index, graph.outputs[position])
    graph.operators = [*before, *graph.operators, *after]


def integer_tables(model: Any, tables: list[tuple[np.ndarray[Any, Any], Edge]]) -> None:
    """Stores embeddings' tables as int8 with a scale for each row, in place.

    The converter leaves them float. ``EMBEDDING_LOOKUP`` takes int8 and multiplies the rows that it
    gives with their scales, which are the very numbers that the float table holds.

    Args:
        model: as `read` gives it.
        tables: the integers of each, and their edge of the plan.
    """
    api = schema()
    graph = model.subgraphs[0]
    readers: dict[int, set[str]] = {}
    for op in graph.operators:
        for index in op.inputs:
            readers.setdefault(int(index), set()).add(op_name(model, op))
    for index in (i for i, kinds in readers.items() if kinds == {"EMBEDDING_LOOKUP"}):
        tensor = graph.tensors[index]
        value = constant(model, tensor)
        if value is None or value.dtype != np.float32:
            continue
        for integers, edge in tables:
            if value.shape != integers.shape or (value != edge.dequantize(integers)).any():
                continue
            params = api.QuantizationParametersT()
            params.scale = np.asarray(edge.scale, np.float32)
            params.zeroPoint = np.zeros(len(edge.scale), np.int64)
            params.quantizedDimension = edge.axis or 0
            tensor.type, tensor.quantization = api.TensorType.INT8, params
            set_buffer(model, tensor, integers)
            break


def set_buffer(model: Any, tensor: Any, value: np.ndarray[Any, Any]) -> None:
    """Gives a constant tensor other bytes; tensors that share its buffer keep theirs."""
    shared = sum(t.buffer == tensor.buffer for g in model.subgraphs for t in g.tensors) > 1
    if shared:
        model.buffers.append(schema().BufferT())
        tensor.buffer = len(model.buffers) - 1
    model.buffers[tensor.buffer].data = np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def drop_unread(model: Any) -> None:
    """Drops operators whose results nothing reads any more, and the bytes of such constants."""
    graph = model.subgraphs[0]
    while True:
        read = {int(i) for op in graph.operators for i in op.inputs} | {*map(int, graph.outputs)}
        kept = [op for op in graph.operators if any(int(i) in read for i in op.outputs)]
        if len(kept) == len(graph.operators):
            break
        graph.operators = kept
    for index, tensor in enumerate(graph.tensors):
        if index not in read and constant(model, tensor) is not None:
            buffer, tensor.buffer = tensor.buffer, 0
            if not any(t.buffer == buffer for g in model.subgraphs for t in g.tensors):
                model.buffers[buffer].data = None


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


def add_float(graph: Any, like: Any, suffix: bytes) -> int:
    """Adds a float tensor of the shape of ``like`` to a subgraph, and gives its index."""
    api = schema()
    tensor = api.TensorT()
    tensor.shape = list(like.shape)
    tensor.shapeSignature = None if like.shapeSignature is None else list(like.shapeSignature)
    tensor.type = api.TensorType.FLOAT32
    tensor.buffer = 0
    tensor.name = bytes(like.name) + suffix
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def operator(model: Any, kind: str, inputs: list[int], outputs: list[int]) -> Any:
    """An operator of a type, which is entered into the model's list of types where it is new."""
    api = schema()
    number = getattr(api.BuiltinOperator, kind)
    known = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    if number not in known:
        code = api.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = number
        versions = {"DEQUANTIZE": _DEQUANTIZE_VERSION, "ADD": 2, "MUL": 2}
        code.version = versions.get(kind, 1)
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
