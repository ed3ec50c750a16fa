"""Which layers an x86 processor without VNNI may compute wrongly, and what becomes of the answers.

Without VNNI, int8 kernels multiply unsigned activations by signed weights with ``VPMADDUBSW``,
which adds the products of two neighbouring inputs in 16 bits and saturates: 255 * 127 * 2 is 64770,
and 32767 is kept of it. (Intel, "Nuances of int8 computations", oneDNN developer guide.) Here stand

- the bound: from a layer's integers alone, whether any input could make any two products saturate,
  whichever inputs a kernel takes together (`at_risk`);
- the override that follows (`overrides`, `limited`);
- the simulation: a plan's evaluation with saturating sums, in the order in which the kernels of
  OpenVINO (oneDNN) and ONNX Runtime (MLAS) take inputs together (`render_saturating`).

Which kernels saturate was found by running planted weights in the runtimes, on emulated Haswell,
Nehalem and Denverton (OpenVINO 2026.4.1, ONNX Runtime 1.32.0, LiteRT 2.3.0): convolutions, grouped
ones and linear layers in OpenVINO and, with AVX2, in ONNX Runtime; transposed convolutions in
OpenVINO. Depthwise convolutions are exact in all three, and so is everything in LiteRT.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional

from edgekit.compress.graph import (
    LINEARS,
    aten,
    channel_axis,
    compute_nodes,
    graph_module,
    groups,
    layer_of,
    tensor_of,
)
from edgekit.compress.plan import CHANGES, Edge, QuantPlan
from edgekit.compress.render import render
from edgekit.errors import UnsupportedError
from edgekit.names import NO_VNNI, WIDE

__all__ = [
    "Risk",
    "at_risk",
    "limited",
    "overrides",
    "remaining",
    "render_saturating",
    "worst_pairs",
]

LARGEST = 255
"""The largest unsigned activation."""

LOW, HIGH = -(2**15), 2**15 - 1

_BLOCK = 1 << 22
"""Sums of two products that the simulation holds at a time."""

Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Risk:
    """A layer whose kernels may saturate.

    Attributes:
        layer: the user's name of it.
        weight: the node of its weight in the canonical graph.
        channels: output channels that some input could make saturate.
        of: all of its output channels.
        worst: the largest sum of two products, by magnitude, that an input could give.
    """

    layer: str
    weight: str
    channels: int
    of: int
    worst: int


def takes_pairs(node: fx.Node, weight: torch.Tensor) -> bool:
    """Whether some kernel adds a layer's products two by two.

    Not where an output has one product only, nor in depthwise convolutions, whose kernels widen
    first. One with several outputs per input is no depthwise convolution to them.
    """
    if node.target is aten.conv_transpose2d.input:
        return weight.shape[0] > 1
    depthwise = node.target not in LINEARS and groups(node) == weight.shape[0] > 1
    return not (depthwise and weight.shape[1] == 1) and weight[0].numel() > 1


def worst_pairs(integers: Integers) -> tuple[Integers, Integers]:
    """The least and the largest sum of two products per channel, whichever two are added.

    Args:
        integers: [channels, inputs], int8 values.

    Returns:
        Two arrays [channels]: the two most negative weights times 255, the two largest times 255.
    """
    ordered = np.sort(integers.astype(np.int64), axis=1)
    low = np.minimum(ordered[:, :2], 0).sum(1) * LARGEST
    high = np.maximum(ordered[:, -2:], 0).sum(1) * LARGEST
    return low, high


def at_risk(program: torch.export.ExportedProgram, plan: QuantPlan) -> tuple[Risk, ...]:
    """Layers of a planned program that could saturate, in execution order.

    Those that are left out provably can't, in any kernel that adds two products in 16 bits.
    Activations of 16 bits go to no such kernel.
    """
    if plan.scheme == WIDE:
        return ()
    module = graph_module(program)
    found = {}
    for node, weight, edge in _layers(module, plan):
        stored = np.moveaxis(edge.quantize(weight.numpy()), channel_axis(node), 0)
        low, high = worst_pairs(stored.reshape(len(stored), -1))
        bad = (low < LOW) | (high > HIGH)
        if bad.any():
            worst = int(high.max()) if high.max() >= -low.min() else int(low.min())
            name = str(node.args[1])
            found[name] = Risk(layer_of(node), name, int(bad.sum()), len(bad), worst)
    return tuple(found.values())


def overrides(program: torch.export.ExportedProgram, plan: QuantPlan) -> dict[str, Any]:
    """The overrides of a plan, as it carries them: empty where no layer could saturate.

    By name: why, the ``isa`` that does not need it, the ``targets`` with what changes for each
    (`edgekit.compress.plan.CHANGES`) and the ``layers`` at risk.
    """
    risks = at_risk(program, plan)
    if not risks:
        return {}
    return {
        NO_VNNI: {
            "reason": "kernels add two products of u8 and s8 in 16 bits, which saturate",
            "isa": ["x86_64:avx_vnni|avx512_vnni"],
            "targets": {name: dict(change) for name, change in CHANGES[NO_VNNI].items()},
            "layers": [dataclasses.asdict(risk) for risk in risks],
        }
    }


def remaining(plan: QuantPlan) -> dict[str, Any]:
    """The overrides of a plan in which some layers were put back into float since."""
    constants, found = plan.constants(), {}
    for name, entry in plan.overrides.items():
        layers = [layer for layer in entry["layers"] if layer["weight"] in constants]
        if layers:
            found[name] = {**entry, "layers": layers}
    return found


def limited(
    program: torch.export.ExportedProgram, plan: QuantPlan, weights: Collection[str], limit: int
) -> QuantPlan:
    """The plan with some layers' weights within plus and minus ``limit``.

    With 64 nothing saturates: 255 * 64 * 2 is 32640. Scales widen so that all weights still fit;
    the weights are not rounded here (`edgekit.compress.reconstruct`).

    Args:
        program: the canonical program, with weights that may still be anything.
        plan: its quantization.
        weights: nodes of the weights to limit.
        limit: the largest integer allowed.
    """
    module, activations = graph_module(program), plan.activations()
    fresh: dict[str, Edge] = {}
    constants = plan.constants()
    for node, weight, edge in _layers(module, plan):
        if edge.node not in weights:
            continue
        others = [axis for axis in range(weight.dim()) if axis != edge.axis]
        reach = weight.double().abs().amax(others).numpy() / limit
        scale = np.maximum(np.asarray(edge.scale), reach).astype(np.float32)
        fresh[edge.node] = dataclasses.replace(
            edge, scale=_floats(scale), quant_min=-limit, quant_max=limit
        )
        bias = node.args[2] if len(node.args) > 2 else None
        if isinstance(bias, fx.Node) and bias.name in constants:
            step = np.float32(activations[node.all_input_nodes[0].name].scale[0])
            fresh[bias.name] = dataclasses.replace(
                constants[bias.name], scale=_floats((scale * step).astype(np.float32))
            )
    edges = tuple(fresh.get(e.node, e) if e.kind != "activation" else e for e in plan.edges)
    return dataclasses.replace(plan, edges=edges)


def _floats(values: np.ndarray[Any, Any]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _layers(
    module: fx.GraphModule, plan: QuantPlan
) -> Iterator[tuple[fx.Node, torch.Tensor, Edge]]:
    """Quantized layers that take products two by two, with their weights' values and edges."""
    constants, activations = plan.constants(), plan.activations()
    for node in compute_nodes(module):
        weight = tensor_of(module, node.args[1])
        edge = constants.get(str(node.args[1]))
        source = node.args[0]
        if weight is None or edge is None or not isinstance(source, fx.Node):
            continue
        if source.name in activations and takes_pairs(node, weight):
            yield node, weight, edge


