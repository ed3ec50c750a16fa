"""What a plan says of a model's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from edgekit.compress.graph import graph_module
from edgekit.compress.picture import find_prelude
from edgekit.compress.plan import QuantPlan
from edgekit.compress.taps import first_quantized

__all__ = ["input_ranges", "output_steps"]


def output_steps(
    program: torch.export.ExportedProgram, plan: QuantPlan, names: Sequence[str]
) -> dict[str, float | None]:
    """The quantization step of every output: the scale of the edge it is, None for a float one."""
    module = graph_module(program)
    last = next(n for n in reversed(module.graph.nodes) if n.op == "output")
    results = last.args[0]
    nodes = list(results) if isinstance(results, list | tuple) else [results]
    edges = plan.activations()
    return {
        name: edges[node.name].scale[0] if node.name in edges else None
        for name, node in zip(names, nodes, strict=True)
    }


def input_ranges(
    program: torch.export.ExportedProgram, plan: QuantPlan, names: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """The range of each input that the plan quantizes before anything is computed of it.

    Args:
        program: the canonical program.
        plan: its quantization.
        names: of the inputs, in the program's order.

    Returns:
        ``(low, high)`` by input name, in the input's units; inputs that stay in float are left out.
        Of pixels, the range in which any channel of them is held.
    """
    edges = plan.activations()
    module = graph_module(program)
    nodes = [n for n in module.graph.nodes if n.op == "placeholder"]
    prelude = find_prelude(module)
    found = {}
    for name, node in zip(names, nodes, strict=True):
        pixels = prelude is not None and prelude.pixels is node
        source = prelude.result if prelude is not None and pixels else node
        edge = edges.get(first_quantized(source, edges) or "")
        if edge is None:
            continue
        zero, step = edge.zero_point[0], edge.scale[0]
        ends = np.array([edge.quant_min - zero, edge.quant_max - zero]) * step
        if prelude is not None and pixels:
            ends = (ends[:, None] - prelude.offset) / prelude.factor
        found[name] = (float(ends.min()), float(ends.max()))
    return found
