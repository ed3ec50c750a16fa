"""Embeddings in ONNX files: rows are gathered as integers, and only those become real numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.targets import Stored
from edgekit.targets._common import channel_digest


def gather_integers(model: Any) -> None:
    """``Gather(DequantizeLinear(table))`` becomes a gather of integers and one of their scales.

    The runtime would else dequantize the whole table at every call. A row's integers times its
    scale are the same float32 product either way.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    values = {i.name: i for i in graph.initializer}
    maker = {o: n for n in graph.node for o in n.output}
    nodes = []
    for node in graph.node:
        source = maker.get(node.input[0]) if node.op_type == "Gather" else None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if source is None or not _is_table(source, values) or axis != 0:
            nodes.append(node)
            continue
        table, scale = source.input[:2]
        base = node.output[0]
        column = f"{table}_scale_rows"
        if column not in values:
            rows = numpy_helper.to_array(values[scale]).reshape(-1, 1)
            values[column] = numpy_helper.from_array(rows, column)
            graph.initializer.append(values[column])
        integers, real, steps = (f"{base}_{part}" for part in ("int8", "steps", "scale"))
        nodes += [
            helper.make_node("Gather", [table, node.input[1]], [integers], integers, axis=0),
            helper.make_node("Cast", [integers], [real], real, to=TensorProto.FLOAT),
            helper.make_node("Gather", [column, node.input[1]], [steps], steps, axis=0),
            helper.make_node("Mul", [real, steps], [base], node.name or base),
        ]
    read = {name for node in nodes for name in node.input} | {o.name for o in graph.output}
    nodes = [n for n in nodes if any(o in read for o in n.output)]
    # Copies, because clearing the list below empties nodes that live in it.
    copied = [type(n).FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copied)


def _is_table(source: Any, values: dict[str, Any]) -> bool:
    """Whether a node dequantizes constant int8 rows, each with a scale of its own."""
    from onnx import numpy_helper

    if source.op_type != "DequantizeLinear" or not set(source.input[:2]) <= set(values):
        return False
    table, scale = (numpy_helper.to_array(values[name]) for name in source.input[:2])
    axis = next((a.i for a in source.attribute if a.name == "axis"), 1)
    return bool(table.dtype == np.int8 and table.ndim == 2 and (axis, scale.ndim) == (0, 1))


def stored_tables(graph: Any, values: dict[str, np.ndarray[Any, Any]]) -> list[Stored]:
    """The tables that `gather_integers` wrote, with the scales that their rows are given.

    Args:
        graph: of the file.
        values: its constants by name.
    """
    maker = {o: n for n in graph.node for o in n.output}
    found: dict[Stored, None] = {}
    for node in graph.node:
        if node.op_type != "Mul":
            continue
        cast, steps = (maker.get(name) for name in node.input)
        rows = maker.get(cast.input[0]) if cast is not None and cast.op_type == "Cast" else None
        if rows is None or steps is None or {rows.op_type, steps.op_type} != {"Gather"}:
            continue
        table, scale = (values.get(n.input[0]) for n in (rows, steps))
        if table is None or scale is None or table.dtype != np.int8:
            continue
        # Scales of other rows than the integers' would be another table.
        same = rows.input[1] == steps.input[1]
        step = tuple(float(s) for s in scale.reshape(-1)) if same else ()
        digest = channel_digest(table, 0)
        found[Stored(rows.input[0], "weight", step, (0,) * len(step), digest)] = None
    return list(found)
