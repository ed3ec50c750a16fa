"""Weights of ``.tflite`` files that compute in float: int8 and half precision.

The converter is given int8 weights and float activations, and writes operators that take both
(its "dynamic range" mode). Which of them stay so is the plan's word: under ``w8a8-dyn`` LiteRT's
kernels (XNNPACK's ``qd8_f32_qc8w``) quantize the input of linear layers and of convolutions without
groups. Before every other layer a ``DEQUANTIZE`` is put, which XNNPACK computes once, while the
file is loaded. Tables of embeddings stay as they are: ``EMBEDDING_LOOKUP`` dequantizes the rows
that it reads; those of half precision are made float behind it.

There is no int4: LiteRT 2.3 reads it, yet XNNPACK leaves its ``DEQUANTIZE`` to a kernel that runs
in every call. A sentence encoder took 3.4 times as long as in float, a mobile CNN 1.8 times.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.graph import graph_module
from edgekit.compress.plan import QuantPlan
from edgekit.compress.weights import quantize_weights
from edgekit.errors import UnsupportedError
from edgekit.targets import _tflite_file
from edgekit.targets._weights import Weight, Weights

if TYPE_CHECKING:
    import torch

_TABLE = "EMBEDDING_LOOKUP"
_LAYERS = {
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "TRANSPOSE_CONV": 1,
    _TABLE: 1,
}
"""Which input is the weight."""


def carrier(program: torch.export.ExportedProgram, plan: QuantPlan) -> QuantPlan:
    """The plan that the converter is given: all weights as integers of 8 bits per channel.

    Half precision has no integers: there they only mark which constant is which weight. So they do
    for what the plan keeps in float, as the converter would quantize that by itself.
    """
    own = {} if plan.scheme == "fp16" else plan.constants()
    edges = tuple(own.get(e.node, e) for e in quantize_weights(program, "w8").edges)
    return dataclasses.replace(plan, edges=edges, dynamic=())


def place(
    model: Any, program: torch.export.ExportedProgram, plan: QuantPlan, written: QuantPlan
) -> None:
    """Puts the plan's own weights in the place of the integers that were written, in place.

    Raises:
        UnsupportedError: the converter left a weight out, or made another of it.
    """
    weights = Weights(program, plan, written)
    dynamic = _dynamic_weights(program, plan)
    graph = model.subgraphs[0]
    operators: list[Any] = []
    dequantized: dict[int, int] = {}
    done: dict[int, Weight] = {}
    for op in graph.operators:
        name = _tflite_file.op_name(model, op)
        position = _LAYERS.get(name)
        index = op.inputs[position] if position is not None else -1
        value = _integers(model, graph.tensors[index]) if index >= 0 else None
        if value is None:
            operators.append(op)
            continue
        if index not in done:
            found = weights.find(value)
            if found is None:
                raise _lost(_tflite_file.readable(graph.tensors[index]))
            _store(model, graph.tensors[index], found)
            done[index] = found
        if done[index].stored.dtype == np.float32:
            operators.append(op)
            continue
        edge = done[index].edge
        if name == _TABLE:
            operators.append(op)
            if edge.dtype == "float16":
                operators.append(_half_rows(model, op))
            continue
        if edge.node in dynamic:
            if name == "FULLY_CONNECTED":
                op.builtinOptions.asymmetricQuantizeInputs = True
        else:
            if index not in dequantized:
                dequantized[index] = _tflite_file.add_float(graph, graph.tensors[index], b"_float")
                made = [dequantized[index]]
                operators.append(_tflite_file.operator(model, "DEQUANTIZE", [index], made))
            op.inputs = [dequantized[index] if i == index else i for i in op.inputs]
        operators.append(op)
    graph.operators = operators
    kept = {w.edge.node for w in done.values()}
    for edge in plan.edges:
        if edge.node not in kept:
            raise _lost(edge.edge)


def _half_rows(model: Any, op: Any) -> Any:
    """The operator that makes float of the rows that a table of half precision gives."""
    graph, result = model.subgraphs[0], op.outputs[0]
    rows = _tflite_file.add_float(graph, graph.tensors[result], b"_half")
    graph.tensors[rows].type = _tflite_file.schema().TensorType.FLOAT16
    op.outputs = [rows]
    return _tflite_file.operator(model, "DEQUANTIZE", [rows], [result])


def _lost(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"tflite: the converter does not keep the weight {name} as integers",
        hint="use --scheme fp32, or leave this target out with --target",
    )


def _dynamic_weights(program: torch.export.ExportedProgram, plan: QuantPlan) -> set[str]:
    """Weights of the layers whose input the plan quantizes at run time."""
    layers = {d.node for d in plan.dynamic}
    return {str(n.args[1]) for n in graph_module(program).graph.nodes if n.name in layers}


def _integers(model: Any, tensor: Any) -> np.ndarray[Any, Any] | None:
    if _tflite_file.dtype_name(tensor) != "int8":
        return None
    return _tflite_file.constant(model, tensor)


def _store(model: Any, tensor: Any, weight: Weight) -> None:
    if weight.stored.dtype == np.int8:
        return
    api = _tflite_file.schema()
    half = weight.stored.dtype == np.float16
    tensor.type = api.TensorType.FLOAT16 if half else api.TensorType.FLOAT32
    tensor.quantization = None
    readers = sum(t.buffer == tensor.buffer for g in model.subgraphs for t in g.tensors)
    if readers > 1:
        model.buffers.append(api.BufferT())
        tensor.buffer = len(model.buffers) - 1
    model.buffers[tensor.buffer].data = np.frombuffer(weight.stored.tobytes(), np.uint8)
