"""Running a graph node by node over all calibration samples, float and quantized side by side.

Layer-by-layer methods need what a layer gets in the float model and what it gets behind layers
that are quantized already. Both runs advance together, and a value is dropped after its last use.
Float values are kept in half precision, quantized ones as the integers that they are, and inputs
as they were given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from edgekit.compress.graph import tensor_of
from edgekit.compress.plan import Edge

__all__ = ["Streams", "peak_bytes"]

_HALF_REACH = (1e-2, 3e4)
"""Tensors that reach less or more keep single precision: half has no digits left below 6e-8."""


@dataclass(frozen=True)
class _Codes:
    """Quantized values as the integers they are, with their scale and zero point."""

    codes: torch.Tensor
    scale: float
    zero_point: int


class Streams:
    """Values of both runs, by node, one list entry per sample.

    Args:
        module: the float graph.
        activations: quantized edges by node name.
        feeds: samples, one tuple of input tensors each.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        activations: Mapping[str, Edge],
        feeds: Sequence[tuple[torch.Tensor, ...]],
    ) -> None:
        self.count = len(feeds)
        self._activations = activations
        self._feeds = feeds
        self._left = {node: len(node.users) for node in module.graph.nodes}
        self._inputs = 0
        self._float: dict[fx.Node, Any] = {}
        self._quantized: dict[fx.Node, Any] = {}
        self._constants = {
            node: tensor_of(module, node) for node in module.graph.nodes if node.op == "get_attr"
        }
        self._changed: dict[fx.Node, torch.Tensor] = {}

    def replace(self, node: fx.Node, value: torch.Tensor) -> None:
        """Gives a constant another value in the quantized run."""
        self._changed[node] = value

    def inputs(self, node: fx.Node, sample: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A computed value in the float and the quantized run, in single precision."""
        return _load(self._float[node][sample]), _load(self._quantized[node][sample])

    def outputs(self, node: fx.Node) -> tuple[list[Any], list[Any]]:
        """What a node gives in both runs, before its output is quantized.

        In half precision, where they fit in it: this is much, and for one look only.
        """
        runs: tuple[tuple[Any, dict[fx.Node, torch.Tensor]], ...] = (
            (self._float, {}),
            (self._quantized, self._changed),
        )
        exact, rounded = (
            [_store(self._compute(node, i, values, changed)) for i in range(self.count)]
            for values, changed in runs
        )
        return exact, rounded

    def advance(
        self,
        node: fx.Node,
        made: tuple[list[Any], list[Any]] | None = None,
        *,
        shift: torch.Tensor | None = None,
    ) -> None:
        """Computes a node in both runs, or takes what `outputs` made, and keeps it.

        Inputs that no later node reads are dropped.

        Args:
            node: the next node in execution order.
            made: what `outputs` gave for it; emptied while it is read.
            shift: is added to what the quantized run made.
        """
        if node.op in ("get_attr", "output"):
            return
        edge = self._activations.get(node.name)
        if node.op == "placeholder":
            given: list[Any] = [feed[self._inputs] for feed in self._feeds]
            self._inputs += 1
            self._float[node] = given
            self._quantized[node] = given if edge is None else [_quantize(v, edge) for v in given]
            return
        if made is None:
            made = self.outputs(node)
        self._float[node] = [_store(value) for value in made[0]]
        kept: list[Any] = []
        for i, value in enumerate(made[1]):
            value = _load(value) if shift is None else _load(value) + shift
            made[1][i] = None
            kept.append(_store(value) if edge is None else _quantize(value, edge))
        self._quantized[node] = kept
        for source in node.all_input_nodes:
            self._left[source] -= 1
            if not self._left[source]:
                self._float.pop(source, None)
                self._quantized.pop(source, None)

    def _compute(
        self,
        node: fx.Node,
        sample: int,
        values: Mapping[fx.Node, Any],
        changed: Mapping[fx.Node, torch.Tensor],
    ) -> Any:
        def fetch(source: fx.Node) -> Any:
            if source.op == "get_attr":
                return changed.get(source, self._constants[source])
            return _load(values[source][sample])

        args, kwargs = fx.map_arg((node.args, node.kwargs), fetch)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def peak_bytes(module: fx.GraphModule) -> int:
    """Bytes per sample that both runs hold at once, at most."""
    left = {node: len(node.users) for node in module.graph.nodes}
    live = peak = 0
    for node in module.graph.nodes:
        if node.op in ("get_attr", "output"):
            continue
        live += 4 * _elements(node)
        peak = max(peak, live)
        for source in node.all_input_nodes:
            left[source] -= 1
            if not left[source] and source.op != "get_attr":
                live -= 4 * _elements(source)
    return peak


def _elements(node: fx.Node) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return sum(v.numel() for v in values if isinstance(v, torch.Tensor))


def _store(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or not value.numel():
        return value
    return value.half() if _HALF_REACH[0] < float(value.abs().max()) < _HALF_REACH[1] else value


def _load(value: Any) -> Any:
    if isinstance(value, _Codes):
        return (value.codes.float() - value.zero_point) * value.scale
    if isinstance(value, torch.Tensor) and value.dtype == torch.float16:
        return value.float()
    return value


def _quantize(value: torch.Tensor, edge: Edge) -> _Codes:
    scale, zero = edge.scale[0], edge.zero_point[0]
    codes = torch.clamp(torch.round(value / scale) + zero, edge.quant_min, edge.quant_max)
    return _Codes(codes.to(torch.int16 if edge.dtype == "int16" else torch.int8), scale, zero)
