"""What a rendering may leave out because integers do it by themselves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import fx

from edgekit.compress._nodes import MOVES, aten
from edgekit.compress.plan import Edge

CONVERTERS_CLAMPS = ((0.0, 6.0), (-1.0, 1.0))
_PADDING_CONVS = (aten.conv1d.default, aten.conv2d.default)


def absorbable_pads(module: fx.GraphModule, edges: Mapping[str, Edge]) -> set[fx.Node]:
    """Zeros around a quantized tensor that only convolutions read, and that keep its scale.

    The convolution can take the tensor itself and pad on its own, with the same result.
    """
    found = set()
    for node in module.graph.nodes:
        if node.target is not aten.constant_pad_nd.default or any(node.args[2:]):
            continue
        edge, source = edges.get(node.name), edges.get(node.args[0].name)
        if edge is None or source is None:
            continue
        alike = (edge.scale, edge.zero_point) == (source.scale, source.zero_point)
        read = all(u.target in _PADDING_CONVS and u.args[0] is node for u in node.users)
        spatial = len(node.args[1]) <= 2 * (node.meta["val"].dim() - 2)
        if alike and read and spatial and min(node.args[1]) >= 0:
            found.add(node)
    return found


def idle_moves(module: fx.GraphModule, edges: Mapping[str, Edge]) -> set[fx.Node]:
    """Data movement whose result has the scale of its source: quantizing it again does nothing."""
    found = set()
    for node in module.graph.nodes:
        if node.target not in MOVES:
            continue
        edge, source = edges.get(node.name), edges.get(node.args[0].name)
        if edge is None or source is None:
            continue
        if (edge.scale, edge.zero_point) == (source.scale, source.zero_point):
            found.add(node)
    return found


def saturating_clamps(module: fx.GraphModule, edges: Mapping[str, Edge]) -> set[fx.Node]:
    """Clamps whose limits are where the integers of their result end anyway.

    Those of ReLU6 and [-1, 1] are left: converters know them, and fuse them by themselves.
    """
    found = set()
    for node in module.graph.nodes:
        edge = edges.get(node.name)
        if node.target is not aten.hardtanh.default or edge is None or len(node.args) < 3:
            continue
        limits = (float(node.args[1]), float(node.args[2]))
        source = node.args[0]
        if limits in CONVERTERS_CLAMPS or source.name in edges or len(source.users) > 1:
            continue
        ends = edge.quantize(np.array(limits))
        if ends[0] == edge.quant_min and ends[1] == edge.quant_max:
            found.add(node)
    return found
