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
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgekit.compress._nodes import TABLES, aten, weight_of
from edgekit.compress._straight import rounded, straight_dynamic
from edgekit.compress.annotate import PROBABILITIES, flat_range
from edgekit.compress.graph import (
    compute_nodes,
    graph_module,
    program_digest,
    tensor_of,
    with_constants,
)
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.ptq import Quantized
from edgekit.compress.quantize import INT32_ROOM, ROOM, scale_of
from edgekit.compress.saturation import overrides
from edgekit.names import WIDE

__all__ = ["Aware", "Many"]

_NORMS: Final = (aten.layer_norm.default, aten.native_layer_norm.default, aten.group_norm.default)
_TINY: Final = float(np.finfo(np.float32).tiny)


class Many(nn.Module):
    """A graph that was exported for one sample, for as many as it is given.

    Each sample goes through the graph as it stands (`torch.vmap`), whatever sizes are written into
    its shapes; layers still compute all of them at once.

    Args:
        graph: takes and gives tensors whose first size is 1.
        inputs: names of the inputs, in the graph's order.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[str]) -> None:
        super().__init__()
        # A new one: that of an exported program refuses to be put into train or eval mode.
        plain = copy.deepcopy(graph.graph)
        for node in plain.nodes:
            if node.target is aten.view.default:  # samples may lie between what it joins
                node.target = aten.reshape.default
        self.graph = fx.GraphModule(graph, plain)
        self._inputs = tuple(inputs)
        self._dtypes = tuple(
            n.meta["val"].dtype for n in graph.graph.nodes if n.op == "placeholder"
        )

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """By position or by name, ``[n, ...]`` each; a tensor, or a tuple of several."""
        given = dict(zip(self._inputs, args, strict=False)) | kwargs
        columns = [
            given[name].to(dtype)[:, None]
            for name, dtype in zip(self._inputs, self._dtypes, strict=True)
        ]
        tensors = self.tensors()
        with sdpa_kernel(SDPBackend.MATH):  # the others go sample by sample
            made, told = torch.vmap(lambda *sample: self._sample(tensors, sample))(*columns)
        self.hear(told)
        answers = tuple(tensor.squeeze(1) for tensor in made)
        return answers[0] if len(answers) == 1 else answers

    def tensors(self) -> dict[str, torch.Tensor]:
        """Constants of the graph to replace for this call."""
        return {}

    def tell(self) -> dict[str, Any]:
        """What is to be heard of one sample, a tensor each."""
        return {}

    def hear(self, told: Mapping[str, Any]) -> None:
        """`tell`'s tensors of all samples, ``[n, ...]``."""

    def _sample(self, tensors: Mapping[str, torch.Tensor], sample: tuple[Any, ...]) -> Any:
        made = torch.func.functional_call(self.graph, dict(tensors), sample)
        return tuple(made) if isinstance(made, tuple | list) else (made,), self.tell()


class _Edge(nn.Module):
    """The steps of one activation, or of several that share them."""

    start: torch.Tensor
    zero: torch.Tensor
    ends: torch.Tensor

    def __init__(self, edge: Edge, members: list[fx.Node], wide: bool, learned: bool) -> None:
        super().__init__()
        self.edge, self._members, self._wide = edge, members, wide
        self.free = not _is_fixed(members, learned)
        self.register_buffer("start", torch.tensor(edge.scale[0], dtype=torch.float32))
        self.register_buffer("zero", torch.tensor(edge.zero_point[0]))
        room = ROOM if wide else 1.0
        ends = [(q - edge.zero_point[0]) * edge.scale[0] for q in (edge.quant_min, edge.quant_max)]
        self.register_buffer("ends", torch.tensor(ends, dtype=torch.float64) / room)
        self.shift = nn.Parameter(torch.zeros(())) if learned and self.free else None
        size = max(math.prod(m.meta["val"].shape) for m in members)
        self._gain = 1 / math.sqrt(max(1, size) * edge.quant_max)
        self.frozen, self.observes = False, self.free and not learned
        self._zero = edge.zero_point[0]
        self.seen: tuple[torch.Tensor, torch.Tensor] | None = None

    def scale(self) -> torch.Tensor:
        if self.shift is None:  # a copy: observing changes it in place before gradients are taken
            return self.start.clone() if self.observes else self.start
        shift = self.shift.detach() if self.frozen else self.shift
        return self.start * shift.exp()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        if self.training and self.observes and not self.frozen:
            low, high = value.detach().amin(), value.detach().amax()
            if self.seen is not None:
                low, high = torch.minimum(low, self.seen[0]), torch.maximum(high, self.seen[1])
            self.seen = low.double(), high.double()
        limits = (self.edge.quant_min - self._zero, self.edge.quant_max - self._zero)
        return rounded(value, self.scale(), *limits, self._gain)

    def hear(self, low: torch.Tensor, high: torch.Tensor, share: float) -> None:
        """Moves the range towards a batch's, by ``share``."""
        self.ends.lerp_(torch.stack((low.min(), high.max())), share)
        self._settle()

    def _settle(self) -> None:
        low, high = self.ends.tolist()
        if len(self._members) == 1:
            flat_low, flat_high = flat_range(self._members[0])
            low = low if flat_low is None or high <= flat_low else max(low, flat_low)
            high = high if flat_high is None or low >= flat_high else min(high, flat_high)
        scale, zero = scale_of(self._members, low, high, False, wide=self._wide)
        self.start.fill_(scale)
        self.zero.fill_(zero)
        self._zero = zero

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._zero = int(self.zero)

    def found(self) -> tuple[float, int]:
        """Scale and zero point as they are now."""
        if self.observes:
            self._settle()  # an average of averages has ends, and no steps of its own
        return float(self.scale().detach()), self._zero


