"""A planned program as training sees it: the plan's own graph, its integers trained through.

Weights are rounded to the plan's grid at every step, activations at every edge, by the
straight-through estimator: Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference" (2017, arXiv:1712.05877). Learned steps are LSQ's
(Esser et al., 2019, arXiv:1902.08153); what is learned is their logarithm, against where
post-training put them, so that an optimizer's step is relative to the scale (Jain et al., "Trained
Quantization Thresholds", 2019, arXiv:1903.08066) and weight decay draws it nowhere else.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn

from edgekit.compress._many import Many
from edgekit.compress._nodes import TABLES, aten, weight_of
from edgekit.compress._steps import ActivationSteps, WeightSteps
from edgekit.compress._straight import rounded, straight_dynamic
from edgekit.compress.graph import (
    compute_nodes,
    graph_module,
    program_digest,
    tensor_of,
    with_constants,
)
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.ptq import Quantized
from edgekit.compress.quantize import INT32_ROOM
from edgekit.compress.saturation import overrides
from edgekit.names import WIDE

__all__ = ["Aware"]

_NORMS: Final = (aten.layer_norm.default, aten.native_layer_norm.default, aten.group_norm.default)


@dataclass(frozen=True)
class _Layer:
    """A quantized layer: targets of its constants, and the edge of its input (None: float)."""

    weight: str
    bias: str | None
    bias_edge: Edge | None
    source: str | None


class Aware(Many):
    """A program with the rounding of its plan, to be trained.

    In eval mode it computes what the plan's own evaluation does, but for the last bits of biases.
    What is trained: weights and biases of layers, of norms, and on request embeddings' tables.
    Batch norm was folded into the layers before it, so its statistics are frozen from the start.

    Args:
        quantized: program and plan, as post-training left them; not changed.
        inputs: names of the inputs, in the program's order.
        learned: whether steps are learned by their gradient. Else ranges of activations are moving
            averages of the batches' extremes, and weights' are those of the weights.
        tables: whether embeddings' tables are trained.
        share: of a batch in the moving averages.
    """

    def __init__(
        self,
        quantized: Quantized,
        inputs: Sequence[str],
        *,
        learned: bool = True,
        tables: bool = False,
        share: float = 0.01,
    ) -> None:
        plan, exact = quantized.plan, graph_module(quantized.program)
        module = copy.deepcopy(exact)
        edges = _edges(plan, exact, learned)
        named = _insert(module, plan, edges)
        super().__init__(module, inputs)
        self._quantized, self._share = quantized, share
        self._edges = {name: self.graph.get_submodule(where) for name, where in named.items()}
        self.layers = _layers(exact, plan)
        self._behind: dict[str, list[_Layer]] = {}
        for layer in self.layers:
            self._behind.setdefault(layer.weight, []).append(layer)
        self._trained = _trained(exact, self.layers, tables)
        for target in self._trained:
            _to_parameter(self.graph, target)
        weights = {}
        for edge, target in _weights(exact, plan):
            value = _get(self.graph, target)
            if target in self._trained:
                weights[target] = WeightSteps(edge, target, value, learned)
        self.weights = nn.ModuleList(weights.values())
        for name, tensor in self.graph.named_parameters():
            tensor.requires_grad_(name in self._trained or name.endswith(".shift"))

    def freeze_ranges(self, frozen: bool) -> None:
        """Whether scales and zero points stay as they are."""
        for part in self.modules():
            if isinstance(part, ActivationSteps | WeightSteps):
                part.frozen = frozen

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and biases on their grids."""
        made, scales = {}, {}
        for part in self.weights:
            assert isinstance(part, WeightSteps)
            value, least = _get(self.graph, part.target), self._least(part.target)
            scales[part.target] = part.scale(value, least)
            made[part.target] = part(value, least)
        for layer in self.layers:
            if layer.bias is None or layer.bias_edge is None or layer.source is None:
                continue
            if layer.weight not in scales:
                continue
            step = (scales[layer.weight] * self._source(layer).scale()).detach()
            ends = (layer.bias_edge.quant_min, layer.bias_edge.quant_max)
            made[layer.bias] = rounded(_get(self.graph, layer.bias), step, *ends)
        return made

    def tell(self) -> dict[str, Any]:
        told = {}
        for name, part in self._observing():
            if part.seen is not None:
                told[name], part.seen = part.seen, None
        return told

    def hear(self, told: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, part in self._observing():
                if name in told:
                    low, high = told[name]
                    part.hear(low, high, self._share)

    def finish(self) -> Quantized:
        """Program and plan with the trained weights, scales and zero points."""
        program, plan = self._quantized.program, self._quantized.plan
        self.eval()
        with torch.no_grad():
            steps = {name: part.found() for name, part in self._parts().items()}
            weights = {
                part.target: part.scale(_get(self.graph, part.target), self._least(part.target))
                for part in self.weights
                if isinstance(part, WeightSteps)
            }
            fresh = self._fresh(plan, steps, weights)
            values = {t: _get(self.graph, t).detach().cpu().contiguous() for t in self._trained}
        targets = {e.node: t for e, t in _weights(graph_module(program), plan)}
        edges = tuple(fresh.get((e.kind, e.node), e) for e in plan.edges)
        for edge in edges:
            target = targets.get(edge.node) if edge.kind == "weight" else None
            if target in values:
                values[target] = torch.from_numpy(edge.round(values[target].numpy()))
        made = with_constants(program, values)
        plan = dataclasses.replace(
            plan,
            edges=edges,
            program_digest=program_digest(made),
            origin=plan.origin or plan.program_digest,
            sensitivity={},
        )
        # Other integers saturate in other layers.
        if plan.activations():
            plan = dataclasses.replace(plan, overrides=overrides(made, plan))
        return Quantized(made, plan)

    def _fresh(
        self,
        plan: QuantPlan,
        steps: Mapping[str, tuple[float, int]],
        weights: Mapping[str, torch.Tensor],
    ) -> dict[tuple[str, str], Edge]:
        """The edges that training may have moved, by kind and node."""
        fresh = {}
        module = graph_module(self._quantized.program)
        for edge in plan.activations().values():
            scale, zero = steps[edge.node]
            moved = dataclasses.replace(edge, scale=(scale,), zero_point=(zero,))
            fresh["activation", edge.node] = moved
        for edge, target in _weights(module, plan):
            if target in weights:
                scales = weights[target].cpu().numpy()
                moved = dataclasses.replace(edge, scale=tuple(float(s) for s in scales))
                fresh["weight", edge.node] = moved
        constants = plan.constants()
        for node in compute_nodes(module):
            weight, bias, source = node.args[1], (*node.args, None)[2], node.args[0]
            bias_edge = constants.get(bias.name) if isinstance(bias, fx.Node) else None
            if bias_edge is None or not isinstance(source, fx.Node):
                continue
            weight_edge = fresh.get(("weight", str(weight)), constants.get(str(weight)))
            assert weight_edge is not None
            step = np.float32(fresh["activation", source.name].scale[0])
            product = (np.asarray(weight_edge.scale, np.float32) * step).astype(np.float32)
            moved = dataclasses.replace(bias_edge, scale=tuple(float(s) for s in product))
            fresh["bias", bias_edge.node] = moved
        return fresh

    def _least(self, weight: str) -> torch.Tensor | None:
        """The finest steps with which the biases behind a weight fit int32."""
        least = None
        for layer in self._behind.get(weight, ()):
            if layer.bias is None or layer.bias_edge is None:
                continue
            bias = _get(self.graph, layer.bias).detach().abs()
            room = bias / (self._source(layer).scale().detach() * INT32_ROOM)
            least = room if least is None else torch.maximum(least, room)
        return least

    def _parts(self) -> dict[str, ActivationSteps]:
        return {n: p for n, p in self._edges.items() if isinstance(p, ActivationSteps)}

    def _source(self, layer: _Layer) -> ActivationSteps:
        part = self._edges[str(layer.source)]
        assert isinstance(part, ActivationSteps)
        return part

    def _observing(self) -> list[tuple[str, ActivationSteps]]:
        known = {id(p): (n, p) for n, p in reversed(self._parts().items()) if p.observes}
        return list(known.values())


def _edges(plan: QuantPlan, module: fx.GraphModule, learned: bool) -> dict[str, ActivationSteps]:
    """The steps of every activation of a plan, by node; one for all of a group."""
    nodes = {n.name: n for n in module.graph.nodes}
    groups: dict[str, list[fx.Node]] = {}
    edges = plan.activations()
    for name, edge in edges.items():
        groups.setdefault(edge.group or name, []).append(nodes[name])
    made: dict[str, ActivationSteps] = {}
    for members in groups.values():
        part = ActivationSteps(edges[members[0].name], members, plan.scheme == WIDE, learned)
        made |= dict.fromkeys((m.name for m in members), part)
    return made


def _insert(
    module: fx.GraphModule, plan: QuantPlan, edges: Mapping[str, ActivationSteps]
) -> dict[str, str]:
    """Puts the plan's rounding into a graph; gives the submodule of every edge."""
    where: dict[int, str] = {}
    named = {}
    for node in list(module.graph.nodes):
        if node.name not in edges or node.op == "get_attr":
            continue
        part = edges[node.name]
        name = where.setdefault(id(part), f"edge_{len(where)}")
        module.add_submodule(name, part)
        users = list(node.users)
        with module.graph.inserting_after(node):
            last = module.graph.call_module(name, (node,))
        last.meta = {**node.meta}
        for user in users:
            user.replace_input_with(node, last)
        named[node.name] = name
    layers = {n.name: n for n in module.graph.nodes if n.op == "call_function"}
    for dynamic in plan.dynamic:
        layer = layers[dynamic.node]
        with module.graph.inserting_before(layer):
            args = (layer.args[0], dynamic.per)
            last = module.graph.call_function(straight_dynamic, args)
        layer.args = (last, *layer.args[1:])
    module.graph.lint()
    module.recompile()
    return named


def _layers(module: fx.GraphModule, plan: QuantPlan) -> list[_Layer]:
    constants, activations = plan.constants(), plan.activations()
    found = []
    for node in compute_nodes(module):
        weight, bias, source = node.args[1], (*node.args, None)[2], node.args[0]
        if tensor_of(module, weight) is None or str(weight) not in constants:
            continue
        known = tensor_of(module, bias) is not None
        assert isinstance(weight, fx.Node) and isinstance(source, fx.Node)
        found.append(
            _Layer(
                str(weight.target),
                str(bias.target) if known and isinstance(bias, fx.Node) else None,
                constants.get(str(bias)) if known else None,
                source.name if source.name in activations else None,
            )
        )
    return found


def _weights(module: fx.GraphModule, plan: QuantPlan) -> list[tuple[Edge, str]]:
    """The plan's weights, each with its parameter."""
    targets = {n.name: str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    return [(e, targets[e.node]) for e in plan.edges if e.kind == "weight"]


def _trained(module: fx.GraphModule, layers: Sequence[_Layer], tables: bool) -> list[str]:
    """Names of the parameters that are trained."""
    found = [name for layer in layers for name in (layer.weight, layer.bias) if name is not None]
    read_as_table = set()
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in TABLES:
            read_as_table.add(str(weight_of(node).target))
        if node.target in _NORMS:
            constants = [n for n in node.all_input_nodes if tensor_of(module, n) is not None]
            found += [str(n.target) for n in constants]
    if tables:
        found += sorted(read_as_table)
    else:
        found = [name for name in found if name not in read_as_table]
    return list(dict.fromkeys(found))


def _get(module: nn.Module, target: str) -> torch.Tensor:
    owner, _, name = target.rpartition(".")
    value: torch.Tensor = getattr(module.get_submodule(owner), name)
    return value


def _to_parameter(module: nn.Module, target: str) -> None:
    """Makes a constant trainable, whatever it was."""
    owner, _, name = target.rpartition(".")
    place = module.get_submodule(owner)
    value = getattr(place, name).detach().clone()
    delattr(place, name)
    place.register_parameter(name, nn.Parameter(value))
