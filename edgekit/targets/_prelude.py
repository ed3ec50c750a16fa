"""For targets with something of their own for a picture border: the graph without its prelude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx

if TYPE_CHECKING:
    from edgekit.compress.picture import Prelude

__all__ = ["cut"]


def cut(
    module: fx.GraphModule, prelude: Prelude, args: Sequence[torch.Tensor], *, behind: fx.Node
) -> tuple[int, tuple[torch.Tensor, ...]]:
    """Makes what a node of the prelude gives an input of the graph, in the pixels' place.

    Args:
        module: a graph with a picture border, changed in place.
        prelude: its border, of `edgekit.compress.picture.find_prelude`.
        args: example inputs of the graph.
        behind: the last node of the prelude to take away.

    Returns:
        The position of the picture among the inputs, and example inputs of the new graph.
    """
    graph = module.graph
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    position = inputs.index(prelude.pixels)
    fed = _run(module, prelude, args[position], behind)
    with graph.inserting_before(prelude.pixels):
        given = graph.placeholder(f"{prelude.pixels.name}_tensor")
    given.meta = {**behind.meta}
    behind.replace_all_uses_with(given)
    chain = prelude.nodes
    for node in reversed(chain[: chain.index(behind) + 1]):
        constants = [n for n in node.all_input_nodes if n.op == "get_attr"]
        graph.erase_node(node)
        for constant in constants:
            graph.erase_node(constant)
            delattr(module, str(constant.target))
    graph.erase_node(prelude.pixels)
    graph.lint()
    module.recompile()
    return position, (*args[:position], fed, *args[position + 1 :])


def _run(
    module: fx.GraphModule, prelude: Prelude, pixels: torch.Tensor, last: fx.Node
) -> torch.Tensor:
    """What the prelude makes of pixels up to its node ``last``."""
    values: dict[fx.Node, torch.Tensor] = {prelude.pixels: pixels}
    for node in prelude.nodes:
        for constant in node.all_input_nodes:
            if constant.op == "get_attr":
                values[constant] = getattr(module, str(constant.target))
        given = fx.node.map_arg(node.args, lambda n: values[n])
        values[node] = node.target(*given, **node.kwargs)  # type: ignore[operator]
        if node is last:
            break
    return values[last]
