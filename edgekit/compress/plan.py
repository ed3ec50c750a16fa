"""QuantPlan: the quantization of a model, as data.

A plan names every quantized tensor of the canonical float graph (`edgekit.compress.graph`) and says
how it is quantized. Targets render it; none of them decides a scale of its own. The arithmetic is
the affine one of Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (arXiv:1712.05877): ``real = scale * (quantized - zero_point)``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

SCHEMA = "edgekit.plan/1"

__all__ = ["Edge", "QuantPlan"]


@dataclass(frozen=True)
class Edge:
    """One quantized tensor.

    Attributes:
        edge: a readable name, ``<layer>/<node>`` for activations, the parameter path for constants.
        node: the node of the canonical graph that produces the tensor.
        kind: ``activation``, ``weight`` or ``bias``.
        dtype: ``int8`` (activations, weights) or ``int32`` (biases).
        scale: float32 values; one, or one per channel along ``axis``.
        zero_point: as many integers as there are scales.
        axis: the channel axis, or None for one scale.
        quant_min: smallest stored integer.
        quant_max: largest stored integer.
        group: tensors with one group name hold one and the same scale and zero point.
    """

    edge: str
    node: str
    kind: Literal["activation", "weight", "bias"]
    dtype: Literal["int8", "int32"]
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None
    quant_min: int
    quant_max: int
    group: str | None = None

    def quantize(self, real: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Rounds ``real`` half to even onto this edge's integers (dtype `dtype`)."""
        scale, zero = self._broadcast(real.ndim)
        steps = np.rint(real.astype(np.float64) / scale) + zero
        stored: np.ndarray[Any, Any] = np.clip(steps, self.quant_min, self.quant_max)
        return stored.astype(self.dtype)

    def dequantize(self, stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The float32 values that stored integers stand for."""
        scale, zero = self._broadcast(stored.ndim)
        real: np.ndarray[Any, Any] = (stored.astype(np.float64) - zero) * scale
        return real.astype(np.float32)

    def _broadcast(self, ndim: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        shape = [1] * ndim
        if self.axis is not None:
            shape[self.axis] = -1
        scale = np.asarray(self.scale, np.float32).astype(np.float64)
        zero = np.asarray(self.zero_point, np.float64)
        if self.axis is None:
            return scale.reshape(()), zero.reshape(())
        return scale.reshape(shape), zero.reshape(shape)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, as `edgekit.plan/1` stores it."""
        return {
            "edge": self.edge,
            "node": self.node,
            "kind": self.kind,
            "dtype": self.dtype,
            "scale": list(self.scale),
            "zero_point": list(self.zero_point),
            "axis": self.axis,
            "quant_min": self.quant_min,
            "quant_max": self.quant_max,
            "group": self.group,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Edge:
        """The inverse of `to_json`."""
        return cls(
            edge=data["edge"],
            node=data["node"],
            kind=data["kind"],
            dtype=data["dtype"],
            scale=tuple(float(s) for s in data["scale"]),
            zero_point=tuple(int(z) for z in data["zero_point"]),
            axis=data["axis"],
            quant_min=int(data["quant_min"]),
            quant_max=int(data["quant_max"]),
            group=data.get("group"),
        )


@dataclass(frozen=True)
class QuantPlan:
    """The quantization of one canonical program under one scheme.

    Attributes:
        scheme: the scheme id, ``w8a8`` or ``fp32`` (an empty plan).
        program_digest: digest of the canonical float program that the node names refer to.
        edges: every quantized tensor, in execution order.
        kept_float: nodes left in float, each with its reason.
        calibration: source, digest and number of samples, and the observer used.
        overrides: named changes for an ISA that can't run the plan as it stands.
    """

    scheme: str
    program_digest: str
    edges: tuple[Edge, ...] = ()
    kept_float: tuple[tuple[str, str], ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def activations(self) -> dict[str, Edge]:
        """Activation edges by the name of the node that produces them."""
        return {e.node: e for e in self.edges if e.kind == "activation"}

    def constants(self) -> dict[str, Edge]:
        """Weight and bias edges by the name of their ``get_attr`` node."""
        return {e.node: e for e in self.edges if e.kind != "activation"}

    def to_json(self) -> dict[str, Any]:
        """The `edgekit.plan/1` document."""
        return {
            "schema": SCHEMA,
            "scheme": self.scheme,
            "program_digest": self.program_digest,
            "edges": [e.to_json() for e in self.edges],
            "kept_float": [{"node": n, "reason": r} for n, r in self.kept_float],
            "calibration": dict(self.calibration),
            "overrides": dict(self.overrides),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantPlan:
        """The inverse of `to_json`."""
        return cls(
            scheme=data["scheme"],
            program_digest=data["program_digest"],
            edges=tuple(Edge.from_json(e) for e in data["edges"]),
            kept_float=tuple((k["node"], k["reason"]) for k in data["kept_float"]),
            calibration=dict(data["calibration"]),
            overrides=dict(data.get("overrides", {})),
        )

    def digest(self) -> str:
        """sha256 of the canonical JSON form: equal plans, equal digests."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
