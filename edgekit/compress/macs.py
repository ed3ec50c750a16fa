"""Multiply-accumulates of a model, which of them a plan has on integers, and its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx

from edgekit.compress._nodes import COMPUTE, TABLES, aten, layer_of, tensor_of, weight_of
from edgekit.compress.plan import QuantPlan
from edgekit.compress.precision import integer_nodes, macs_of

__all__ = ["LayerMacs", "layers", "numbers", "products"]

_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default)
_ATTENTION = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class LayerMacs:
    """One convolution or linear layer.

    Attributes:
        name: the user's module and the node.
        macs: multiply-accumulates for one call; the bias's additions are not counted.
        integer: whether the plan has them on integers.
    """

    name: str
    macs: int
    integer: bool


def layers(module: fx.GraphModule, plan: QuantPlan) -> list[LayerMacs]:
    """Every convolution and linear layer of the canonical graph, in execution order.

    Embeddings multiply nothing and are left out.

    Args:
        module: the graph that the plan names its edges after.
        plan: its quantization, as the target computes it (`edgekit.compress.dynamic.as_computed`).
    """
    integer = {d.node for d in plan.dynamic}
    if plan.activations():
        integer |= integer_nodes(module, plan)
    return [
        LayerMacs(f"{layer_of(n)} ({n.name})", macs_of(module, n), n.name in integer)
        for n in module.graph.nodes
        if n.op == "call_function"
        and n.target in COMPUTE
        and n.target not in TABLES
        and tensor_of(module, weight_of(n)) is not None
    ]


def products(module: fx.GraphModule) -> int:
    """Multiply-accumulates of products of two computed tensors, such as attention's.

    No plan quantizes them.
    """
    total = 0
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        shapes = [tuple(n.meta["val"].shape) for n in node.all_input_nodes if "val" in n.meta]
        if node.target in _PRODUCTS and shapes:
            total += math.prod(node.meta["val"].shape) * shapes[0][-1]
        elif node.target is _ATTENTION:
            queries, keys, values = shapes[:3]
            scores = math.prod(queries[:-1]) * keys[-2]
            total += scores * (queries[-1] + values[-1])
    return total


def numbers(module: fx.GraphModule) -> int:
    """Floating-point numbers that a program's operators read, each constant once."""
    read = {
        str(n.target): tensor_of(module, n)
        for n in module.graph.nodes
        if n.op == "get_attr" and n.users
    }
    return sum(v.numel() for v in read.values() if v is not None and v.is_floating_point())
