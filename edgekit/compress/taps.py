"""Tapping: a program whose results are the outputs of its layers.

A target converts a tapped program as it converts any other, and its runtime then tells what it
computed at every layer (`edgekit.layerwise`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from edgekit.compress._nodes import RESHAPES, VIEWS
from edgekit.compress.graph import COMPUTE, example_args, graph_module, layer_of, program_digest
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.signature import Signature, TensorSpec

__all__ = ["Tap", "Tapped", "first_quantized", "results_of", "stable_names", "tap"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Tap:
    """One layer's output, made a result of the program.

    Attributes:
        output: its name among the results.
        layer: ``module path (node)`` of the operator that makes it; the convolution or linear layer
            where an activation function is fused with one.
        edge: how the plan quantizes it; None where it is float.
    """

    output: str
    layer: str
    edge: Edge | None


@dataclass(frozen=True)
class Tapped:
    """A program whose results are the outputs of its layers, in execution order."""

    program: torch.export.ExportedProgram
    plan: QuantPlan
    taps: tuple[Tap, ...]

    def signature(self, inputs: Sequence[TensorSpec]) -> Signature:
        """Of the tapped program, given the inputs of the model."""
        results = results_of(graph_module(self.program))
        specs = [
            TensorSpec(t.output, tuple(n.meta["val"].shape), str(n.meta["val"].dtype)[6:])
            for t, n in zip(self.taps, results, strict=True)
        ]
        return Signature(tuple(inputs), tuple(specs))


def tap(program: torch.export.ExportedProgram, plan: QuantPlan, *, sparing: bool = False) -> Tapped:
    """The program with the outputs of its layers as results, and its plan under the new names.

    Args:
        program: the canonical program.
        plan: its quantization.
        sparing: whether to leave out pictures of one pixel and what is pooled, which LiteRT's
            converter may give with the channels last.
    """
    module = graph_module(program)
    edges = plan.activations()
    nodes = [
        n
        for n in module.graph.nodes
        if _is_layer(n, edges, {name for name, _ in plan.kept_float})
        and not (sparing and _is_delicate(n))
    ]
    module.graph.output_node().args = (tuple(nodes),)
    # The pytree that the module was exported with describes the old outputs.
    module.graph.set_codegen(fx.graph.CodeGen())
    module.graph.eliminate_dead_code()
    module.recompile()
    before = stable_names(module)
    with torch.no_grad():
        tapped = torch.export.export(module, example_args(program), strict=False)
    after = {key: name for name, key in stable_names(graph_module(tapped)).items()}
    renamed = {name: after.get(key) for name, key in before.items()}
    moved = tuple(
        dataclasses.replace(e, node=str(renamed[e.node])) for e in plan.edges if renamed.get(e.node)
    )
    taps = tuple(
        Tap(f"tap_{i}_{n.name}", _culprit(n, set(nodes)), edges.get(n.name))
        for i, n in enumerate(nodes)
    )
    dynamic = tuple(
        dataclasses.replace(d, node=str(renamed[d.node]))
        for d in plan.dynamic
        if renamed.get(d.node)
    )
    new = dataclasses.replace(
        plan, edges=moved, dynamic=dynamic, program_digest=program_digest(tapped)
    )
    return Tapped(tapped, new, taps)


def results_of(module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that a graph gives as its results, in order."""
    return list(module.graph.output_node().all_input_nodes)


def _is_layer(node: fx.Node, edges: Mapping[str, Edge], kept: Container[str]) -> bool:
    """Whether a node's output is worth a tap: float values, where they first are what they are.

    What is moved and then quantized is tapped where it is quantized, as runtimes quantize before
    they move.
    """
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, torch.Tensor):
        return False
    if not value.is_floating_point():
        return False
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if not edges:
        return node.target not in RESHAPES and not _is_identity(node, source)
    if node.name in edges:
        first = source is None or source.name not in edges
        return first or (node.target not in RESHAPES and not _is_identity(node, source))
    return node.name in kept and first_quantized(node, edges) is None


def _is_identity(node: fx.Node, source: fx.Node | None) -> bool:
    """Pooling of one pixel: converters merge its output with its input."""
    if node.target is not aten.adaptive_avg_pool2d.default or source is None:
        return False
    return bool(source.meta["val"].shape == node.meta["val"].shape)


def _is_delicate(node: fx.Node) -> bool:
    pooled = any(user.target is aten.adaptive_avg_pool2d.default for user in node.users)
    return pooled or tuple(node.meta["val"].shape[2:]) == (1, 1)


def first_quantized(node: fx.Node, edges: Container[str]) -> str | None:
    """The name of the node where a value is first quantized, moved at most; None if it never is."""
    if node.name in edges:
        return node.name
    moves = (user for user in node.users if user.target in VIEWS)
    return next((name for user in moves if (name := first_quantized(user, edges))), None)


def _culprit(node: fx.Node, tapped: set[fx.Node]) -> str:
    """Names the layer that makes a tap: the one compute node since the taps before it, if any."""
    seen, todo, found = set(), [node], []
    while todo:
        here = todo.pop()
        if here in seen or here.op != "call_function" or (here in tapped and here is not node):
            continue
        seen.add(here)
        if here.target in COMPUTE:
            found.append(here)
        todo += here.all_input_nodes
    made = found[0] if len(found) == 1 else node
    while made.target in VIEWS and made.all_input_nodes[0].op == "call_function":
        made = made.all_input_nodes[0]
    return f"{layer_of(made)} ({made.name})"


def stable_names(module: fx.GraphModule) -> dict[str, str]:
    """Node name to something that exporting again keeps: a constant's path, an operator's place."""
    keys: dict[str, str] = {}
    for place, node in enumerate(n for n in module.graph.nodes if n.op == "call_function"):
        keys[node.name] = f"{place}:{node.target}"
    for node in module.graph.nodes:
        if node.op in ("get_attr", "placeholder"):
            keys[node.name] = str(node.target)
    return keys
