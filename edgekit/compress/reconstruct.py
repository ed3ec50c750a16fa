"""Making up for rounding, layer by layer: weights rounded together, biases corrected.

Layers are taken in execution order. Each sees, on calibration samples, its input in the float model
and its input behind the layers that are quantized already; its weight is rounded so that its output
comes closest to the float one (`edgekit.compress.rounding`), and its bias takes what is left of the
mean difference: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction" (arXiv:1906.04721), with measured means. Where an activation function follows, values
that it throws away count little: an edge detector may well give 80 before a ReLU6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from edgekit.compress._nodes import TABLES, weight_of
from edgekit.compress.graph import (
    CONVS,
    LINEARS,
    aten,
    compute_nodes,
    feature_axis,
    graph_module,
    groups,
    program_digest,
    tensor_of,
    with_constants,
)
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.quantize import INT32_ROOM
from edgekit.compress.rounding import Moments, round_layer
from edgekit.compress.streams import Streams
from edgekit.compress.unrounded import Unrounded

__all__ = ["reconstruct"]

_ROWS = 16384
"""Input vectors per layer that moments are taken over, about."""
_FEW = 16
"""Rows up to which sums are made in double precision: what is left about the mean is little."""
_IDLE = 0.01
"""The weight of a value that the activation function after it throws away."""


def reconstruct(
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    feeds: Sequence[tuple[torch.Tensor, ...]],
    *,
    rounding: bool = True,
    bias: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[torch.export.ExportedProgram, QuantPlan]:
    """Chooses weights and biases of a planned program anew.

    Args:
        program: the canonical program.
        plan: its quantization; ranges of activations are kept.
        feeds: calibration samples, at least 2 for rounding.
        rounding: whether weights are rounded together; else each by itself.
        bias: whether biases are corrected.
        progress: called with 1 after every layer.

    Returns:
        A program whose weights lie on their integers' grid, and its plan.
    """
    module = graph_module(program)
    constants = plan.constants()
    activations = plan.activations()
    # What some runtimes don't round must not be made up for: the others would suffer.
    rounded = Unrounded(gates=True, results=True).without(program, plan)
    streams = Streams(module, rounded.activations(), feeds)
    changed: dict[str, torch.Tensor] = {}
    scales: dict[str, torch.Tensor] = {}
    uses = _uses(module)
    with torch.no_grad():
        for node in module.graph.nodes:
            layer = _layer_of_plan(module, node, constants)
            if node.target in TABLES and weight_of(node).name in constants:
                table, edge = weight_of(node), constants[weight_of(node).name]
                value = tensor_of(module, table)
                assert value is not None
                changed[str(table.target)] = torch.from_numpy(edge.round(value.numpy()))
                streams.replace(table, changed[str(table.target)])
            if layer is None:
                streams.advance(node)
                continue
            corrects = bias and layer.bias_node is not None and uses[layer.bias_node] == 1
            if rounding and uses[layer.weight_node] == 1 and _has_moments(node):
                source = activations.get(node.all_input_nodes[0].name)
                step = None if source is None else source.scale[0]
                _round(layer, streams, step, changed, scales, about_mean=corrects)
            else:
                stored = constants[layer.weight_node.name].round(layer.weight.numpy())
                changed[str(layer.weight_node.target)] = torch.from_numpy(stored)
            streams.replace(layer.weight_node, changed[str(layer.weight_node.target)])
            made = streams.outputs(node)
            shift = None
            if corrects:
                shift = _correct_bias(layer, streams, made, changed)
            streams.advance(node, made, shift=shift)
            if progress is not None:
                progress(1)
    new = with_constants(program, changed)
    edges = _new_edges(plan, module, scales)
    return new, dataclasses.replace(plan, edges=edges, program_digest=program_digest(new))


@dataclass(frozen=True)
class _Layer:
    node: fx.Node
    weight_node: fx.Node
    weight: torch.Tensor
    bias_node: fx.Node | None
    bias: torch.Tensor | None
    edge: Edge


def _uses(module: fx.GraphModule) -> dict[fx.Node, int]:
    """How many layers read each constant; two ``get_attr`` nodes of one name count as one."""
    by_name: dict[str, int] = {}
    constants = [n for n in module.graph.nodes if n.op == "get_attr"]
    for node in constants:
        by_name[str(node.target)] = by_name.get(str(node.target), 0) + len(node.users)
    return {node: by_name[str(node.target)] for node in constants}


def _layer_of_plan(module: fx.GraphModule, node: fx.Node, constants: Any) -> _Layer | None:
    if node.op != "call_function" or node.target not in (*CONVS, *LINEARS):
        return None
    weight_node = node.args[1]
    weight = tensor_of(module, weight_node)
    if weight is None or not isinstance(weight_node, fx.Node) or weight_node.name not in constants:
        return None
    bias_node = node.args[2] if len(node.args) > 2 else None
    bias = tensor_of(module, bias_node)
    return _Layer(
        node,
        weight_node,
        weight,
        bias_node if isinstance(bias_node, fx.Node) and bias is not None else None,
        bias,
        constants[weight_node.name],
    )


def _has_moments(node: fx.Node) -> bool:
    return node.target is not aten.conv_transpose2d.input


def _round(
    layer: _Layer,
    streams: Streams,
    step: float | None,
    changed: dict[str, torch.Tensor],
    scales: dict[str, torch.Tensor],
    *,
    about_mean: bool,
) -> None:
    parts = groups(layer.node)
    weight = layer.weight.reshape(parts, layer.weight.shape[0] // parts, -1)
    fit, held_out, both = _moments(layer, weight, streams, about_mean)
    # The plan's scale is wider than the weights need where the bias asked for it.
    asked = torch.tensor(layer.edge.scale, dtype=torch.float64).reshape(parts, -1, 1)
    needed = weight.double().abs().amax(2, keepdim=True) / layer.edge.quant_max
    least = torch.where(asked > 1.01 * needed, asked, torch.zeros_like(asked))
    if layer.bias is not None and step is not None:  # narrower scales may ask for it too
        room = layer.bias.double().abs() / (step * INT32_ROOM)
        least = torch.maximum(least, room.reshape(least.shape))
    least = torch.maximum(least, torch.full_like(least, float(np.finfo(np.float32).tiny)))
    found = round_layer(weight, least, fit, held_out, both, limit=layer.edge.quant_max)
    silent = needed[:, :, 0] == 0  # a channel without weights stays one
    found.integers[silent] = 0
    found.scale[silent] = asked[silent]
    real = (found.integers * found.scale).float().reshape(layer.weight.shape)
    changed[str(layer.weight_node.target)] = real
    scales[layer.weight_node.name] = found.scale.reshape(-1)


def _moments(
    layer: _Layer, weight: torch.Tensor, streams: Streams, about_mean: bool
) -> tuple[Moments, Moments, Moments]:
    """Moments of 3 in 4 samples, of the others, and of all."""
    source = layer.node.args[0]
    assert isinstance(source, fx.Node)
    sums: list[_Sums] = []
    rows = max(1, -(-max(_ROWS, 8 * weight.shape[2]) // streams.count))
    generator = torch.Generator().manual_seed(0)
    limits = _kept_range(layer.node) if weight.shape[1] == 1 else None
    spread = None
    if limits is not None and layer.bias is not None:
        spread = layer.bias.double().reshape(weight.shape[0], 1, 1)
    linear = layer.node.target in LINEARS
    for i in range(streams.count):
        state = generator.get_state()
        x, y = streams.inputs(source, i)
        x_rows = _matrix(layer.node, x, layer.weight.shape, rows, generator)
        generator.set_state(state)
        y_rows = _matrix(layer.node, y, layer.weight.shape, rows, generator)
        share = _row_share(x_rows @ weight.transpose(1, 2)) if x.dim() > 2 and linear else None
        if limits is not None:
            before = x_rows @ weight.transpose(1, 2) + (0.0 if spread is None else spread.float())
            share = _kept_share(before, limits)
        if not sums:
            # Sums of squares about some near value lose fewer digits than about zero.
            origin = x_rows.mean(1, keepdim=True) if about_mean else x_rows[:, :1] * 0
            sums = [_Sums(origin), _Sums(origin)]
        sums[i % 4 == 3].add(x_rows, y_rows, share)
    fit, held_out = sums if sums[1].weight is not None else (sums[0], sums[0])
    both = fit + held_out
    return fit.moments(about_mean), held_out.moments(about_mean), both.moments(about_mean)


class _Sums:
    """Running sums of rows x and y [groups, rows, d], weighted per row."""

    def __init__(self, origin: torch.Tensor) -> None:
        self.origin = origin
        self.weight: torch.Tensor | None = None
        self.x = self.y = self.gram = self.cross = torch.zeros(())

    def add(self, x: torch.Tensor, y: torch.Tensor, share: torch.Tensor | None) -> None:
        """Adds rows; ``share`` is [groups, rows, 1]."""
        x, y = x - self.origin, y - self.origin
        if x.shape[1] <= _FEW:
            x, y = x.double(), y.double()
        if share is None:
            weight = torch.full((x.shape[0], 1, 1), float(x.shape[1]), dtype=torch.float64)
            heavy = y
        else:
            weight = share.sum(1, keepdim=True).double()
            heavy = y * share
        sums = (
            weight,
            (x if share is None else x * share).sum(1, keepdim=True).double(),
            heavy.sum(1, keepdim=True).double(),
            (heavy.transpose(1, 2) @ y).double(),
            (x.transpose(1, 2) @ heavy).double(),
        )
        if self.weight is None:
            self.weight, self.x, self.y, self.gram, self.cross = sums
        else:
            self.weight = self.weight + sums[0]
            self.x, self.y = self.x + sums[1], self.y + sums[2]
            self.gram, self.cross = self.gram + sums[3], self.cross + sums[4]

    def __add__(self, other: _Sums) -> _Sums:
        if other is self or other.weight is None or self.weight is None:
            return self
        total = _Sums(self.origin)
        total.weight = self.weight + other.weight
        total.x, total.y = self.x + other.x, self.y + other.y
        total.gram, total.cross = self.gram + other.gram, self.cross + other.cross
        return total

    def moments(self, about_mean: bool) -> Moments:
        """About the means, or about zero where no bias takes up what the means differ."""
        assert self.weight is not None
        share = float(about_mean)
        x, y = share * self.x / self.weight, share * self.y / self.weight
        return Moments(
            self.gram / self.weight - y.transpose(1, 2) @ y,
            self.cross / self.weight - x.transpose(1, 2) @ y,
        )


def _kept_range(node: fx.Node) -> tuple[float, float] | None:
    """The range outside which the activation function after ``node`` is flat; None without one."""
    users = list(node.users)
    if len(users) != 1:
        return None
    (user,) = users
    if user.target is aten.relu.default:
        return 0.0, float("inf")
    if user.target is aten.hardtanh.default:
        low, high = (float(v) for v in user.args[1:3])  # type: ignore[arg-type]
        return low, high
    if user.target is aten.hardswish.default:
        return -3.0, float("inf")
    return None


def _kept_share(values: torch.Tensor, limits: tuple[float, float]) -> torch.Tensor:
    """1 where an activation function keeps a value or nearly does, `_IDLE` elsewhere."""
    low, high = limits
    margin = 0.05 * (high - low) if np.isfinite(high) else 0.05 * float(values.abs().mean())
    return torch.where((values > low - margin) & (values < high + margin), 1.0, _IDLE)


def _row_share(values: torch.Tensor) -> torch.Tensor:
    """Weights [.., rows, 1] that let rows count alike, however large the values in them.

    Rows are tokens, and a norm comes after: one of them may hold values a hundred times as large.
    """
    size = values.square().mean(-1, keepdim=True)
    return 1 / (size / size.median().clamp_min(1e-12) + 0.1)


def _correct_bias(
    layer: _Layer,
    streams: Streams,
    made: tuple[list[Any], list[Any]],
    changed: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Sets the new bias; gives what it adds, shaped for the layer's output."""
    assert layer.bias is not None and layer.bias_node is not None
    limits = _kept_range(layer.node)
    axis = feature_axis(layer.node)
    total = weight = torch.zeros(())
    for exact, rounded in zip(*made, strict=True):
        a = exact.float().movedim(axis, 0).reshape(len(layer.bias), -1)
        b = rounded.float().movedim(axis, 0).reshape(len(layer.bias), -1)
        if limits is not None:
            share = _kept_share(a, limits)
        elif axis == -1 and exact.dim() > 2:
            share = _row_share(exact.float()).flatten()[None].expand_as(a)
        else:
            share = torch.ones_like(a)
        total = total + ((a - b) * share).sum(1).double()
        weight = weight + share.sum(1).double()
    shift = (total / weight).float()
    new = layer.bias + shift
    changed[str(layer.bias_node.target)] = new
    streams.replace(layer.bias_node, new)
    shape = [1] * made[1][0].dim()
    shape[axis] = -1
    return shift.reshape(shape)


