"""Plans that quantize weights: ``fp16``, ``w8``, ``w4`` and ``w8a8-dyn``.

What is quantized are the constants of convolutions and linear layers and the tables of embeddings.
Activations and biases stay in float; under ``w8a8-dyn`` some layers quantize their input while the
model runs (`edgekit.compress.dynamic`). None of it needs calibration data.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import fx

from edgekit.compress._nodes import TABLES
from edgekit.compress.dynamic import dynamic_layers
from edgekit.compress.graph import (
    COMPUTE,
    channel_axis,
    graph_module,
    groups,
    program_digest,
    tensor_of,
)
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.errors import BadData, UnsupportedError

__all__ = ["quantize_weights"]

_LIMITS = {"int8": 127, "int4": 7}
_HALF = float(np.finfo(np.float16).max)
_NARROW = 32
"""Kernels of fewer inputs than this keep 8 bits under ``w4``: 15 values are too few for them, and
there is little to save (depthwise convolutions, the first layer of a picture)."""


def quantize_weights(program: torch.export.ExportedProgram, scheme: str) -> QuantPlan:
    """Makes the plan of a scheme that quantizes weights.

    Integers are symmetric, with one scale for each output channel or each row of an embedding's
    table. Under ``w4`` they are int4 within plus and minus 7, where a channel has `_NARROW` inputs
    or more, and int8 elsewhere and in tables.

    Args:
        program: the canonical program.
        scheme: one of `edgekit.names.WEIGHTS`.

    Raises:
        BadData: a weight holds NaN or infinity.
        UnsupportedError: the program has no weights of that kind.
    """
    module = graph_module(program)
    edges: list[Edge] = []
    kept: list[tuple[str, str]] = []
    for node, axis in _weights(module):
        value = tensor_of(module, node)
        assert value is not None
        if not bool(torch.isfinite(value).all()):
            raise BadData(f"the weight {node.target} holds NaN or infinity")
        if scheme == "fp16":
            if float(value.abs().max()) > _HALF:
                kept.append((node.name, "it has values beyond half precision"))
            else:
                edges.append(_half(node))
        else:
            edges.append(_integers(node, axis, value, "int4" if scheme == "w4" else "int8"))
    if not edges:
        raise UnsupportedError(
            "nothing in this model can be quantized: it has no convolution or linear layer "
            "with a constant weight, and no embedding",
            hint="use --scheme fp32",
        )
    names = {e.node for e in edges}
    dynamic = dynamic_layers(module, names) if scheme == "w8a8-dyn" else ()
    if scheme == "w8a8-dyn":
        chosen = {d.node for d in dynamic}
        kept += [
            (n.name, "its input stays in float: no runtime has such an integer kernel")
            for n in module.graph.nodes
            if n.target in COMPUTE and str(n.args[1]) in names and n.name not in chosen
        ]
    return QuantPlan(
        scheme, program_digest(program), tuple(edges), kept_float=tuple(kept), dynamic=dynamic
    )


def _weights(module: fx.GraphModule) -> Iterator[tuple[fx.Node, int]]:
    """Constants that are quantized, each once, with the axis of their channels."""
    seen: set[str] = set()
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in COMPUTE:
            weight, axis = node.args[1], channel_axis(node)
            if axis == 1 and groups(node) != 1:
                continue  # a channel's weights lie in several places
        elif node.target in TABLES:
            weight, axis = node.args[0], 0
        else:
            continue
        if tensor_of(module, weight) is None or weight.name in seen:
            continue
        if any(axis != other for other in _axes(weight)):
            continue
        seen.add(weight.name)
        yield weight, axis


def _axes(weight: fx.Node) -> Iterator[int | None]:
    """The channel axis that every reader of a constant sees; None for one that is no layer."""
    for user in weight.users:
        if user.target in COMPUTE and user.args[1] is weight:
            yield channel_axis(user)
        else:
            yield 0 if user.target in TABLES else None


def _half(node: fx.Node) -> Edge:
    return Edge(
        edge=str(node.target),
        node=node.name,
        kind="weight",
        dtype="float16",
        scale=(1.0,),
        zero_point=(0,),
        axis=None,
        quant_min=-int(_HALF),
        quant_max=int(_HALF),
    )


def _integers(node: fx.Node, axis: int, value: torch.Tensor, dtype: str) -> Edge:
    channels = value.movedim(axis, 0).reshape(value.shape[axis], -1)
    table = any(u.target in TABLES for u in node.users)
    if table or channels.shape[1] < _NARROW:
        dtype = "int8"
    limit = _LIMITS[dtype]
    scale = (channels.double().abs().amax(1) / limit).float()
    tiny = float(np.finfo(np.float32).tiny)
    scale = torch.where(scale > tiny, scale, torch.ones_like(scale))
    return Edge(
        edge=str(node.target),
        node=node.name,
        kind="weight",
        dtype="int4" if dtype == "int4" else "int8",
        scale=tuple(float(s) for s in scale),
        zero_point=(0,) * len(scale),
        axis=axis,
        quant_min=-limit,
        quant_max=limit,
    )