# -- the simulation -------------------------------------------------------------------------------


def render_saturating(
    program: torch.export.ExportedProgram, plan: QuantPlan, target: str
) -> fx.GraphModule:
    """The plan's evaluation (form ``fake``) with sums as a processor without VNNI makes them.

    Args:
        program: the canonical program.
        plan: its quantization.
        target: ``openvino`` or ``onnxruntime``, whose kernels take other inputs together where
            their number is odd.

    Raises:
        UnsupportedError: a transposed convolution is at risk, which is not simulated; or the target
            is not one of these.
    """
    if target not in ("openvino", "onnxruntime"):
        raise UnsupportedError(f"no kernel of {target!r} is known to saturate")
    module = render(program, plan, "fake")
    risky = {risk.weight: risk for risk in at_risk(program, plan)}
    origin = graph_module(program)
    edges = {str(n.args[1]): (n, e) for n, _, e in _layers(origin, plan)}
    activations = plan.activations()
    for node in list(compute_nodes(module)):
        name = str(node.args[1])
        if name not in risky:
            continue
        if node.target is aten.conv_transpose2d.input:
            if target == "onnxruntime":
                continue  # it computes them in float
            raise UnsupportedError(
                f"{risky[name].layer}: saturation of transposed convolutions is not simulated"
            )
        original, edge = edges[name]
        source = activations[original.all_input_nodes[0].name]
        weight = tensor_of(module, node.args[1])
        assert weight is not None
        stored = torch.from_numpy(edge.quantize(weight.numpy())).to(torch.int32)
        kernel = _Kernel(node, stored, source, edge, target)
        with module.graph.inserting_after(node):
            excess = module.graph.call_function(kernel.excess, (node.args[0],))
        with module.graph.inserting_after(excess):
            wrong = module.graph.call_function(aten.sub.Tensor, (node, excess))
        for user in [u for u in node.users if u is not wrong]:
            user.replace_input_with(node, wrong)
    module.graph.lint()
    module.recompile()
    return module


