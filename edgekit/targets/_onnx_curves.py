"""Hard-swish in ONNX files, as a product of integers.

``x * clip(x + 3, 0, 6) / 6`` has no integer kernel in ONNX Runtime: it would dequantize, compute in
float and quantize again. Where 3 is a whole number k of steps (the plan sees to it), the factor
``clip(x + 3, 0, 6) / 6`` is x's own integers, held between z - k and z + k and read with the scale
``s / 6`` and the zero point z - k. A clip of integers and a product of integers are left, and both
have fast kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_BEND = 3.0
_SLOPE = 6.0


def integer_hard_swish(model: Any) -> None:
    """Rewrites every ``HardSwish`` between quantized tensors whose scale allows it, in place."""
    from onnx import helper, numpy_helper

    graph = model.graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    maker = {o: n for n in graph.node for o in n.output}
    nodes = []
    for node in graph.node:
        source = maker.get(node.input[0]) if node.op_type == "HardSwish" else None
        gate = None if source is None else _gate(source, values)
        if source is None or gate is None or not _is_quantized(graph, node.output[0]):
            nodes.append(node)
            continue
        low, high, scale, zero = gate
        kind, base = zero.dtype.type, node.output[0]
        names = [f"{base}_gate_{part}" for part in ("low", "high", "scale", "zero_point")]
        for name, array in zip(names, (kind(low), kind(high), scale, zero), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        held, real = f"{base}_gate_integers", f"{base}_gate"
        clipped = source.input[0]
        if (low, high) != (np.iinfo(kind).min, np.iinfo(kind).max):
            nodes.append(helper.make_node("Clip", [clipped, *names[:2]], [held], held))
            clipped = held
        nodes.append(helper.make_node("DequantizeLinear", [clipped, *names[2:]], [real], real))
        nodes.append(helper.make_node("Mul", [node.input[0], real], [base], node.name or base))
    # Copies, because clearing the list below empties nodes that live in it.
    copied = [type(n).FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copied)


def _is_quantized(graph: Any, name: str) -> bool:
    readers = [n for n in graph.node if name in n.input]
    return bool(readers) and all(n.op_type == "QuantizeLinear" for n in readers)


def _gate(
    source: Any, values: dict[str, np.ndarray[Any, Any]]
) -> tuple[int, int, np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Limits of the integers, scale and zero point of the factor, or None if it isn't on integers.

    Args:
        source: the node that dequantizes x.
        values: the file's constants by name.
    """
    if source.op_type != "DequantizeLinear" or len(source.input) < 3:
        return None
    scale, zero = (values.get(name) for name in source.input[1:3])
    if scale is None or zero is None or scale.size != 1 or source.input[0] in values:
        return None
    step = float(scale.reshape(()))
    bend = round(_BEND / step)
    ends = np.iinfo(zero.dtype)
    low = int(zero.reshape(())) - bend
    if bend < 1 or abs(bend * step - _BEND) > 1e-6 * _BEND or low < ends.min:
        return None
    made = np.asarray(np.float32(step / _SLOPE))
    return low, min(low + 2 * bend, int(ends.max)), made, np.asarray(low, zero.dtype)


def is_gate(
    node: Any, maker: dict[str, Any], graph: Any, values: dict[str, np.ndarray[Any, Any]]
) -> bool:
    """Whether a ``DequantizeLinear`` reads the factor that `integer_hard_swish` made, and rightly.

    Its scale is derived from the tensor's own, which is compared with the plan by itself.
    """
    held = maker.get(node.input[0])
    name = held.input[0] if held is not None and held.op_type == "Clip" else node.input[0]
    others = [
        n
        for n in graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] == name and n is not node
    ]
    for other in others:
        gate = _gate(other, values)
        if gate is None:
            continue
        low, high, scale, zero = gate
        ends = (np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max)
        if held is not None and held.op_type == "Clip":
            ends = (int(values[held.input[1]]), int(values[held.input[2]]))
        found = (*ends, float(values[node.input[1]].reshape(())), int(values[node.input[2]]))
        if found == (low, high, float(scale), int(zero)):
            return True
    return False
