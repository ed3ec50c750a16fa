"""Which parts of a plan can be given a higher precision by themselves, and what that takes.

A `Unit` is the smallest part that it makes sense to decide about: a layer with its weight, its bias
and the tensor that it gives, or a tensor that no layer gives (a model's input, a sum). Tensors that
share a scale go together, as layers do that share a weight or are concatenated.

`keep_float` leaves units in float and whatever can't be integer without them: a kernel computes on
integers only if all that it reads and what it gives are quantized. Nothing is left dangling: no
weight without its input, no quantized tensor that no integer kernel writes or reads. Between a
layer in float and one on integers the tensor stays quantized, which is where a rendering puts a
quantize or dequantize.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from edgekit.compress._nodes import INTEGER_KERNELS, TABLES, weight_of
from edgekit.compress._weight_units import grown_weights, keep_weights
from edgekit.compress.annotate import is_fused_activation
from edgekit.compress.graph import (
    COMPUTE,
    aten,
    compute_nodes,
    layer_of,
    tensor_of,
    with_constants,
)
from edgekit.compress.plan import Edge, QuantPlan

__all__ = [
    "Cost",
    "Unit",
    "all_macs",
    "cost_of",
    "find_units",
    "float_constants",
    "integer_nodes",
    "keep_float",
    "macs_of",
    "with_float_constants",
]

BORDER_MACS = 8
"""What quantizing or dequantizing one element costs, in multiply-accumulates: an estimate, from a
vector unit that makes 8 to 16 of those in the time in which it converts one value."""


@dataclass(frozen=True)
class Unit:
    """What is quantized or kept in float together.

    Attributes:
        name: ``module path (node)`` of its layer, or of the operator that gives its tensor.
        kind: ``layer`` or ``activation``.
        nodes: its layers, or the nodes that give its tensors.
        edges: the nodes of the plan's edges that are its own.
    """

    name: str
    kind: Literal["layer", "activation"]
    nodes: tuple[str, ...]
    edges: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What keeping something in float costs.

    Attributes:
        macs: multiply-accumulates that move from int8 to float.
        bytes: by which the weights grow.
        border: elements that are quantized or dequantized at a border between the two, more than
            before.
    """

    macs: int
    bytes: int
    border: int

    @property
    def total(self) -> int:
        """In multiply-accumulates; see `BORDER_MACS`. Never 0, so that it can be divided by.

        A byte counts as one: what it takes to read it, or to carry it.
        """
        return max(1, self.macs + BORDER_MACS * self.border + self.bytes)


def find_units(module: fx.GraphModule, plan: QuantPlan) -> list[Unit]:
    """Every unit of a plan, in execution order; each of the plan's edges is in exactly one.

    Args:
        module: the graph that the plan names its edges after.
        plan: its quantization.
    """
    acts, constants = plan.activations(), plan.constants()
    by_name = {n.name: n for n in module.graph.nodes}
    order = {name: i for i, name in enumerate(by_name)}
    results = {_result(n, acts): n.name for n in compute_nodes(module)}
    # Sets that grow together where a layer is in two of them: its weight's, and its result's scale.
    parts: list[tuple[set[str], set[str]]] = []  # nodes, edges
    for layer in _layers(module):
        if weight_of(layer).name in constants:
            same = {weight_of(n).name for n in _layers(module) if _same_weight(n, layer)}
            parts.append(({layer.name}, (_own(layer) | same) & set(constants)))
    for members in _groups(module, acts):
        makers = {m for m in members if not _moved(by_name[m], members)}
        parts.append(({results.get(m, m) for m in makers}, set(members)))
    found = []
    for nodes, edges in _merged(parts):
        layers = [n for n in nodes if by_name[n].target in (*COMPUTE, *TABLES)]
        named = sorted(layers or nodes, key=order.__getitem__)
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        found.append(
            Unit(
                f"{_title(by_name[named[0]])}{more}",
                "layer" if layers else "activation",
                tuple(sorted(nodes, key=order.__getitem__)),
                tuple(sorted(edges, key=order.__getitem__)),
            )
        )
    return sorted(found, key=lambda unit: order[unit.nodes[0]])


def keep_float(
    module: fx.GraphModule, plan: QuantPlan, units: Iterable[Unit], *, reason: str = "kept"
) -> QuantPlan:
    """The plan with some units, and what can't be integer without them, in float.

    Args:
        module: the graph that the plan names its edges after.
        plan: its quantization.
        units: of `find_units`.
        reason: why, for the plan's ``kept_float``.

    Returns:
        A plan with fewer edges, under the same program digest; see `float_constants`.
    """
    chosen = list(units)
    if not plan.activations():
        return keep_weights(
            module,
            plan,
            {edge for unit in chosen for edge in unit.edges},
            {node for unit in chosen for node in unit.nodes},
            reason,
        )
    dropped = {edge for unit in chosen for edge in unit.edges}
    edges = {e.node: e for e in plan.edges if e.node not in dropped}
    before = _supported(module, {e.node: e for e in plan.edges})
    while True:
        integer, used = _supported(module, edges)
        constants = _constants_of(module, before[0] - integer)
        lost = (before[1] - used) | constants
        if not lost & set(edges):
            break
        edges = {name: edge for name, edge in edges.items() if name not in lost}
    asked = {node for unit in chosen for node in unit.nodes}
    by_name = {n.name: n for n in module.graph.nodes}
    lost = before[0] - integer
    kept = [(name, why) for name, why in plan.kept_float if name not in lost]
    for name in (n.name for n in module.graph.nodes if n.name in lost):
        why = reason if name in asked else f"beside {_beside(by_name[name], asked)}: {reason}"
        kept.append((name, why))
    whole = tuple(e for e in plan.edges if e.node in edges)
    return dataclasses.replace(plan, edges=whole, kept_float=tuple(kept))


