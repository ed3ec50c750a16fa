"""Memory that a model's tensors need at once, by liveness.

Runtimes lay activations out in one arena in which a tensor's place is free again after its last
reader (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020, arXiv
2001.03288). The largest sum of what lives at one time is what no plan can do without.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from edgekit.bench.graph_layers import is_free, is_fused, size_of
from edgekit.compress.graph import tensor_of

__all__ = ["live_elements", "stored_elements"]


def live_elements(module: fx.GraphModule) -> int:
    """Most elements of computed tensors and inputs that live at one time."""
    nodes = list(module.graph.nodes)
    owner: dict[fx.Node, fx.Node] = {}
    sizes: dict[fx.Node, int] = {}
    for node in nodes:
        before = next((n for n in node.all_input_nodes if n in owner), None)
        if node.op == "call_function" and before is not None and (is_free(node) or is_fused(node)):
            owner[node] = owner[before]
        elif node.op in ("placeholder", "call_function"):
            size = size_of(node)
            if size:
                owner[node], sizes[node] = node, size
    last = _last_reads(nodes, owner)
    most = living = 0
    ends: dict[int, int] = {}
    for i, node in enumerate(nodes):
        if node in sizes:
            living += sizes[node]
            ends[last[node]] = ends.get(last[node], 0) + sizes[node]
        most = max(most, living)
        living -= ends.pop(i, 0)
    return most


def _last_reads(nodes: list[fx.Node], owner: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, int]:
    last: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes):
        if node in owner:
            last[owner[node]] = max(last.get(owner[node], i), i)
        for read in node.all_input_nodes:
            if read in owner:
                last[owner[read]] = i
    return last


def stored_elements(module: fx.GraphModule) -> int:
    """Numbers that the graph's operators read as constants, each once."""
    found = {}
    for node in module.graph.nodes:
        value = tensor_of(module, node) if node.users else None
        if value is not None:
            found[str(node.target)] = value.numel()
    return sum(found.values())
