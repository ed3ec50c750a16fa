"""Embeddings in ExecuTorch programs: rows are looked up as integers, then scaled to float."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from edgekit.compress._nodes import aten
from edgekit.compress.graph import tensor_of
from edgekit.targets import Stored
from edgekit.targets._common import channel_digest

if TYPE_CHECKING:
    from edgekit.targets._executorch_file import Contents

_LOOKUP = "aten::embedding.out"


def look_up_integers(module: fx.GraphModule) -> None:
    """``embedding(dequantize(table), ids)`` becomes a look-up of integers and one of their scales.

    ExecuTorch's core has no operator that dequantizes a table, and to do so at every call would
    be waste. A row's integers times its scale are the same float32 product either way.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not aten.embedding.default:
            continue
        source, ids = node.args[:2]
        if not isinstance(source, fx.Node) or "dequantize_per_channel" not in str(source.target):
            continue
        table, scale = source.args[0], source.args[1]
        assert isinstance(table, fx.Node) and isinstance(scale, fx.Node)
        steps = tensor_of(module, scale)
        assert steps is not None
        column = f"{scale.target}_rows"
        module.register_buffer(column, steps.reshape(-1, 1))
        with graph.inserting_before(node):
            integers = graph.call_function(aten.embedding.default, (table, ids))
            real = graph.call_function(aten._to_copy.default, (integers,), {"dtype": torch.float32})
            rows = graph.call_function(aten.embedding.default, (graph.get_attr(column), ids))
            product = graph.call_function(aten.mul.Tensor, (real, rows))
        node.replace_all_uses_with(product)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


def stored_tables(contents: Contents) -> list[Stored]:
    """Tables of integers, each with the scales that are looked up by the same indices."""
    lookups = [o for o in contents.operators if o.kind == _LOOKUP]
    found = []
    for one in lookups:
        table = contents.values[one.inputs[0]]
        if table.dtype != "int8" or table.data is None:
            continue
        for other in lookups:
            steps = contents.values[other.inputs[0]]
            same = other.inputs[1] == one.inputs[1] and steps.shape == (table.shape[0], 1)
            if same and steps.dtype == "float32" and steps.data is not None:
                scale = tuple(np.frombuffer(steps.data, "<f4").tolist())
                digest = channel_digest(np.frombuffer(table.data, np.int8).reshape(table.shape), 0)
                zeros = (0,) * len(scale)
                found.append(Stored(one.inputs[0], "weight", scale, zeros, digest))
                break
    return found
