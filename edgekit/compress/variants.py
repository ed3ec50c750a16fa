"""Overrides that limit weights, for a plan that is finished: trained, or given by somebody.

Post-training makes these from weights that are not rounded yet (`edgekit.compress.ptq`). Here the
finished plan's own integers are what is to be kept: layers at risk alone are rounded anew, within
the limit, and their biases corrected; every other layer keeps its integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from edgekit.compress.graph import (
    compute_nodes,
    graph_module,
    program_digest,
    tensor_of,
    with_constants,
)
from edgekit.compress.plan import CHANGES, Edge, QuantPlan
from edgekit.compress.ptq import Quantized, few_of
from edgekit.compress.reconstruct import reconstruct
from edgekit.compress.saturation import at_risk, limited

__all__ = ["variants_of"]


def variants_of(
    quantized: Quantized, feeds: Sequence[tuple[torch.Tensor, ...]], names: Sequence[str]
) -> Quantized:
    """The same program and plan, with those of overrides that limit weights beside them.

    Args:
        quantized: a program and its ``w8a8`` plan.
        feeds: calibration samples, 2 or more, one tuple of tensors each, batch of 1.
        names: of overrides (`edgekit.names.OVERRIDES`).
    """
    made = {}
    for name in names:
        limit = max((c.get("weight_limit", 0) for c in CHANGES[name].values()), default=0)
        if limit:
            variant = _limited(quantized, limit, feeds)
            plan = dataclasses.replace(
                variant.plan,
                overrides=quantized.plan.overrides,
                variant=name,
                origin=quantized.plan.origin or quantized.plan.program_digest,
            )
            made[name] = Quantized(variant.program, plan)
    return dataclasses.replace(quantized, variants=made)


def _limited(
    quantized: Quantized, limit: int, feeds: Sequence[tuple[torch.Tensor, ...]]
) -> Quantized:
    """Layers that could saturate, and those that come to, within ``limit``."""
    # Integers as they are stored, not what they were rounded from.
    program = _stored(quantized)
    few = few_of(graph_module(program), feeds)
    weights: set[str] = set()
    made = quantized
    while risks := {risk.weight for risk in at_risk(made.program, made.plan)} - weights:
        weights |= risks
        whole = limited(program, quantized.plan, weights, limit)
        part = dataclasses.replace(whole, edges=_of_layers(program, whole, weights))
        part = dataclasses.replace(part, program_digest=program_digest(program))
        new, rounded = reconstruct(program, part, few)
        fresh = {(e.kind, e.node): e for e in rounded.edges}
        edges = tuple(fresh.get((e.kind, e.node), e) for e in whole.edges)
        plan = dataclasses.replace(whole, edges=edges, program_digest=program_digest(new))
        made = Quantized(new, plan)
    return made


def _stored(quantized: Quantized) -> torch.export.ExportedProgram:
    """The program with its weights on the plan's grid."""
    module, constants = graph_module(quantized.program), quantized.plan.constants()
    values = {}
    for node in module.graph.nodes:
        edge = constants.get(node.name) if node.op == "get_attr" else None
        value = tensor_of(module, node)
        if edge is not None and edge.kind == "weight" and value is not None:
            values[str(node.target)] = torch.from_numpy(edge.round(value.numpy()))
    return with_constants(quantized.program, values)


def _of_layers(
    program: torch.export.ExportedProgram, plan: QuantPlan, weights: set[str]
) -> tuple[Edge, ...]:
    """All activations, and the constants of some layers."""
    kept = set(weights)
    for node in compute_nodes(graph_module(program)):
        if str(node.args[1]) in weights:
            kept |= {str(argument) for argument in node.args[1:3]}
    return tuple(e for e in plan.edges if e.kind == "activation" or e.node in kept)