def _matrix(
    node: fx.Node, x: torch.Tensor, shape: torch.Size, rows: int, generator: torch.Generator
) -> torch.Tensor:
    """Input vectors of a layer, [groups, rows, d], a random choice where there are more."""
    if node.target in LINEARS:
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) > rows:
            flat = flat[torch.randperm(len(flat), generator=generator)[:rows]]
        return flat[None]
    if node.target is aten.conv1d.default:  # a picture of one row
        x = x.reshape(-1, x.shape[-2], 1, x.shape[-1])
        return _windows(_two_axes(node), x, (1, *shape[2:]), rows, generator)
    x = x.reshape(-1, *x.shape[-3:])
    return _windows(_attributes(node), x, tuple(shape[2:]), rows, generator)


_Attributes = tuple[list[int], list[int], list[int], int]


def _attributes(node: fx.Node) -> _Attributes:
    """Stride, padding, dilation and groups of a convolution."""
    dims = 1 if node.target is aten.conv1d.default else 2
    values: list[Any] = [[1] * dims, [0] * dims, [1] * dims, 1]
    for i, given in enumerate(node.args[3:7]):
        values[i] = given
    for i in range(3):
        if len(values[i]) == 1:
            values[i] = [*values[i]] * dims
    return values[0], values[1], values[2], values[3]


