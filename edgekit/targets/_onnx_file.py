"""Exact rewritings of ONNX files: none of them changes a value that the model computes."""

from __future__ import annotations

from typing import Any

import numpy as np

_OFFSET = 128


def strip(model: Any) -> None:
    """Drops source locations and exporter notes: they differ between machines and hold paths."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    graph.name = "edgekit"
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        # The zero point's type says it; the runtime's own rewriting trips over saying it twice.
        kept = [a for a in node.attribute if a.name != "output_dtype"]
        if node.op_type == "QuantizeLinear" and len(kept) != len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)


def unsigned_activations(model: Any) -> None:
    """int8 activations with zero point z become uint8 with z + 128: the same real values.

    Constants (weights) and biases keep their type.
    """
    from onnx import numpy_helper

    graph = model.graph
    values = {i.name: i for i in graph.initializer}
    quantized = {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    carried = set(quantized)
    for node in graph.node:
        if node.op_type != "DequantizeLinear" and node.op_type != "QuantizeLinear":
            carried.update(node.output if set(node.input) & carried else ())
    made: dict[str, str] = {}
    for node in graph.node:
        activation = node.op_type == "QuantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.input[0] in carried
        )
        if not activation or len(node.input) < 3:
            continue
        name = node.input[2]
        if name not in made:
            zero = numpy_helper.to_array(values[name])
            if zero.dtype != np.int8:
                continue
            moved = (zero.astype(np.int16) + _OFFSET).astype(np.uint8)
            made[name] = f"{name}_u8"
            graph.initializer.append(numpy_helper.from_array(moved, made[name]))
        node.input[2] = made[name]


def own_zero_points(model: Any) -> None:
    """Every int8 weight gets a zero point of its own, where the exporter let several share one.

    On x86 without VNNI a session may be asked for exact kernels (``session.x64quantprecision``).
    ONNX Runtime 1.32 then makes a uint8 copy of each weight and zero point under a name of its
    own, and refuses a file in which two weights have one zero point.
    """
    from onnx import numpy_helper

    graph = model.graph
    initializers = {i.name: i for i in graph.initializer}
    for node in graph.node:
        stored = initializers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is None or numpy_helper.to_array(stored).dtype != np.int8:
            continue
        zero = numpy_helper.to_array(initializers[node.input[2]])
        node.input[2] = f"{node.output[0]}_zero"
        graph.initializer.append(numpy_helper.from_array(zero, node.input[2]))


def unsigned_weights(model: Any) -> None:
    """int8 weights become uint8 with zero point 128: the same real values.

    For x86 without VNNI, where the kernels for u8 x u8 multiply in 16 bits and add in 32.
    """
    from onnx import numpy_helper

    graph = model.graph
    initializers = {i.name: i for i in graph.initializer}
    moved: set[str] = set()
    for node in graph.node:
        stored = initializers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if stored is None:
            continue
        integers = numpy_helper.to_array(stored)
        if integers.dtype != np.int8 and stored.name not in moved:
            continue
        zero = numpy_helper.to_array(initializers[node.input[2]])
        name = f"{stored.name}_zero_u8"
        if stored.name not in moved:
            moved.add(stored.name)
            unsigned = (integers.astype(np.int16) + _OFFSET).astype(np.uint8)
            stored.CopyFrom(numpy_helper.from_array(unsigned, stored.name))
            zeros = (zero.astype(np.int16) + _OFFSET).astype(np.uint8)
            graph.initializer.append(numpy_helper.from_array(zeros, name))
        node.input[2] = name


def row_products(model: Any) -> None:
    """Linear layers on more than two axes become ``Gemm`` on rows, which the runtime fuses.

    ``MatMul(DQ(x), Transpose(DQ(w))) + b`` has no integer kernel: the transposed weight hides its
    scales, and the runtime's own way to rows puts a reshape between the dequantizer and the
    product. Here the integers are reshaped, then dequantized.
    """
    from onnx import helper, numpy_helper, shape_inference

    graph = model.graph
    values = {i.name: i for i in graph.initializer}
    maker = {o: n for n in graph.node for o in n.output}
    readers = _readers(graph)
    results = {o.name for o in graph.output}
    shapes = {v.name: v for v in shape_inference.infer_shapes(model).graph.value_info}
    made: dict[str, list[Any]] = {}
    for node in graph.node:
        found = _row_product(node, maker, values, readers, results)
        shape = _static_shape(shapes.get(node.output[0])) if found is not None else None
        if found is None or shape is None:
            continue
        source, weight, add, bias = found
        inner = numpy_helper.to_array(values[weight.input[0]]).shape[1]
        base = node.name or node.output[0]
        for suffix, sizes in (("_rows", (-1, inner)), ("_back", shape)):
            array = np.asarray(sizes, np.int64)
            graph.initializer.append(numpy_helper.from_array(array, base + suffix))
        rows, real, out = (f"{base}_{part}" for part in ("int8", "real", "gemm"))
        product = [real, weight.output[0], bias]
        made[node.output[0]] = []
        made[add.output[0]] = [
            helper.make_node("Reshape", [source.input[0], f"{base}_rows"], [rows], rows),
            helper.make_node("DequantizeLinear", [rows, *source.input[1:]], [real], real),
            helper.make_node("Gemm", product, [out], out, transB=1),
            helper.make_node("Reshape", [out, f"{base}_back"], [add.output[0]], f"{out}_back"),
        ]
    if made:
        replace_nodes(graph, [m for n in graph.node for m in made.get(n.output[0], [n])])
        _drop_unread(graph)


def _static_shape(info: Any) -> tuple[int, ...] | None:
    """The sizes of all axes, or None where one is not known."""
    if info is None or not info.type.tensor_type.HasField("shape"):
        return None
    sizes = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
    return sizes if sizes and all(sizes) else None


def _row_product(
    node: Any,
    maker: dict[str, Any],
    values: dict[str, Any],
    readers: dict[str, list[Any]],
    results: set[str],
) -> tuple[Any, Any, Any, str] | None:
    """The dequantizers of input and weight, the addition and its bias, of a quantized product."""
    from onnx import numpy_helper

    if node.op_type != "MatMul" or node.output[0] in results:
        return None
    source, turned = (maker.get(name) for name in node.input)
    if source is None or turned is None or source.op_type != "DequantizeLinear":
        return None
    weight = maker.get(turned.input[0]) if turned.op_type == "Transpose" else None
    if weight is None or weight.op_type != "DequantizeLinear" or weight.input[0] not in values:
        return None
    users = readers.get(node.output[0], [])
    if len(users) != 1 or users[0].op_type != "Add" or source.input[0] in values:
        return None
    bias = next((name for name in users[0].input if name in values), None)
    if bias is None or len(numpy_helper.to_array(values[weight.input[0]]).shape) != 2:
        return None
    outputs = numpy_helper.to_array(values[weight.input[0]]).shape[0]
    if numpy_helper.to_array(values[bias]).shape != (outputs,):
        return None
    return source, weight, users[0], bias


def replace_nodes(graph: Any, nodes: list[Any]) -> None:
    """Gives a graph other operators, which may be among those it has."""
    # Copies, because clearing the list below empties nodes that live in it.
    copied = [type(n).FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copied)


def _drop_unread(graph: Any) -> None:
    """Drops operators whose results nothing reads."""
    while True:
        read = {name for node in graph.node for name in node.input}
        read |= {o.name for o in graph.output}
        kept = [n for n in graph.node if any(o in read for o in n.output)]
        if len(kept) == len(graph.node):
            return
        replace_nodes(graph, kept)


def integer_biases(model: Any) -> None:
    """Float biases of quantized layers become int32 with a dequantize operator.

    The plan has rounded them to ``scale_input * scale_weight`` already, so nothing changes; with
    the integer form the runtime fuses the layer into one integer kernel.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    values = {i.name: i for i in graph.initializer}
    maker = {o: n for n in graph.node for o in n.output}
    nodes = []
    for node in graph.node:
        bias = (
            node.input[2]
            if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2
            else ""
        )
        scale = _bias_scale(node, maker, values) if bias in values else None
        if scale is not None:
            real = numpy_helper.to_array(values[bias])
            stored = np.rint(real.astype(np.float64) / scale.astype(np.float64)).astype(np.int32)
            names = [f"{node.name}_bias{s}" for s in ("_int32", "_scale", "_float")]
            for array, name in zip((stored, scale), names[:2], strict=True):
                graph.initializer.append(numpy_helper.from_array(array, name))
            # Without a zero point, which is optional: zeros as large as all biases together.
            nodes.append(
                helper.make_node("DequantizeLinear", names[:2], [names[2]], names[2], axis=0)
            )
            node.input[2] = names[2]
        nodes.append(node)
    replace_nodes(graph, nodes)