def float_constants(
    module: fx.GraphModule, plan: QuantPlan, kept: QuantPlan, base: torch.export.ExportedProgram
) -> dict[str, torch.Tensor]:
    """Weights and biases that layers kept in float take back, by name.

    Args:
        module: the graph that the plans name their edges after.
        plan: before.
        kept: after `keep_float`.
        base: the program before its weights were rounded and its biases corrected.
    """
    lost = set(plan.constants()) - set(kept.constants())
    held = {**base.state_dict, **base.constants}
    names = {str(n.target) for n in module.graph.nodes if n.op == "get_attr" and n.name in lost}
    return {name: held[name].detach() for name in sorted(names)}


def with_float_constants(
    program: torch.export.ExportedProgram,
    module: fx.GraphModule,
    plan: QuantPlan,
    kept: QuantPlan,
    base: torch.export.ExportedProgram,
) -> torch.export.ExportedProgram:
    """``program`` with what layers kept in float take back of ``base``."""
    return with_constants(program, float_constants(module, plan, kept, base))


def cost_of(module: fx.GraphModule, plan: QuantPlan, kept: QuantPlan) -> Cost:
    """What ``kept`` costs beside ``plan``; see `Cost`."""
    if not plan.activations():
        slower = integer_nodes(module, plan) - integer_nodes(module, kept)
        macs = sum(macs_of(module, n) for n in _layers(module) if n.name in slower)
        return Cost(macs, grown_weights(module, plan, kept), 0)
    before, after = ({e.node: e for e in p.edges} for p in (plan, kept))
    was, now = (_supported(module, edges)[0] for edges in (before, after))
    gone = [n for n in _layers(module) if n.name in was - now]
    weights = {str(weight_of(n).target): tensor_of(module, weight_of(n)) for n in gone}
    grown = sum(3 * w.numel() for w in weights.values() if w is not None)
    border = _border(module, kept.activations(), now) - _border(module, plan.activations(), was)
    return Cost(sum(macs_of(module, n) for n in gone), grown, max(0, border))


def integer_nodes(module: fx.GraphModule, plan: QuantPlan) -> set[str]:
    """Names of the operators that compute on integers."""
    if not plan.activations():
        return {layer.node for layer in plan.dynamic}
    return _supported(module, {e.node: e for e in plan.edges})[0]


def all_macs(module: fx.GraphModule, plan: QuantPlan) -> int:
    """Multiply-accumulates of all layers that a plan has on integers."""
    integer = integer_nodes(module, plan)
    return sum(macs_of(module, n) for n in _layers(module) if n.name in integer)


# -- what belongs together ------------------------------------------------------------------------


def _groups(module: fx.GraphModule, acts: Mapping[str, Edge]) -> list[list[str]]:
    """Names of the activation edges that share a scale, in execution order."""
    found: dict[str, list[str]] = {}
    for node in module.graph.nodes:
        edge = acts.get(node.name)
        if edge is not None and node.op != "get_attr":
            found.setdefault(edge.group or f"{node.name} alone", []).append(node.name)
    return list(found.values())


def _merged(parts: Iterable[tuple[set[str], set[str]]]) -> list[tuple[set[str], set[str]]]:
    """Pairs of nodes and edges, joined where they have one in common."""
    merged: list[tuple[set[str], set[str]]] = []
    for nodes, edges in parts:
        apart = []
        for other in merged:
            if nodes & other[0] or edges & other[1]:
                nodes, edges = nodes | other[0], edges | other[1]
            else:
                apart.append(other)
        merged = [*apart, (nodes, edges)]
    return merged


def _same_weight(layer: fx.Node, other: fx.Node) -> bool:
    """Whether two layers read one constant, if through two nodes."""
    return bool(weight_of(layer).target == weight_of(other).target)


def _layers(module: fx.GraphModule) -> list[fx.Node]:
    """Convolutions, linear layers and embeddings with a constant weight, in execution order."""
    return [
        n
        for n in module.graph.nodes
        if n.op == "call_function"
        and n.target in (*COMPUTE, *TABLES)
        and tensor_of(module, weight_of(n)) is not None
    ]


