"""The layers of a canonical graph, as a latency estimate counts them."""

from __future__ import annotations

import math
from typing import Final

from torch import fx

from edgekit.bench.layers import Layer
from edgekit.compress.graph import (
    COMPUTE,
    CONVS,
    LINEARS,
    aten,
    canonical,
    graph_module,
    groups,
    layer_of,
)
from edgekit.errors import UnsupportedError
from edgekit.model import Model

__all__ = ["graph_of", "is_free", "is_fused", "layers_of", "size_of"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators by what they cost, under their names in torch's namespace aten.
_FREE: Final = _names("""
    view reshape flatten squeeze unsqueeze alias clone contiguous detach expand to_copy to
    lift_fresh_copy lift_fresh sym_size assert_tensor_metadata unbind chunk split
    split_with_sizes
""")
_MOVES: Final = _names("""
    permute transpose t slice select cat stack constant_pad_nd pixel_shuffle pixel_unshuffle
    roll flip repeat index_select gather embedding narrow pad copy slice_scatter index
    channel_shuffle scatter as_strided tile where full zeros ones arange full_like zeros_like
    ones_like new_ones new_zeros new_full empty_like scalar_tensor fill triu tril index_put
    scatter_add index_add repeat_interleave unfold
""")
_ELEMENTWISE: Final = _names("""
    add sub mul div relu relu6 hardtanh clamp clamp_min clamp_max sigmoid tanh gelu silu
    hardswish hardsigmoid leaky_relu elu prelu exp log sqrt rsqrt pow neg abs maximum minimum
    erf sin cos floor ceil round reciprocal eq ne lt le gt ge logical_and logical_or logical_not
    bitwise_and bitwise_or bitwise_not masked_fill softplus mish square sign rsub floor_divide
    remainder fmod log1p expm1 celu selu log_sigmoid upsample_nearest2d upsample_bilinear2d
    upsample_bicubic2d and or xor isinf isnan
""")
_POOLS: Final = _names("""
    max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d max_pool1d avg_pool1d
    adaptive_avg_pool1d mean sum amax amin max min argmax argmin cumsum any all prod std var
    var_mean std_mean max_pool2d_with_indices topk sort
""")
_NORMS: Final = _names("""
    softmax log_softmax layer_norm native_layer_norm group_norm
    native_group_norm batch_norm native_batch_norm_legit_no_training instance_norm
    linalg_vector_norm rms_norm safe_softmax
""")
_PRODUCTS: Final = _names("""
    matmul bmm mm addmm baddbmm
""")
_FUSED: Final = _names("""
    relu relu6 hardtanh clamp clamp_min clamp_max
""")
_ATTENTION: Final = "scaled_dot_product_attention"


def graph_of(model: Model) -> fx.GraphModule:
    """The canonical graph of a model, which plans and artifacts are made from.

    Raises:
        UnsupportedError: the model can't be exported.
    """
    return graph_module(canonical(model.program()))


def layers_of(module: fx.GraphModule, name: str = "model") -> list[Layer]:
    """Every operator that takes time, in execution order.

    Activations that every runtime here fuses (ReLU, clamps) are their layer's; SiLU, written as a
    product with a sigmoid, is one operator; views cost nothing.

    Args:
        module: a canonical graph with shapes at its nodes.
        name: the model's, for messages.

    Raises:
        UnsupportedError: an operator that nothing is known of, or a shape that is not fixed.
    """
    found: list[Layer] = []
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        found += _layers(node, name)
    return found


def is_free(node: fx.Node) -> bool:
    """Whether an operator's result is another view of what it reads."""
    return _operator(node) in _FREE or _operator(node) == "getitem"


def is_fused(node: fx.Node) -> bool:
    """Whether an operator is computed inside the one before it, in place."""
    return _operator(node) in _FUSED and _fuses(node)


def size_of(node: fx.Node) -> int:
    """Elements of what a node gives; 0 where it gives no tensor."""
    return _written(node, "model")


def _layers(node: fx.Node, model: str) -> list[Layer]:
    kind = _operator(node)
    if is_free(node):
        return []
    written = _written(node, model)
    inputs = [n for n in node.all_input_nodes if _tensor(n) and not _half_of_silu(n)]
    read = sum(_size(_shape(n, model)) for n in inputs)
    title = _title(node)
    if node.target in COMPUTE:
        return [_weighted(node, title, model)]
    if kind in _PRODUCTS:
        return [_product(node, title, model)]
    if kind == _ATTENTION:
        return _attention(node, title, model)
    if is_fused(node) or _half_of_silu(node):
        return []
    if kind == "embedding":
        return [Layer.other(title, "move", written, written)]
    groups_: tuple[tuple[frozenset[str], str], ...] = (
        (_MOVES, "move"), (_ELEMENTWISE, "elementwise"), (_POOLS, "pool"), (_NORMS, "norm"),
    )  # fmt: skip
    for names, what in groups_:
        if kind in names:
            return [Layer.other(title, what, read, written)]
    raise UnsupportedError(
        f"the latency of operator {node.target} ({title}) in model {model!r} can't be estimated: "
        "no measurement says what it costs",
        hint="measure it: edgekit bench on the device, or leave that part out of the model",
    )


def _title(node: fx.Node) -> str:
    path = layer_of(node)
    return path if path == node.name else f"{path} ({node.name})"


def _operator(node: fx.Node) -> str:
    name = getattr(node.target, "__name__", str(node.target))
    return name.partition(".")[0].strip("_")


def _tensor(node: fx.Node) -> bool:
    return hasattr(node.meta.get("val"), "shape")


def _shape(node: fx.Node, model: str) -> tuple[int, ...]:
    shape = tuple(node.meta["val"].shape)
    if not all(isinstance(side, int) for side in shape):
        raise UnsupportedError(
            f"model {model!r} has a shape that is not fixed: {node.name} is {shape}",
            hint="an estimate is of one size: export it with that size",
        )
    return shape


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _written(node: fx.Node, model: str) -> int:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return sum(_size(tuple(part.shape)) for part in value if hasattr(part, "shape"))
    return _size(_shape(node, model)) if _tensor(node) else 0


def _weighted(node: fx.Node, title: str, model: str) -> Layer:
    data, weight = node.args[0], node.args[1]
    assert isinstance(data, fx.Node) and isinstance(weight, fx.Node)
    out, into, shape = _shape(node, model), _shape(data, model), _shape(weight, model)
    if node.target in LINEARS:
        return Layer.linear(title, shape[1], shape[0], _size(out) // shape[0])
    assert node.target in CONVS
    if node.target is aten.conv_transpose2d.input:
        area, taps = math.prod(into[2:]), math.prod(shape[2:])
        macs = _size(shape) * area * into[0]
        return Layer(title, "conv", macs, _size(shape), _size(into), _size(out), taps, out[1])
    one = node.target is aten.conv1d.default
    kernel = (1, shape[2]) if one else (shape[2], shape[3])
    size = (out[0], out[2]) if one else (out[0] * out[2], out[3])
    stride = node.args[3] if len(node.args) > 3 else [1]
    first = stride[0] if isinstance(stride, list | tuple) and stride else 1
    assert isinstance(first, int)
    return Layer.conv(title, into[1], shape[0], kernel, first, groups(node), size, _size(into))


def _product(node: fx.Node, title: str, model: str) -> Layer:
    operands = [n for n in node.all_input_nodes if _tensor(n)]
    a, b = _shape(operands[-2], model), _shape(operands[-1], model)
    if len(operands) == 1:
        a = b
    out = _size(_shape(node, model))
    columns = b[-1] if len(b) > 1 else 1
    rows = a[-2] if len(a) > 1 else 1
    return Layer.product(title, rows, a[-1], columns, max(1, out // (rows * columns)))


def _attention(node: fx.Node, title: str, model: str) -> list[Layer]:
    q, k, v = (_shape(n, model) for n in node.args[:3] if isinstance(n, fx.Node))
    times, scores = math.prod(q[:-2]), math.prod(q[:-1]) * k[-2]
    return [
        Layer.product(f"{title}: scores", q[-2], q[-1], k[-2], times),
        Layer.other(f"{title}: softmax", "norm", scores, scores),
        Layer.product(f"{title}: values", q[-2], k[-2], v[-1], times),
    ]


def _fuses(node: fx.Node) -> bool:
    """Whether an activation goes into the kernel of the operator before it."""
    before = node.args[0]
    if not isinstance(before, fx.Node) or before.op != "call_function" or len(before.users) > 1:
        return False
    return before.target in COMPUTE or _operator(before) in ("add", "mul", "cat")


def _half_of_silu(node: fx.Node) -> bool:
    """Whether it is the sigmoid of a product of a tensor with its own sigmoid."""
    if node.op != "call_function" or _operator(node) != "sigmoid" or len(node.users) != 1:
        return False
    (user,) = node.users
    return _operator(user) == "mul" and set(user.all_input_nodes) == {node, node.args[0]}
