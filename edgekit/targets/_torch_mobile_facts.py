"""What a ``.ptl`` file computes in which type, and what it stores in the plan's terms."""

from __future__ import annotations

import collections
import json
from typing import Any

import numpy as np

from edgekit.runtime.ptl import Attribute, Call, Packed, Program, Tensor
from edgekit.targets import Placement, Stored
from edgekit.targets._border import with_border_roles
from edgekit.targets._common import channel_digest
from edgekit.targets._reasons import Op, Role, by_dtype, reasons

_OFFSET = 128
_MOVES = frozenset(
    f"aten::{name}"
    for name in (
        *("reshape", "view", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "expand"),
        *("slice", "select", "constant_pad_nd", "pixel_shuffle", "pixel_unshuffle", "contiguous"),
    )
)
_OWN_SCALE = ("aten::quantize_per_tensor",)
_SAME_SCALE = _MOVES | {
    f"aten::{name}"
    for name in (
        *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
        *("relu", "hardtanh", "hardsigmoid"),
        *("upsample_nearest2d", "upsample_bilinear2d"),
    )
}
_POOLED = "the kernel on integers gives no scale but its input's"
_KNOWN = {
    "aten::embedding": "an embedding's table is int8, and its rows are read in float",
    "aten::adaptive_avg_pool2d": _POOLED,
    "aten::avg_pool2d": _POOLED,
}


def placement(program: Program) -> Placement:
    """Operators by type, and the type that they compute in."""
    roles = _roles(program)
    ops = collections.Counter(call.op for call in program.calls)
    border = {*program.inputs, *program.results}
    boundary = float_ops = 0
    first: str | None = None
    made, ends = with_border_roles(
        [
            Op(call.op, call.inputs, tuple(v.name for v in call.outputs), role)
            for call, role in zip(program.calls, roles, strict=True)
        ],
        _pixels(program),
        {call.op for call in program.calls if _is_layer(call.op)},
    )
    waste: collections.Counter[str] = collections.Counter()
    for place, (call, op) in enumerate(zip(program.calls, made, strict=True)):
        role, names = op.role, op.outputs
        boundary += role == "border"
        if role in ("quantize", "dequantize"):
            boundary += bool(border & {*call.inputs, *names}) or place in ends
        if role in ("quantize", "dequantize", "move"):
            waste[call.op] += 1
        elif role == "float":
            float_ops += 1
            first = first or f"{call.op} computes in float (operator {names[0]})"
    sizes: collections.Counter[str] = collections.Counter()
    for value in program.attributes.values():
        for array in (a for t in _tensors(value) for a in t.arrays):
            sizes[str(array.dtype)] += int(array.nbytes)
    return Placement(
        ops=dict(sorted(ops.items())),
        float_ops=float_ops,
        boundary_ops=boundary,
        first_fallback=first,
        bytes_by_dtype=dict(sorted(sizes.items())),
        waste=dict(sorted(waste.items())),
        reasons=reasons(made, border, _KNOWN),
        ops_by_dtype=by_dtype(made),
        layers=by_dtype([op for op in made if _is_layer(op.kind)]),
    )


def _pixels(program: Program) -> set[str]:
    """Inputs that are uint8 by the signature that the file states, if it is one of edgekit's."""
    try:
        stated = json.loads(program.stated)["inputs"]
        return {n for n, t in zip(program.inputs, stated, strict=True) if t["dtype"] == "uint8"}
    except (ValueError, KeyError, TypeError):
        return set()


def _is_layer(kind: str) -> bool:
    """Convolutions and linear layers, of whatever type and with what fused."""
    return kind.partition("::")[2].lstrip("_").startswith(("conv", "linear"))


def stored(program: Program) -> list[Stored]:
    """Every quantized tensor."""
    found: dict[Stored, None] = {}
    for call in program.calls:
        grid = _grid(call)
        if grid is not None:
            scale, zero = grid
            name = call.outputs[0].name
            found[Stored(name, "activation", (scale,), (zero - _OFFSET,))] = None
    for name, value in program.attributes.items():
        for tensor in _tensors(value):
            if tensor.scheme == "per_channel_affine":
                digest = channel_digest(tensor.values, tensor.axis)
                scale_, zeros = tuple(np.float32(s).item() for s in tensor.scale), tensor.zero_point
                found[Stored(name, "weight", scale_, zeros, digest)] = None
        scales = program.attributes.get(f"{name.removesuffix('_int8')}_scale")
        if name.endswith("_int8") and isinstance(scales, Tensor):
            rows = tuple(float(s) for s in scales.values.reshape(-1))
            digest = channel_digest(value.values, 0)
            found[Stored(name, "weight", rows, (0,) * len(rows), digest)] = None
    return list(found)


def _tensors(value: Any) -> list[Tensor]:
    return value.tensors() if isinstance(value, Packed) else [value]


def _grid(call: Call) -> tuple[float, int] | None:
    """The scale and zero point that an operator states for what it gives."""
    numbers = call.args[1:3] if call.op == "aten::quantize_per_tensor" else call.args[-2:]
    stated = call.op == "aten::quantize_per_tensor" or (
        call.op.startswith("quantized::") and "dynamic" not in call.op
    )
    if not stated:
        return None
    scale, zero = (_number(n) for n in numbers)
    return float(np.float32(scale)), int(zero)


def _number(value: Any) -> float:
    """A number, or a constant of one number, in which torch's own quantizer states its scales."""
    if isinstance(value, Attribute):
        value = value.value.values.item()
    return float(value)


def _roles(program: Program) -> list[Role]:
    integers: set[str] = set()
    roles: list[Role] = []
    for call in program.calls:
        role = _role(call, integers)
        roles.append(role)
        on_integers = role in ("quantize", "integer") or (
            role == "move" and bool(integers & set(call.inputs))
        )
        if on_integers and "dynamic" not in call.op:
            integers.update(v.name for v in call.outputs)
    return roles


def _role(call: Call, integers: set[str]) -> Role:
    if call.op == "aten::quantize_per_tensor":
        return "quantize"
    if call.op == "aten::dequantize":
        return "dequantize"
    if call.op in _MOVES:
        return "move"
    if call.op.startswith("quantized::"):
        return "integer"
    read = set(call.inputs)
    return "integer" if read and read <= integers and call.op in _SAME_SCALE else "float"
