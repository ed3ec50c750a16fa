"""Smoothing: moving what is hard to quantize from a linear layer's input into its weights.

Some features of a transformer are tens of times larger than the others, so that one scale for all
leaves the others a handful of integers. Dividing feature ``c`` by ``s_c`` and multiplying the
weights that read it by ``s_c`` changes nothing and shares the trouble: Xiao et al., "SmoothQuant:
Accurate and Efficient Post-Training Quantization for Large Language Models" (arXiv:2211.10438).
How much is moved (the paper's alpha) is chosen per tensor, by the error of the layers that read it.

The division goes into the layer norm before where nothing else reads that, and is an operator of
its own elsewhere, which costs one multiplication per value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from edgekit.compress.graph import (
    LINEARS,
    add_constant,
    aten,
    example_args,
    graph_module,
    set_tensor,
    tensor_of,
)

__all__ = ["Group", "find_groups", "smooth"]

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of a feature's size that may go into the weights; 0 leaves all as it is."""

GAIN = 0.8
"""A tensor is smoothed where that leaves at most this share of the error."""

_ROWS = 1024


@dataclass(frozen=True)
class Group:
    """Linear layers that read one tensor.

    Attributes:
        source: the tensor, [.., features].
        layers: all of its readers that are linear layers with a weight of their own.
        fold: the layer norm that the factors can go into; None where others read it too.
    """

    source: fx.Node
    layers: tuple[fx.Node, ...]
    fold: fx.Node | None


def find_groups(module: fx.GraphModule) -> list[Group]:
    """Tensors that linear layers read, of at least two rows, in execution order."""
    found = []
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            continue
        if not value.is_floating_point() or value.dim() < 2 or value.numel() == value.shape[-1]:
            continue
        layers = tuple(u for u in node.users if _is_smoothable(module, u) and u.args[0] is node)
        if not layers:
            continue
        alone = len(layers) == len(node.users)
        norm = node.target is aten.layer_norm.default and len(node.args) > 3
        affine = norm and all(
            tensor_of(module, a) is not None and len(a.users) == 1 for a in node.args[2:4]
        )
        found.append(Group(node, layers, node if alone and affine else None))
    return found


def smooth(
    program: torch.export.ExportedProgram, feeds: Sequence[tuple[torch.Tensor, ...]]
) -> torch.export.ExportedProgram:
    """A program with the same answers whose linear layers read smoother tensors.

    Args:
        program: the canonical program.
        feeds: samples that show the tensors.

    Returns:
        A new program, or the given one where nothing gains by it.
    """
    module = graph_module(program)
    groups = find_groups(module)
    if not groups:
        return program
    reader = _Reader(module, [g.source for g in groups], max(8, _ROWS // len(feeds)))
    with torch.no_grad():
        for feed in feeds:
            reader.run(*feed)
        changed = False
        for group in groups:
            rows = torch.cat(reader.rows[group.source])
            factors = _best_factors(module, group, reader.reach[group.source], rows)
            if factors is not None:
                _apply(module, group, factors)
                changed = True
        if not changed:
            return program
        module.graph.lint()
        module.recompile()
        return torch.export.export(module, example_args(program), strict=False)


def _best_factors(
    module: fx.GraphModule, group: Group, reach: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor | None:
    """Divisors of the features [features], or None where dividing gains little."""
    weights = []
    for layer in group.layers:
        weight = tensor_of(module, layer.args[1])
        assert weight is not None
        weights.append(weight)
    stacked = torch.cat(weights)
    exact = rows @ stacked.T
    # Rows count alike, however large: a norm after the layer makes them so.
    share = 1 / exact.square().mean(1, keepdim=True).clamp_min(1e-12)
    columns = stacked.abs().amax(0).clamp_min(1e-8)

    def error(factors: torch.Tensor) -> float:
        rounded = _round_rows(rows / factors) @ _round_weight(stacked * factors).T
        return float(((rounded - exact).square() * share).mean())

    plain = error(torch.ones_like(reach))
    best, found = plain, None
    for alpha in ALPHAS:
        factors = reach.clamp_min(1e-5) ** alpha / columns ** (1 - alpha)
        factors = torch.where(reach > 0, factors / factors.mean(), torch.ones_like(factors))
        factors = factors.clamp(1e-3, 1e3)
        now = error(factors)
        if now < best:
            best, found = now, factors
    return found if best < GAIN * plain else None


def _round_rows(rows: torch.Tensor) -> torch.Tensor:
    """As one int8 tensor, with the range of all rows."""
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    scale = max((high - low) / 255, 1e-12)
    return torch.round(rows / scale) * scale


def _round_weight(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return torch.round(weight / scale) * scale


def _apply(module: fx.GraphModule, group: Group, factors: torch.Tensor) -> None:
    for layer in group.layers:
        node = layer.args[1]
        assert isinstance(node, fx.Node)
        weight = tensor_of(module, node)
        assert weight is not None
        set_tensor(module, node, (weight.double() * factors.double()).float())
    if group.fold is not None:
        for node in group.fold.args[2:4]:
            assert isinstance(node, fx.Node)
            value = tensor_of(module, node)
            assert value is not None
            set_tensor(module, node, (value.double() / factors.double()).float())
        return
    first = min(group.layers, key=list(module.graph.nodes).index)
    name = f"{group.source.name}_smoothing"
    constant = add_constant(module, name, (1 / factors.double()).float(), first)
    with module.graph.inserting_before(first):
        divided = module.graph.call_function(aten.mul.Tensor, (group.source, constant))
    divided.meta = {k: v for k, v in group.source.meta.items() if k in ("val", "nn_module_stack")}
    for layer in group.layers:
        layer.replace_input_with(group.source, divided)


def _is_smoothable(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in LINEARS:
        return False
    weight = node.args[1]
    if tensor_of(module, weight) is None or not isinstance(weight, fx.Node):
        return False
    same = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == weight.target]
    return len(weight.users) == 1 and len(same) == 1


class _Reader(fx.Interpreter):
    """Collects the largest value of every feature, and some rows, of chosen tensors."""

    def __init__(self, module: fx.GraphModule, nodes: Sequence[fx.Node], rows: int) -> None:
        super().__init__(module)
        self.count = rows
        self.generator = torch.Generator().manual_seed(0)
        self.reach: dict[fx.Node, torch.Tensor] = {}
        self.rows: dict[fx.Node, list[torch.Tensor]] = {node: [] for node in nodes}

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node in self.rows:
            assert isinstance(value, torch.Tensor)
            rows = value.reshape(-1, value.shape[-1])
            largest = rows.abs().amax(0)
            before = self.reach.get(node)
            self.reach[node] = largest if before is None else torch.maximum(before, largest)
            # The rows with the largest values set the range: they are always among those kept.
            top = rows.abs().amax(1).argmax().reshape(1)
            chosen = torch.randperm(len(rows), generator=self.generator)[: self.count - 1]
            self.rows[node].append(rows[torch.cat([top, chosen])].clone())
        return value