def global_pooling(model: Any) -> None:
    """A mean over both spatial axes becomes ``GlobalAveragePool``.

    They are the same by definition; the runtime has an integer kernel for the latter only. Where
    the mean drops the axes, that is done to the integers behind it.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    values = {i.name: i for i in graph.initializer}
    readers = _readers(graph)
    flat = []
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in values:
            continue
        axes = sorted(int(a) for a in numpy_helper.to_array(values[node.input[1]]).reshape(-1))
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        behind = _only_quantizer(graph, readers, node.output[0])
        if axes not in ([-2, -1], [2, 3]) or (keep != 1 and behind is None):
            continue
        if keep != 1:
            pooled = f"{behind.output[0]}_pooled"
            squeeze = helper.make_node("Flatten", [pooled], [behind.output[0]], pooled, axis=1)
            behind.output[0] = pooled
            flat.append((behind, squeeze))
        node.op_type = "GlobalAveragePool"
        del node.input[1:]
        del node.attribute[:]
    _insert_behind(graph, flat)


def integer_clamps(model: Any) -> None:
    """Applies a ReLU or clamp before a quantization to its integers, which gives the same ones.

    The runtime leaves out a clamp where the integers end. Elsewhere (a tensor that shares the scale
    of a concatenation with others) it would compute the whole layer before it in float.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    values = {i.name: i for i in graph.initializer}
    readers = _readers(graph)
    made = []
    for node in graph.node:
        limits = _limits(node, values)
        behind = _only_quantizer(graph, readers, node.output[0]) if limits else None
        if limits is None or behind is None or len(behind.input) < 3:
            continue
        scale, zero = (numpy_helper.to_array(values[name]) for name in behind.input[1:3])
        if scale.size != 1:
            continue
        ends = np.iinfo(zero.dtype)
        steps = np.rint(np.array(limits, np.float32) / scale.reshape(())) + zero.astype(np.float32)
        low, high = (int(v) for v in np.clip(steps, ends.min, ends.max))
        behind.input[0] = node.input[0]
        if (low, high) == (ends.min, ends.max):
            continue
        result = behind.output[0]
        names = [f"{result}_unclamped", f"{result}_low", f"{result}_high"]
        for name, value in zip(names[1:], (low, high), strict=True):
            graph.initializer.append(numpy_helper.from_array(zero.dtype.type(value), name))
        behind.output[0] = names[0]
        made.append((behind, helper.make_node("Clip", names, [result], f"{result}_clamp")))
    _insert_behind(graph, made)
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for node in [n for n in graph.node if n.op_type in ("Relu", "Clip")]:
        if node.output[0] not in used:
            graph.node.remove(node)