class _Kernel:
    """What one layer's saturating sums lose.

    Only pairs of weights that could saturate are computed; the sums without saturation are the
    layer's own.
    """

    def __init__(
        self, node: fx.Node, stored: torch.Tensor, source: Edge, edge: Edge, target: str
    ) -> None:
        self.linear = node.target in LINEARS
        self.outputs, self.groups = stored.shape[0], groups(node)
        self.source = source
        self.scale = torch.tensor(edge.scale, dtype=torch.float64) * source.scale[0]
        if not self.linear:
            self.stride, self.padding, self.dilation = _geometry(node)
            if stored.dim() == 3:
                stored = stored[:, :, None, :]
            self.kernel = tuple(stored.shape[2:])
        # Channels lie innermost. oneDNN fills them up to fours where there are no groups; MLAS
        # takes the row as it comes.
        rows = stored if self.linear else stored.permute(0, 2, 3, 1)
        fills = target == "openvino" and self.groups == 1
        self.fill = (-rows.shape[-1]) % 4 if fills else 0
        rows = functional.pad(rows, (0, self.fill)).reshape(self.outputs, -1)
        self.odd = rows.shape[1] % 2
        rows = functional.pad(rows, (0, self.odd))
        first, second = rows[:, 0::2], rows[:, 1::2]
        high = first.clamp_min(0) + second.clamp_min(0)
        low = first.clamp_max(0) + second.clamp_max(0)
        risky = (high * LARGEST > HIGH) | (low * LARGEST < LOW)
        self.channel, self.pair = risky.nonzero(as_tuple=True)
        self.first = first[risky].float()
        self.second = second[risky].float()

    def excess(self, x: torch.Tensor) -> torch.Tensor:
        """What saturation takes from the layer's output: float, of the output's shape."""
        source = self.source
        unsigned = torch.round(x.double() / source.scale[0]) - source.quant_min
        unsigned = (unsigned + source.zero_point[0]).float()
        lost, shape = self._lost(unsigned)
        real = (lost * self.scale[:, None]).float()
        if self.linear:
            return real.T.reshape(*shape, self.outputs)
        places = shape[1:] if x.dim() == 4 else shape[2:]
        return (
            real.reshape(self.outputs, shape[0], -1)
            .movedim(0, 1)
            .reshape(shape[0], self.outputs, *places)
        )

    def _lost(self, unsigned: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Integers lost [outputs, rows], float64, and the shape that the rows stand for."""
        part = self.outputs // self.groups
        total: list[torch.Tensor] = []
        shape: tuple[int, ...] = ()
        for group in range(self.groups):
            columns, shape = self._columns(unsigned, group)
            mine = (self.channel >= group * part) & (self.channel < (group + 1) * part)
            channel = self.channel[mine] - group * part
            pairs, first, second = self.pair[mine], self.first[mine], self.second[mine]
            lost = torch.zeros(part, columns.shape[1], dtype=torch.float64)
            step = max(1, _BLOCK // max(1, columns.shape[1]))
            for start in range(0, len(pairs), step):
                some = slice(start, start + step)
                sums = columns[2 * pairs[some]] * first[some, None]
                sums += columns[2 * pairs[some] + 1] * second[some, None]
                sums -= sums.clamp(LOW, HIGH)
                lost.index_add_(0, channel[some], sums.double())
            total.append(lost)
        return torch.cat(total), shape

    def _columns(self, unsigned: torch.Tensor, group: int) -> tuple[torch.Tensor, tuple[int, ...]]:
        """The inputs of every output [inputs, rows] in the kernel's order, and the rows' shape."""
        if self.linear:
            rows = functional.pad(unsigned.reshape(-1, unsigned.shape[-1]), (0, self.fill))
            return functional.pad(rows, (0, self.odd)).T.contiguous(), tuple(unsigned.shape[:-1])
        x = unsigned if unsigned.dim() == 4 else unsigned[:, :, None, :]
        width = x.shape[1] // self.groups
        x = x[:, group * width : (group + 1) * width]
        (py, px), zero = self.padding, float(self.source.zero_point[0] - self.source.quant_min)
        x = functional.pad(x, (px, px, py, py), value=zero)
        x = functional.pad(x, (0, 0, 0, 0, 0, self.fill))
        patches = functional.unfold(x, self.kernel, dilation=self.dilation, stride=self.stride)
        sizes = [
            (x.shape[2 + i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        ]
        n, channels, taps = x.shape[0], x.shape[1], math.prod(self.kernel)
        ordered = patches.reshape(n, channels, taps, -1).permute(2, 1, 0, 3)
        columns = ordered.reshape(taps * channels, -1)
        return functional.pad(columns, (0, 0, 0, self.odd)), (n, *sizes)


def _geometry(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Stride, padding and dilation along two axes; a convolution along one is one of one row."""
    values: list[tuple[int, ...]] = []
    for given, default in zip((*node.args[3:6], None, None, None)[:3], (1, 0, 1), strict=True):
        pair = tuple(given) if isinstance(given, list | tuple) else (default,)
        if node.target is aten.conv1d.default:
            pair = (default, *pair)
        values.append(pair * 2 if len(pair) == 1 else pair)
    return values[0], values[1], values[2]


def compare(
    right: Mapping[str, np.ndarray[Any, Any]], wrong: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, dict[str, float]]:
    """SQNR in dB and agreement of the largest element, per output, of two evaluations [n, ..]."""
    found = {}
    for name, exact in right.items():
        other = wrong[name].astype(np.float64)
        noise = float(np.square(exact - other).sum())
        power = float(np.square(exact.astype(np.float64)).sum())
        same = exact.reshape(len(exact), -1).argmax(1) == other.reshape(len(exact), -1).argmax(1)
        ratio = 10 * math.log10(power / noise) if noise and power else math.inf
        found[name] = {"sqnr_db": ratio, "agreement": float(same.mean())}
    return found