def _own(layer: fx.Node) -> set[str]:
    """A layer's constants."""
    bias = layer.args[2] if layer.target in COMPUTE and len(layer.args) > 2 else None
    return {n.name for n in (weight_of(layer), bias) if isinstance(n, fx.Node)}


def _moved(node: fx.Node, members: Sequence[str]) -> bool:
    """Whether a tensor has its scale from what it is moved, pooled or joined from."""
    return any(source.name in members for source in node.all_input_nodes)


def _title(node: fx.Node) -> str:
    return node.name if node.op == "placeholder" else f"{layer_of(node)} ({node.name})"


def _beside(node: fx.Node, asked: set[str]) -> str:
    """The nearest unit that a node is in float because of."""
    seen, todo = {node}, [node]
    while todo:
        here = todo.pop(0)
        if here.name in asked:
            return _title(here)
        near = [n for n in (*here.all_input_nodes, *here.users) if n.op != "get_attr"]
        todo += [n for n in near if n not in seen]
        seen.update(near)
    return "others"


# -- what computes on integers --------------------------------------------------------------------


def _result(node: fx.Node, edges: Mapping[str, Any]) -> str:
    """Where the output of an operator is quantized: itself, or the activation fused with it."""
    if node.name in edges:
        return node.name
    users = list(node.users)
    if len(users) == 1 and is_fused_activation(users[0]) and users[0].name in edges:
        return users[0].name
    return ""


def _supported(module: fx.GraphModule, edges: Mapping[str, Edge]) -> tuple[set[str], set[str]]:
    """Operators that compute on integers, and quantized tensors that a layer's integers need.

    Args:
        module: the graph.
        edges: quantized tensors and constants by node name.

    Returns:
        Names of layers and other integer kernels; names of activation edges that are written or
        read by a layer on integers, or through kernels and moves on integers lead to one that is.
    """
    integer: set[str] = set()
    joined: list[list[str]] = []  # edges that one operator on integers ties together
    needed: set[str] = set()
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in TABLES:  # the rows that it gives are float
            if weight_of(node).name in edges:
                integer.add(node.name)
            continue
        sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if node.target in COMPUTE:
            sources = sources[:1]
        result = _result(node, edges)
        if not result or not sources or any(n.name not in edges for n in sources):
            continue
        ends = [*(n.name for n in sources), result]
        if node.target not in COMPUTE:
            joined.append(ends)
            if node.target in INTEGER_KERNELS:
                integer.add(node.name)
        elif weight_of(node).name in edges:
            integer.add(node.name)
            needed.update(ends)
    while True:
        reached = {name for ends in joined if needed & set(ends) for name in ends}
        if reached <= needed:
            break
        needed |= reached
    # Kernels that tie no layer's integers together are better off in float.
    kernels = (*COMPUTE, *TABLES)
    alone = {n.name for n in module.graph.nodes if n.name in integer and n.target not in kernels}
    by_name = {n.name: n for n in module.graph.nodes}
    integer -= {name for name in alone if _result(by_name[name], edges) not in needed}
    return integer, needed


def _constants_of(module: fx.GraphModule, layers: set[str]) -> set[str]:
    """Weights and biases of some layers, and of all layers that share a weight with them."""
    nodes = _layers(module)
    shared = {weight_of(n).target for n in nodes if n.name in layers}
    return {name for n in nodes if weight_of(n).target in shared for name in _own(n)}


# -- costs ----------------------------------------------------------------------------------------


def _border(module: fx.GraphModule, acts: Mapping[str, Edge], integer: set[str]) -> int:
    """Elements of quantized tensors that something in float writes or reads."""
    total = 0
    for node in module.graph.nodes:
        if node.name not in acts or node.op == "get_attr":
            continue
        size = int(node.meta["val"].numel())
        writers = [node, *node.all_input_nodes[:1]] if is_fused_activation(node) else [node]
        written = any(w.name in integer for w in writers) or _moves_integers(node, acts)
        read = all(
            u.name in integer or u.op == "output" or _moves_integers(u, acts) for u in node.users
        )
        total += size * ((not written) + (not read))
    return total


def _moves_integers(node: fx.Node, acts: Mapping[str, Edge]) -> bool:
    """Whether a node hands on the integers that it is given."""
    edge = acts.get(node.name)
    sources = [acts.get(n.name) for n in node.all_input_nodes[:1]]
    source = sources[0] if sources else None
    if edge is None or source is None or node.target in COMPUTE:
        return False
    return (edge.scale, edge.zero_point) == (source.scale, source.zero_point)


def macs_of(module: fx.GraphModule, layer: fx.Node) -> int:
    """Multiply-accumulates of one layer for one sample; none for an embedding."""
    weight = tensor_of(module, weight_of(layer))
    assert weight is not None
    if layer.target in TABLES:
        return 0
    source = layer.args[0]
    assert isinstance(source, fx.Node)
    each = source if layer.target is aten.conv_transpose2d.input else layer
    return int(each.meta["val"].numel()) * weight[0].numel()