def _limits(node: Any, values: dict[str, Any]) -> tuple[float, float] | None:
    """Between which numbers a ReLU or a float ``Clip`` keeps values, or None for another node."""
    from onnx import numpy_helper

    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip" or len(node.input) < 2:
        return None
    limits = [-np.inf, np.inf]
    for i, name in enumerate(node.input[1:3]):
        if name and name not in values:
            return None
        if name:
            limits[i] = float(numpy_helper.to_array(values[name]))
    return limits[0], limits[1]


def _readers(graph: Any) -> dict[str, list[Any]]:
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _only_quantizer(graph: Any, readers: dict[str, list[Any]], name: str) -> Any:
    """The ``QuantizeLinear`` that alone reads a tensor, or None."""
    found = readers.get(name, [])
    if len(found) != 1 or found[0].op_type != "QuantizeLinear":
        return None
    return None if name in {o.name for o in graph.output} else found[0]


def _insert_behind(graph: Any, pairs: list[tuple[Any, Any]]) -> None:
    """Inserts the second node of every pair right behind its first."""
    behind = {before.output[0]: node for before, node in pairs}
    nodes = []
    for node in graph.node:
        nodes.append(type(node).FromString(node.SerializeToString()))
        if node.output[0] in behind:
            nodes.append(behind[node.output[0]])
    if pairs:
        del graph.node[:]
        graph.node.extend(nodes)


