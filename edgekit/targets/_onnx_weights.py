"""Weights of ONNX files that compute in float: int8, int4 and half precision.

A stored weight is cast to float and multiplied with its scales. ONNX Runtime computes that once,
while it loads the file, and so runs as fast as it does in float; the file is what gets smaller. A
table of embeddings is read first and cast after, row by row, so it stays small in memory too.

Under ``w8a8-dyn`` linear layers become ``DynamicQuantizeLinear`` and ``MatMulInteger``, which the
runtime joins into one kernel (``DynamicQuantizeMatMul``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.graph import graph_module
from edgekit.compress.plan import QuantPlan
from edgekit.errors import UnsupportedError
from edgekit.targets import Stored
from edgekit.targets._common import channel_digest, half, pack_int4
from edgekit.targets._onnx_file import replace_nodes
from edgekit.targets._weights import Weight, Weights

if TYPE_CHECKING:
    import torch


def place(model: Any, program: torch.export.ExportedProgram, plan: QuantPlan) -> None:
    """Stores the plan's weights, found by their float values, in place.

    Raises:
        UnsupportedError: a weight is not in the file.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    weights = Weights(program, plan)
    layers = {d.node for d in plan.dynamic}
    dynamic = {str(n.args[1]) for n in graph_module(program).graph.nodes if n.name in layers}
    found: dict[str, Weight] = {}
    for item in graph.initializer:
        weight = weights.find(numpy_helper.to_array(item))
        if weight is not None:
            found[item.name] = weight
    kept_nodes = {w.edge.node for w in found.values()}
    for edge in plan.edges:
        if edge.node not in kept_nodes:
            raise UnsupportedError(
                f"onnxruntime: the converter does not keep the weight {edge.edge}",
                hint="use --scheme fp32, or leave this target out with --target",
            )
    kept = [i for i in graph.initializer if i.name not in found]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for name, weight in found.items():
        graph.initializer.append(_initializer(weight, f"{name}_stored"))
        if weight.scale is not None:
            graph.initializer.append(numpy_helper.from_array(weight.scale, f"{name}_scale"))
    nodes: list[Any] = []
    done: set[str] = set()

    def make(kind: str, inputs: list[str], output: str | list[str], **attributes: Any) -> None:
        outputs = [output] if isinstance(output, str) else output
        nodes.append(helper.make_node(kind, inputs, outputs, outputs[0], **attributes))

    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in found:
            _rows(make, node, found[node.input[0]])
            continue
        place_ = next((i for i, name in enumerate(node.input) if name in found), None)
        if place_ is None:
            nodes.append(node)
            continue
        name = node.input[place_]
        weight = found[name]
        if weight.edge.node in dynamic and node.op_type in ("MatMul", "Gemm") and place_ == 1:
            _product(graph, make, node, weight, done)
            continue
        if name not in done:
            done.add(name)
            _restored(make, name, weight)
        node.input[place_] = f"{name}_real"
        nodes.append(node)
    replace_nodes(graph, nodes)


def _initializer(weight: Weight, name: str) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    if weight.edge.dtype != "int4":
        return numpy_helper.from_array(np.ascontiguousarray(weight.stored), name)
    packed = pack_int4(weight.stored).tobytes()
    return helper.make_tensor(name, TensorProto.INT4, weight.stored.shape, packed, raw=True)


_Make = Callable[..., None]


def _restored(make: _Make, name: str, weight: Weight) -> None:
    """The float weight, computed from what is stored."""
    if weight.scale is None:
        make("Cast", [f"{name}_stored"], f"{name}_real", to=1)
        return
    make("Cast", [f"{name}_stored"], f"{name}_cast", to=1)
    make("Mul", [f"{name}_cast", f"{name}_scale"], f"{name}_real")


def _rows(make: _Make, node: Any, weight: Weight) -> None:
    """Rows of a table, made float after they were read."""
    table, result = node.input[0], node.output[0]
    make("Gather", [f"{table}_stored", node.input[1]], f"{result}_stored")
    if weight.scale is None:
        make("Cast", [f"{result}_stored"], result, to=1)
        return
    make("Gather", [f"{table}_scale", node.input[1]], f"{result}_scale")
    make("Cast", [f"{result}_stored"], f"{result}_cast", to=1)
    make("Mul", [f"{result}_cast", f"{result}_scale"], result)


def _product(graph: Any, make: _Make, node: Any, weight: Weight, done: set[str]) -> None:
    """A linear layer whose input is quantized while the model runs."""
    from onnx import numpy_helper

    source, name, result = node.input[0], node.input[1], node.output[0]
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    stored = f"{name}_stored"
    if turned and stored not in done:
        done.add(stored)
        old = next(i for i in graph.initializer if i.name == stored)
        graph.initializer.remove(old)
        graph.initializer.append(numpy_helper.from_array(weight.stored.T.copy(), stored))
    steps = [f"{source}_{part}" for part in ("quantized", "step", "zero")]
    if source not in done:
        done.add(source)
        make("DynamicQuantizeLinear", [source], steps)
    flat_name = f"{name}_scales"
    if flat_name not in done:
        done.add(flat_name)
        row = np.asarray(weight.edge.scale, np.float32)
        graph.initializer.append(numpy_helper.from_array(row, flat_name))
    bias = node.op_type == "Gemm" and len(node.input) > 2
    real = f"{result}_product" if bias else result
    make("MatMulInteger", [steps[0], stored, steps[2]], f"{result}_sums")
    make("Cast", [f"{result}_sums"], f"{result}_cast", to=1)
    make("Mul", [steps[1], flat_name], f"{result}_scale")
    make("Mul", [f"{result}_cast", f"{result}_scale"], real)
    if bias:
        make("Add", [real, node.input[2]], result)


def stored(values: Mapping[str, np.ndarray[Any, Any]]) -> list[Stored]:
    """What `place` put among a file's constants, in the plan's terms."""
    found = []
    for name, value in values.items():
        base = name.removesuffix("_stored")
        if base == name:
            continue
        # Products of integers have their channels last and the scales in a row.
        scale, row = values.get(f"{base}_scale"), values.get(f"{base}_scales")
        if value.dtype == np.float16:
            found.append(half(name, value))
        elif scale is not None or row is not None:
            scale = row.reshape(1, -1) if scale is None and row is not None else scale
            assert scale is not None
            axis = next(i for i, n in enumerate(scale.shape) if n == scale.size)
            scales = tuple(float(s) for s in scale.reshape(-1))
            digest = channel_digest(value.astype(np.int8), axis)
            found.append(Stored(name, "weight", scales, (0,) * len(scales), digest))
    return found