def _is_fixed(members: list[fx.Node], learned: bool) -> bool:
    """Whether a rule of the plan, and no range, says what the steps are.

    A model's input keeps its range whole, probabilities stand for k / 256, and learned steps would
    move hard-swish's bends off the grid.
    """
    if any(m.op == "placeholder" or m.target in PROBABILITIES for m in members):
        return True
    return learned and any(u.target is aten.hardswish.default for m in members for u in m.users)


class _Weight(nn.Module):
    """The steps of one weight, a scale per channel, or one."""

    start: torch.Tensor

    def __init__(self, edge: Edge, target: str, value: torch.Tensor, learned: bool) -> None:
        super().__init__()
        self.edge, self.target = edge, target
        scale = torch.tensor(edge.scale, dtype=torch.float32)
        self.register_buffer("start", scale)
        self.shift = nn.Parameter(torch.zeros_like(scale)) if learned else None
        self._shape = [1] * value.dim()
        if edge.axis is not None:
            self._shape[edge.axis] = -1
        self._gain = 1 / math.sqrt(max(1, value.numel() // len(scale)) * edge.quant_max)
        self.frozen, self.observes = False, not learned

    def scale(self, value: torch.Tensor, least: torch.Tensor | None) -> torch.Tensor:
        """Steps ``[channels]``, no finer than ``least`` (where an int32 bias would overflow)."""
        scale = self.start
        if self.shift is not None:
            scale = scale * (self.shift.detach() if self.frozen else self.shift).exp()
        elif self.training and self.observes and not self.frozen:
            axes = [i for i, size in enumerate(self._shape) if size == 1]
            reach = value.detach().abs().amax(axes).reshape(-1) / self.edge.quant_max
            self.start.copy_(torch.where(reach > _TINY, reach, self.start))
            scale = self.start.clone()
        return scale if least is None else torch.maximum(scale, least)

    def forward(self, value: torch.Tensor, least: torch.Tensor | None) -> torch.Tensor:
        scale = self.scale(value, least).reshape(self._shape)
        return rounded(value, scale, self.edge.quant_min, self.edge.quant_max, self._gain)


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
                weights[target] = _Weight(edge, target, value, learned)
        self.weights = nn.ModuleList(weights.values())
        for name, tensor in self.graph.named_parameters():
            tensor.requires_grad_(name in self._trained or name.endswith(".shift"))

    def freeze_ranges(self, frozen: bool) -> None:
        """Whether scales and zero points stay as they are."""
        for part in self.modules():
            if isinstance(part, _Edge | _Weight):
                part.frozen = frozen

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and biases on their grids."""
        made, scales = {}, {}
        for part in self.weights:
            assert isinstance(part, _Weight)
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
                if isinstance(part, _Weight)
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

    def _parts(self) -> dict[str, _Edge]:
        return {n: p for n, p in self._edges.items() if isinstance(p, _Edge)}

    def _source(self, layer: _Layer) -> _Edge:
        part = self._edges[str(layer.source)]
        assert isinstance(part, _Edge)
        return part

    def _observing(self) -> list[tuple[str, _Edge]]:
        known = {id(p): (n, p) for n, p in reversed(self._parts().items()) if p.observes}
        return list(known.values())


def _edges(plan: QuantPlan, module: fx.GraphModule, learned: bool) -> dict[str, _Edge]:
    """The steps of every activation of a plan, by node; one for all of a group."""
    nodes = {n.name: n for n in module.graph.nodes}
    groups: dict[str, list[fx.Node]] = {}
    edges = plan.activations()
    for name, edge in edges.items():
        groups.setdefault(edge.group or name, []).append(nodes[name])
    made: dict[str, _Edge] = {}
    for members in groups.values():
        part = _Edge(edges[members[0].name], members, plan.scheme == WIDE, learned)
        made |= dict.fromkeys((m.name for m in members), part)
    return made


def _insert(module: fx.GraphModule, plan: QuantPlan, edges: Mapping[str, _Edge]) -> dict[str, str]:
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
