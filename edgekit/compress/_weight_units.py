"""Keeping weights in float under a plan of weights, where nothing else depends on one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from torch import fx

from edgekit.compress._nodes import tensor_of
from edgekit.compress.plan import QuantPlan

_HALF_BYTES = {"int4": 7, "int8": 6, "float16": 4}
"""By how much a weight grows as float32, in half bytes."""


def keep_weights(
    module: fx.GraphModule,
    plan: QuantPlan,
    edges: Collection[str],
    nodes: Collection[str],
    reason: str,
) -> QuantPlan:
    """The plan without some weights, and with the input of their layers in float.

    Args:
        module: the graph that the plan names its edges after.
        plan: of weights alone.
        edges: nodes of the weights.
        nodes: the layers that read them.
        reason: why, for the plan's ``kept_float``.
    """
    asked = [n.name for n in module.graph.nodes if n.name in nodes]
    return dataclasses.replace(
        plan,
        edges=tuple(e for e in plan.edges if e.node not in edges),
        kept_float=(
            *((name, why) for name, why in plan.kept_float if name not in nodes),
            *((name, reason) for name in asked),
        ),
        dynamic=tuple(layer for layer in plan.dynamic if layer.node not in nodes),
    )


def grown_weights(module: fx.GraphModule, plan: QuantPlan, kept: QuantPlan) -> int:
    """Bytes by which the weights of ``kept`` are larger than those of ``plan``."""
    left = kept.constants()
    gone = {name: edge.dtype for name, edge in plan.constants().items() if name not in left}
    halves = 0
    for node in module.graph.nodes:
        value = tensor_of(module, node) if node.name in gone else None
        if value is not None:
            halves += _HALF_BYTES[gone[node.name]] * value.numel()
    return halves // 2
