"""Why an artifact's operators convert, move or compute in floating point."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgekit.targets import Reason

Role = Literal["integer", "float", "quantize", "dequantize", "move", "border"]

BOUNDARY = "the model's own inputs and outputs are float"
PIXELS = "makes the model's input out of a picture's pixels"
LAYOUT = "pictures come with their channels first, and kernels take them last"
REQUANTIZE = "brings a tensor to the scale of another"
MOVED = "the model moves its data so, or the kernels before and after keep it in another order"
CONSTANT = "arranges a constant, when the model is loaded"
PADDING = "the model pads so, which the kernel after it cannot do by itself"
NO_KERNEL = "the plan keeps it in float, or this runtime has no integer kernel for it"

_PASSED: tuple[Role, ...] = ("move", "quantize", "dequantize")


@dataclass(frozen=True)
class Op:
    """One operator of a graph.

    Attributes:
        kind: its type, as `Placement.ops` counts it.
        inputs: names of the computed tensors that it reads.
        outputs: names of the tensors that it makes.
        role: what it does; ``move`` changes no value but where and how values lie, ``border`` is
            part of a picture border.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    role: Role


def reasons(
    ops: Sequence[Op], border: set[str], known: Mapping[str, str] | None = None
) -> tuple[Reason, ...]:
    """A reason for each operator that doesn't compute on integers, alike ones counted together.

    Args:
        ops: all of the graph; without a single integer one it is a float model, and has no reasons.
        border: names of the model's inputs and outputs.
        known: why a type computes in float in this runtime, where more is known than that it does;
            and under ``border <type>`` what one of a picture border is there for.
    """
    if not any(op.role in ("integer", "quantize", "dequantize") for op in ops):
        return ()
    graph = _Graph(ops, border)
    found = collections.Counter(
        (op.kind, graph.why(op, known or {})) for op in ops if op.role != "integer"
    )
    rows = [Reason(kind, count, why) for (kind, why), count in found.items()]
    return tuple(sorted(rows, key=lambda r: (-r.count, r.operator, r.why)))


def by_dtype(ops: Sequence[Op]) -> dict[str, int]:
    """Operators by what they do, as `Placement.ops_by_dtype` counts them."""
    names = {"quantize": "convert", "dequantize": "convert", "border": "convert"}
    return dict(sorted(collections.Counter(names.get(op.role, op.role) for op in ops).items()))


class _Graph:
    def __init__(self, ops: Sequence[Op], border: set[str]) -> None:
        self._border = border
        self._maker = {name: op for op in ops for name in op.outputs}
        self._readers: dict[str, list[Op]] = {}
        for op in ops:
            for name in op.inputs:
                self._readers.setdefault(name, []).append(op)

    def why(self, op: Op, known: Mapping[str, str]) -> str:
        if op.role == "float":
            return known.get(op.kind, NO_KERNEL)
        if op.role == "border":
            return known.get(f"border {op.kind}", PIXELS)
        before, after = self._before(op), self._after(op)
        if op.role == "move":
            return self._why_moved(op)
        if op.role == "quantize":
            makers = _kinds(before)
            if makers:
                return f"rounds what {makers} gives in float"
            return BOUNDARY if None in before else REQUANTIZE
        readers = _kinds(after)
        if readers:
            return f"hands integers to {readers}, in float"
        return BOUNDARY if None in after else REQUANTIZE

    def _why_moved(self, op: Op) -> str:
        kind = op.kind.lower()
        if kind.startswith("pad"):
            return PADDING
        before, after = self._before(op, _PASSED), self._after(op, _PASSED)
        if not before:
            return CONSTANT
        if None in before or None in after:
            return LAYOUT if kind.startswith(("transpose", "reorder")) else BOUNDARY
        return MOVED

    def _before(self, op: Op, passed: Sequence[Role] = ("move",)) -> set[Op | None]:
        """The operators that make what ``op`` reads, behind those of the roles ``passed``; None for
        the model's inputs."""
        found: set[Op | None] = set()
        for name in op.inputs:
            maker = self._maker.get(name)
            if maker is not None and maker.role in passed:
                found |= self._before(maker, passed)
            elif maker is not None or name in self._border:
                found.add(maker)
        return found

    def _after(self, op: Op, passed: Sequence[Role] = ("move",)) -> set[Op | None]:
        found: set[Op | None] = set()
        for name in op.outputs:
            if name in self._border:
                found.add(None)
            for reader in self._readers.get(name, []):
                found |= self._after(reader, passed) if reader.role in passed else {reader}
        return found


def _kinds(ops: set[Op | None]) -> str:
    """Types of those that compute in float."""
    return " and ".join(sorted({op.kind for op in ops if op is not None and op.role == "float"}))
