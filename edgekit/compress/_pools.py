"""Pooling, written as the operators that runtimes have integer kernels for."""

from __future__ import annotations

import operator

from torch import fx

from edgekit.compress._nodes import aten

__all__ = ["state_max_pools", "state_pools"]


def state_pools(module: fx.GraphModule) -> None:
    """Writes a mean over the two last of four axes as global average pooling, which it is.

    Kernels pool pictures in the order that convolutions give them in; a mean is over axes of the
    model's own order, and converters move the picture first.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.mean.dim or node.kwargs:
            continue
        value = node.args[0].meta["val"]
        axes = [axis % max(value.dim(), 1) for axis in node.args[1] or ()]
        if value.dim() != 4 or sorted(axes) != [2, 3] or not value.dtype.is_floating_point:
            continue
        keeps, shape = len(node.args) > 2 and node.args[2], list(node.meta["val"].shape)
        node.target, node.args = aten.adaptive_avg_pool2d.default, (node.args[0], [1, 1])
        if not keeps:
            users = list(node.users)
            with module.graph.inserting_after(node):
                flat = module.graph.call_function(aten.reshape.default, (node, shape))
            flat.meta = dict(node.meta)
            for user in users:
                user.replace_input_with(node, flat)
            node.meta["val"] = node.meta["val"].reshape(*shape, 1, 1)


def state_max_pools(module: fx.GraphModule) -> None:
    """Writes adaptive max pooling as max pooling, where all its windows are of one size.

    Runtimes have no kernel for it. It gives indices too; where these are read it stays.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten.adaptive_max_pool2d.default:
            continue
        sizes = list(node.args[0].meta["val"].shape[-2:])
        wanted = [w or s for w, s in zip(node.args[1], sizes, strict=True)]
        if any(s % w for s, w in zip(sizes, wanted, strict=True)):
            continue
        if any(u.target is not operator.getitem or u.args[1] != 0 for u in node.users):
            continue
        window = [s // w for s, w in zip(sizes, wanted, strict=True)]
        for first in list(node.users):
            first.target, first.args = aten.max_pool2d.default, (node.args[0], window, window)
        graph.erase_node(node)