def _two_axes(node: fx.Node) -> _Attributes:
    stride, padding, dilation, parts = _attributes(node)
    return [1, *stride], [0, *padding], [1, *dilation], parts


def _windows(
    attributes: _Attributes,
    x: torch.Tensor,
    kernel: tuple[int, ...],
    rows: int,
    generator: torch.Generator,
) -> torch.Tensor:
    (sy, sx), (py, px), (dy, dx), parts = attributes
    x = torch.nn.functional.pad(x, (px, px, py, py)).contiguous()
    n, channels, height, width = x.shape
    ky, kx = kernel
    out_y = (height - dy * (ky - 1) - 1) // sy + 1
    out_x = (width - dx * (kx - 1) - 1) // sx + 1
    steps = x.stride()
    view = x.as_strided(
        (n, channels, out_y, out_x, ky, kx),
        (steps[0], steps[1], steps[2] * sy, steps[3] * sx, steps[2] * dy, steps[3] * dx),
    )
    places = out_y * out_x
    if rows < places:
        chosen = torch.randperm(places, generator=generator)[:rows]
        view = view[:, :, chosen // out_x, chosen % out_x]
    else:
        view = view.reshape(n, channels, places, ky, kx)
    count = view.shape[2]
    grouped = view.reshape(n, parts, channels // parts, count, ky * kx)
    return grouped.permute(1, 0, 3, 2, 4).reshape(parts, n * count, -1)


def _new_edges(
    plan: QuantPlan, module: fx.GraphModule, scales: dict[str, torch.Tensor]
) -> tuple[Edge, ...]:
    """The plan's edges with the new scales of weights, and of the biases that depend on them."""
    activations = plan.activations()
    fresh: dict[str, tuple[float, ...]] = {
        name: tuple(float(s) for s in value) for name, value in scales.items()
    }
    for layer in compute_nodes(module):
        weight, bias, source = layer.args[1], (*layer.args, None)[2], layer.args[0]
        assert isinstance(weight, fx.Node) and isinstance(source, fx.Node)
        if isinstance(bias, fx.Node) and weight.name in scales and source.name in activations:
            step = np.float32(activations[source.name].scale[0])
            product = np.asarray(fresh[weight.name], np.float32) * step
            fresh[bias.name] = tuple(float(s) for s in product.astype(np.float32))
    return tuple(
        dataclasses.replace(edge, scale=fresh[edge.node]) if edge.node in fresh else edge
        for edge in plan.edges
    )
