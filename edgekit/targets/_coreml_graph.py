"""What coremltools (9.0) has no reader for, put into operators that it reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["restate"]

aten = torch.ops.aten

_LOGIC = {
    aten.__and__.Tensor: aten.logical_and.default,
    aten.__or__.Tensor: aten.logical_or.default,
    aten.__xor__.Tensor: aten.logical_xor.default,
    aten.bitwise_and.Tensor: aten.logical_and.default,
    aten.bitwise_or.Tensor: aten.logical_or.default,
    aten.bitwise_xor.Tensor: aten.logical_xor.default,
    aten.bitwise_not.default: aten.logical_not.default,
}
"""Alike on truth values, which is what attention masks are made of."""

_FILLED = {
    aten.new_ones.default: 1,
    aten.new_zeros.default: 0,
    aten.ones.default: 1,
    aten.zeros.default: 0,
}


def restate(module: fx.GraphModule) -> None:
    """Rewrites a rendered graph in place; the values stay the same."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        value = node.meta.get("val")
        if node.target in _LOGIC and isinstance(value, torch.Tensor):
            if value.dtype == torch.bool:
                node.target = _LOGIC[node.target]
        elif node.target in _FILLED and isinstance(value, torch.Tensor):
            _fill(module, node, value)
    module.graph.lint()
    module.recompile()


def _fill(module: fx.GraphModule, node: fx.Node, value: Any) -> None:
    """A tensor of one value, whatever it was to be like."""
    with module.graph.inserting_before(node):
        full = module.graph.call_function(
            aten.full.default,
            (list(value.shape), _FILLED[node.target]),  # type: ignore[index]
            {"dtype": value.dtype},
        )
    full.meta = {**node.meta}
    node.replace_all_uses_with(full)
    module.graph.erase_node(node)