def fold_pads(model: Any) -> None:
    """Zeros put around the input of a convolution become the convolution's own padding.

    Only where every reader of the padded tensor is a convolution that takes it as its input, the
    padding is constant zeros, and none of it is negative or beside a batch or channel axis.
    """
    from onnx import helper

    graph = model.graph
    values = {i.name: i for i in graph.initializer}
    readers = _readers(graph)
    results = {o.name for o in graph.output}
    gone = []
    for node in graph.node:
        made = node.output[0]
        ends = _zero_ends(node, values)
        convolutions = readers.get(made, [])
        if ends is None or made in results or not convolutions:
            continue
        if not all(_takes_pads(n, made) for n in convolutions):
            continue
        for conv in convolutions:
            conv.input[0] = node.input[0]
            own = next((a for a in conv.attribute if a.name == "pads"), None)
            before = list(own.ints) if own is not None else [0] * len(ends)
            if own is not None:
                conv.attribute.remove(own)
            total = [a + b for a, b in zip(before, ends, strict=True)]
            conv.attribute.append(helper.make_attribute("pads", total))
        gone.append(node)
    for node in gone:
        graph.node.remove(node)


def _zero_ends(node: Any, values: dict[str, Any]) -> list[int] | None:
    """How many zeros a ``Pad`` puts at both ends of the spatial axes, or None for any other."""
    from onnx import numpy_helper

    if node.op_type != "Pad" or len(node.input) > 3 or node.input[1] not in values:
        return None
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
    if mode != b"constant":
        return None
    if len(node.input) == 3 and node.input[2]:
        value = values.get(node.input[2])
        if value is None or numpy_helper.to_array(value).any():
            return None
    ends = [int(n) for n in numpy_helper.to_array(values[node.input[1]])]
    rank = len(ends) // 2
    beside = (*ends[:2], *ends[rank : rank + 2])
    if min(ends) < 0 or any(beside):
        return None
    return [*ends[2:rank], *ends[rank + 2 :]]


def _takes_pads(node: Any, name: str) -> bool:
    automatic = next((a.s for a in node.attribute if a.name == "auto_pad"), b"NOTSET")
    if node.op_type != "Conv" or automatic != b"NOTSET":
        return False
    return bool(node.input[0] == name and name not in list(node.input)[1:])


def prune(model: Any) -> None:
    """Drops initializers that no operator uses."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _bias_scale(node: Any, maker: dict[str, Any], values: dict[str, Any]) -> Any:
    """``scale_input * scale_weight`` of a layer whose input and weight are both dequantized."""
    from onnx import numpy_helper

    scales = []
    for name in node.input[:2]:
        source = maker.get(name)
        if source is not None and source.op_type == "Transpose":
            source = maker.get(source.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            return None
        scales.append(numpy_helper.to_array(values[source.input[1]]).astype(np.float32))
    if scales[1].ndim != 1:
        return None
    return (scales[1] * scales[0].reshape(())).astype(np.float32)
