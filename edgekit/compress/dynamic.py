"""Quantizing a layer's input while the model runs, as runtimes do it under ``w8a8-dyn``.

The scale of 8 bits is taken from the smallest and largest value at hand, zero always among them, so
there is nothing to calibrate. What shares a scale differs between runtimes, and so the reference of
an artifact follows its runtime (`as_computed`): XNNPACK, under LiteRT, takes one for every row of a
linear layer, one for every pixel under a convolution of 1 x 1, which it computes as such a layer,
and else one for every picture (``xnn_f32_qd8_asymmetric_quantization_params``); ONNX's operator
``DynamicQuantizeLinear`` takes one for the whole tensor. The weights stay the plan's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from edgekit.compress._nodes import LINEARS, aten, compute_nodes, groups, layer_of
from edgekit.compress.arithmetic import NO_OTHERS, PER_ROW
from edgekit.compress.plan import Dynamic, QuantPlan

__all__ = ["as_computed", "dynamic_layers", "fake_dynamic"]

_LEAST_REACH = 1e-36


def dynamic_layers(module: fx.GraphModule, weights: set[str]) -> tuple[Dynamic, ...]:
    """The layers whose input is to be quantized at run time, in execution order.

    Linear layers and convolutions without groups: depthwise ones are bound by memory, and no
    runtime has such a kernel for them.

    Args:
        module: the canonical graph.
        weights: names of the nodes whose constants are quantized.
    """
    found = []
    for node in compute_nodes(module):
        if str(node.args[1]) not in weights or not _is_plain(node):
            continue
        per = PER_ROW.of(node)
        assert per is not None
        found.append(Dynamic(f"{layer_of(node)}/{node.name}", node.name, per))
    return tuple(found)


def _is_plain(node: fx.Node) -> bool:
    return node.target in LINEARS or (node.target is aten.conv2d.default and groups(node) == 1)


def as_computed(module: fx.GraphModule, plan: QuantPlan, target: Any) -> QuantPlan:
    """The plan with the run-time arithmetic of one runtime.

    Args:
        module: the canonical graph of the plan.
        plan: as it was made.
        target: an `edgekit.targets.Target`, whose ``dynamic`` is an `Arithmetic` where it carries
            ``w8a8-dyn``.
    """
    how = getattr(target, "dynamic", None)
    if not plan.dynamic or how is None:
        return plan
    nodes = {n.name: n for n in compute_nodes(module)}
    made = []
    for layer in plan.dynamic:
        per = how.of(nodes[layer.node])
        if per is not None:
            made.append(dataclasses.replace(layer, per=per))
    computed = dataclasses.replace(plan, dynamic=tuple(made))
    return computed if how.others else _without_others(nodes, computed)


def _without_others(nodes: Mapping[str, fx.Node], plan: QuantPlan) -> QuantPlan:
    """The plan with the weights of layers whose input stays in float kept in float too."""
    dynamic = {layer.node for layer in plan.dynamic}
    left = {name: str(node.args[1]) for name, node in nodes.items() if name not in dynamic}
    weights = set(left.values()) & set(plan.constants())
    kept = tuple((name, NO_OTHERS) for name, weight in left.items() if weight in weights)
    edges = tuple(e for e in plan.edges if e.node not in weights)
    return dataclasses.replace(plan, edges=edges, kept_float=(*plan.kept_float, *kept))


def fake_dynamic(x: torch.Tensor, per: str) -> torch.Tensor:
    """``x`` rounded to 256 steps between its own smallest and largest value, zero among them."""
    every = list(range(x.dim()))
    axes = {"row": [-1], "pixel": [1], "sample": every[1:], "tensor": every}[per]
    low = x.amin(axes, keepdim=True).clamp_max(0.0)
    high = x.amax(axes, keepdim=True).clamp_min(0.0)
    # Of a range under _LEAST_REACH 255 / range is no float32: the values count as the zeros that
    # they are to any sum that they go into.
    reach = torch.where(high - low > _LEAST_REACH, high - low, torch.full_like(low, 255.0))
    if per == "tensor":
        scale = reach / 255.0
        zero, steps = torch.round((-low / scale).clamp(0, 255)) - 128, torch.round(x / scale)
    else:
        # The zero point of a range like -1..1 lies between two integers, and which is taken decides
        # whether the values at one end are cut off. So this follows XNNPACK's float arithmetic.
        inverse = 255.0 / reach
        scale, ends = 1.0 / inverse, (low * inverse, high * inverse)
        from_low = (-128.0 + ends[0]) + (127.0 + ends[1]) > 0
        zero = torch.where(from_low, -128.0 - ends[0], 127.0 - ends[1]).clamp(-128, 127)
        zero, steps = torch.round(zero), torch.round(x * inverse)
    return ((steps + zero).clamp(-128, 127) - zero) * scale
