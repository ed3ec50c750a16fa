"""QuantPlan: the quantization of a model, as data.

A plan names every quantized tensor of the canonical float graph (`edgekit.compress.graph`) and says
how it is quantized. Targets render it; none of them decides a scale of its own. The arithmetic is
the affine one of Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (arXiv:1712.05877): ``real = scale * (quantized - zero_point)``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgekit.names import NO_VNNI

SCHEMA = "edgekit.plan/1"

CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    NO_VNNI: {"onnxruntime": {"weight_dtype": "uint8"}, "openvino": {"weight_limit": 64}}
}
"""What an override changes for a target: the same weights stored in another type, or weights within
plus and minus a limit, which are rounded anew and so are a plan of their own."""

__all__ = ["CHANGES", "Dynamic", "Edge", "QuantPlan", "plan_name"]


def plan_name(target: str, scheme: str, variant: str | None) -> str:
    """The name of the plan that an artifact is made of: its scheme, or ``<scheme>@<variant>``."""
    change = CHANGES.get(variant or "", {}).get(target, {})
    return f"{scheme}@{variant}" if "weight_limit" in change else scheme


@dataclass(frozen=True)
class Edge:
    """One quantized tensor.

    Attributes:
        edge: a readable name, ``<layer>/<node>`` for activations, the parameter path for constants.
        node: the node of the canonical graph that produces the tensor.
        kind: ``activation``, ``weight`` or ``bias``.
        dtype: ``int8`` (activations, weights), ``int16`` (activations), ``int4`` (weights, each in
            a byte here), ``float16`` (weights of half precision: scale 1, zero point 0) or
            ``int32`` (biases).
        scale: float32 values; one, or one per channel along ``axis``.
        zero_point: as many integers as there are scales.
        axis: the channel axis, or None for one scale.
        quant_min: smallest stored integer.
        quant_max: largest stored integer.
        group: tensors with one group name hold one and the same scale and zero point.
        rounded: False where a runtime's kernels keep the tensor to the range of the stored integers
            and don't round it; so only in what such a runtime is held against (`Unrounded`).
    """

    edge: str
    node: str
    kind: Literal["activation", "weight", "bias"]
    dtype: Literal["int8", "int16", "int4", "int32", "float16"]
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None
    quant_min: int
    quant_max: int
    group: str | None = None
    rounded: bool = True

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value that the integers of one scale stand for."""
        (scale,), (zero,) = self.scale, self.zero_point
        return (self.quant_min - zero) * scale, (self.quant_max - zero) * scale

    def quantize(self, real: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Rounds ``real`` half to even onto what this edge stores (of `dtype`; int4 as int8)."""
        if self.dtype == "float16":
            return real.astype(np.float16)
        scale, zero = self._broadcast(real.ndim)
        steps = np.rint(real.astype(np.float64) / scale) + zero
        stored: np.ndarray[Any, Any] = np.clip(steps, self.quant_min, self.quant_max)
        return stored.astype("int8" if self.dtype == "int4" else self.dtype)

    def dequantize(self, stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The float32 values that stored integers stand for."""
        scale, zero = self._broadcast(stored.ndim)
        real: np.ndarray[Any, Any] = (stored.astype(np.float64) - zero) * scale
        return real.astype(np.float32)

    def round(self, real: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The float32 values that ``real`` is stored as."""
        return self.dequantize(self.quantize(real))

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
        # Plans that are stored round everything, and keep to their form.
        more: dict[str, Any] = {} if self.rounded else {"rounded": False}
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
            **more,
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
            rounded=bool(data.get("rounded", True)),
        )


@dataclass(frozen=True)
class Dynamic:
    """A layer whose input is quantized to 8 bits while the model runs, from the values at hand.

    The arithmetic is affine, over the range from the smallest to the largest value and zero.

    Attributes:
        layer: a readable name, ``<layer>/<node>``.
        node: the node of the canonical graph that computes the layer.
        per: what shares a scale: ``row`` (the features of one position, which come last),
            ``pixel`` (the channels of one pixel), ``sample`` (one picture) or ``tensor``.
    """

    layer: str
    node: str
    per: Literal["row", "pixel", "sample", "tensor"]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, as `edgekit.plan/1` stores it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class QuantPlan:
    """The quantization of one canonical program under one scheme.

    Attributes:
        scheme: the scheme id; ``fp32`` is an empty plan.
        program_digest: digest of the canonical float program that the node names refer to.
        edges: every quantized tensor, in execution order.
        kept_float: nodes left in float, each with its reason.
        calibration: source, digest and number of samples, and the observer used.
        overrides: named changes for an ISA that can't run the plan as it stands
            (`edgekit.compress.saturation.overrides`).
        variant: the override that this plan is rendered with, or None.
        sensitivity: what quantizing each part costs (`edgekit.compress.sensitivity`), if measured.
        dynamic: layers that quantize their input at run time.
        origin: digest of the model's own canonical program, where the plan's is one with other
            weights (scaled, rounded, trained) or channels.
        training: how weights and scales were trained, if they were (`edgekit.compress.qat`).
    """

    scheme: str
    program_digest: str
    edges: tuple[Edge, ...] = ()
    kept_float: tuple[tuple[str, str], ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None
    sensitivity: Mapping[str, Any] = field(default_factory=dict)
    dynamic: tuple[Dynamic, ...] = ()
    origin: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rounds(self) -> bool:
        """Whether values are rounded while the model runs, not its weights alone."""
        return bool(self.dynamic) or any(e.kind == "activation" for e in self.edges)

    def change(self, target: str) -> Mapping[str, Any]:
        """What its variant changes for one target; empty if nothing."""
        if self.variant is None:
            return {}
        found: Mapping[str, Any] = (
            self.overrides.get(self.variant, {}).get("targets", {}).get(target, {})
        )
        return found

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
            "variant": self.variant,
            # Only where there are any, so that other plans keep their bytes.
            **({"sensitivity": dict(self.sensitivity)} if self.sensitivity else {}),
            **({"dynamic": [d.to_json() for d in self.dynamic]} if self.dynamic else {}),
            **({"origin": self.origin} if self.origin else {}),
            **({"training": dict(self.training)} if self.training else {}),
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
            variant=data.get("variant"),
            sensitivity=dict(data.get("sensitivity", {})),
            dynamic=tuple(Dynamic(**d) for d in data.get("dynamic", [])),
            origin=data.get("origin"),
            training=dict(data.get("training", {})),
        )

    def digest(self) -> str:
        """sha256 of the canonical JSON form: equal plans, equal digests."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
