"""Layers of ExecuTorch programs whose input XNNPACK quantizes while the model runs."""

from __future__ import annotations

import operator

import torch
from torch import fx

from edgekit.compress.plan import QuantPlan

_qd = torch.ops.quantized_decomposed
_LIMITS = (-128, 127)
_LEAST_SCALE = 2.0**-23  # stated in the operator; XNNPACK finds scales by itself


def quantize_inputs(module: fx.GraphModule, plan: QuantPlan) -> None:
    """Puts before each such layer what the partitioner makes XNNPACK's own quantization of.

    The operators say one scale for the tensor. XNNPACK takes one for each row of a linear layer,
    one for each pixel of a 1 x 1 convolution, and one for each picture under any other.
    """
    graph = module.graph
    nodes = {n.name: n for n in graph.nodes}
    done: dict[fx.Node, tuple[fx.Node, fx.Node, fx.Node]] = {}
    for dynamic in plan.dynamic:
        layer = nodes[dynamic.node]
        source = layer.args[0]
        assert isinstance(source, fx.Node)
        with graph.inserting_before(layer):
            if source not in done:
                done[source] = _quantized(graph, source)
            restored = graph.call_function(
                _qd.dequantize_per_tensor.tensor, (*done[source], *_LIMITS, torch.int8)
            )
        layer.args = (restored, *layer.args[1:])
    module.recompile()


def _quantized(graph: fx.Graph, source: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
    """Integers, scale and zero point of what a node gives."""
    chosen = graph.call_function(
        _qd.choose_qparams.tensor, (source, *_LIMITS, _LEAST_SCALE, torch.int8)
    )
    scale = graph.call_function(operator.getitem, (chosen, 0))
    zero = graph.call_function(operator.getitem, (chosen, 1))
    stored = graph.call_function(
        _qd.quantize_per_tensor.tensor, (source, scale, zero, *_LIMITS, torch.int8)
    )
    return stored, scale, zero
