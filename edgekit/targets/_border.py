"""Which operators of a graph are a picture border, told by the pixels that they start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Final

from edgekit.targets._reasons import Op

__all__ = ["with_border_roles", "with_joined_border"]

_ARITHMETIC: Final = 3
_TURNS: Final = ("slice", "flip")
"""In the types of operators that put colours in the other order."""


def with_border_roles(
    ops: Sequence[Op], pixels: Container[str], layers: Container[str]
) -> tuple[list[Op], set[int]]:
    """The operators with the role ``border`` for those that make the model's tensor of pixels.

    They are all between an input of pixels and where it is quantized, if there is no more than a
    border needs: one operator to float32, one times and one plus, and what turns colours around.
    In a graph that does not quantize it, nothing tells them from the model's own operators. Then
    all keep their roles.

    Args:
        ops: all of the graph, in order.
        pixels: names of its uint8 inputs.
        layers: types of operators with weights, before which a border ends.

    Returns:
        The operators, and the places of those that belong to the border's end: what quantizes.
    """
    reached = {name for op in ops for name in op.inputs if name in pixels}
    inside: set[int] = set()
    ends: set[int] = set()
    for place, op in enumerate(ops):
        if not reached & set(op.inputs):
            continue
        if op.role == "quantize":
            ends.add(place)
        elif op.role == "integer":
            continue  # it quantizes what it reads by itself
        elif op.kind in layers or op.role == "dequantize":
            return list(ops), set()
        else:
            inside.add(place)
            reached |= set(op.outputs)
    float_ops = [ops[place].kind.lower() for place in inside if ops[place].role == "float"]
    if sum(not any(turn in kind for turn in _TURNS) for kind in float_ops) > _ARITHMETIC:
        return list(ops), set()
    made = [
        dataclasses.replace(op, role="border") if i in inside else op for i, op in enumerate(ops)
    ]
    return made, ends


def with_joined_border(
    ops: Sequence[Op], pixels: Container[str], moves: Container[str], joined: str
) -> list[Op]:
    """The same for a runtime that joins a border's arithmetic in one kernel, of type ``joined``.

    The border is then what moves the pixels (types ``moves``) and the first such kernel after it.
    """
    reached = {name for op in ops for name in op.inputs if name in pixels}
    found = []
    for op in ops:
        if reached & set(op.inputs) and (op.kind in moves or op.kind == joined):
            if op.kind != joined:
                reached |= set(op.outputs)
            op = dataclasses.replace(op, role="border")
        found.append(op)
    return found
