"""The steps that bring a graph into canonical form, each in place and each keeping its values."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from edgekit.compress._nodes import (
    COMPUTE,
    add_constant,
    aten,
    channel_axis,
    compute_nodes,
    groups,
    set_tensor,
    tensor_of,
)

_IDENTITIES = (
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)


_SHAPE_ONLY = (
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.new_full.default,
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
)
"""Operators that read the shape and dtype of their first argument, but none of its values."""

FOLD_LIMIT = 4 * 2**20
"""Folding a constant may make the program this many bytes larger, no more."""

_NAMED_PADDING: dict[Any, Any] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
}

_AVERAGE_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default)

_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default)

_CLAMPS: dict[Any, Callable[..., tuple[Any, Any]]] = {
    aten.relu6.default: lambda: (0.0, 6.0),
    aten.clamp.default: lambda min=None, max=None: (min, max),
    aten.clamp_min.default: lambda min: (min, None),
}
"""Low and high end of each operator that clamps, from its arguments after the first."""

_BATCH_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)


def state_padding(module: fx.GraphModule) -> None:
    """Gives convolutions with padding ``same`` or ``valid`` their padding in numbers."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in _NAMED_PADDING:
            continue
        source, weight, bias, stride, padding, dilation, count = _named_padding_args(node)
        kernel = weight.meta["val"].shape[2:]
        sides = [0] * len(kernel)
        if padding == "same":
            reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            sides = [r // 2 for r in reach]
            if any(r % 2 for r in reach):  # more at the end than at the start: a pad of its own
                ends = [n for r in reversed(reach) for n in (0, r % 2)]
                with module.graph.inserting_before(node):
                    pad = aten.constant_pad_nd.default
                    source = module.graph.call_function(pad, (source, ends, 0.0))
        node.target = _NAMED_PADDING[node.target]
        node.args = (source, weight, bias, stride, sides, dilation, count)


def state_clamps(module: fx.GraphModule) -> None:
    """Writes a clamp between two numbers as ``hardtanh``, and one from zero up as ``relu``."""
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in _CLAMPS:
            continue
        if not node.meta["val"].dtype.is_floating_point:
            continue
        low, high = _CLAMPS[node.target](*node.args[1:], **node.kwargs)
        if isinstance(low, int | float) and isinstance(high, int | float) and low <= high:
            node.target = aten.hardtanh.default
            node.args, node.kwargs = (node.args[0], float(low), float(high)), {}
        elif isinstance(low, int | float) and low == 0 and high is None:
            node.target = aten.relu.default
            node.args, node.kwargs = node.args[:1], {}


def fold_hard_sigmoid(module: fx.GraphModule) -> None:
    """Folds a hard-sigmoid into the layer that feeds it alone: ``clamp(x / 6 + 1 / 2, 0, 1)``.

    The factor and the term go into the layer's constants; integer kernels clamp as they requantize.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not aten.hardsigmoid.default:
            continue
        layer = node.args[0]
        if layer.target not in COMPUTE or len(layer.users) > 1:
            continue
        weight = tensor_of(module, layer.args[1])
        if weight is None or len(layer.args[1].users) > 1:
            continue
        bias = tensor_of(module, layer.args[2]) if len(layer.args) > 2 else None
        channels = weight.shape[channel_axis(layer)] * (
            groups(layer) if channel_axis(layer) == 1 else 1
        )
        old = torch.zeros(channels) if bias is None else bias
        set_tensor(module, layer.args[1], (weight.double() / 6).float())
        name = f"{layer.args[1].name}_hard_sigmoid_bias"
        new = add_constant(module, name, (old.double() / 6 + 0.5).float(), layer)
        layer.args = (*layer.args[:2], new, *layer.args[3:])
        node.target, node.args, node.kwargs = aten.hardtanh.default, (layer, 0.0, 1.0), {}


def state_silu(module: fx.GraphModule) -> None:
    """Writes SiLU as what integer kernels compute: a product with a sigmoid."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target is aten.silu.default:
            source = node.args[0]
            with module.graph.inserting_before(node):
                gate = module.graph.call_function(aten.sigmoid.default, (source,))
            gate.meta = {**node.meta}
            node.target, node.args = aten.mul.Tensor, (source, gate)


def _named_padding_args(node: fx.Node) -> list[Any]:
    """Input, weight, bias, stride, padding, dilation and groups, whatever is left to defaults."""
    dims = 1 if node.target is aten.conv1d.padding else 2
    values: list[Any] = [None, None, None, [1] * dims, "valid", [1] * dims, 1]
    values[: len(node.args)] = node.args
    for i in (3, 5):  # one number stands for all spatial axes
        if len(values[i]) == 1:
            values[i] = [*values[i]] * dims
    return values


def state_pads(module: fx.GraphModule) -> None:
    """Makes padding with a constant one operator, and the zeros that average pooling adds another.

    The sum is the same; yet integer pooling kernels take the added zeros for the integer 0, which
    stands for another number where the zero point is not 0 (seen in OpenVINO 2026.4.1).
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.pad.default:
            source, sides, mode, value = (*node.args, "constant", None)[:4]
            if len(node.args) < 3 or mode == "constant":
                value = value if len(node.args) > 3 else None
                node.target = aten.constant_pad_nd.default
                node.args = (source, sides, 0.0 if value is None else value)
        elif node.target in _AVERAGE_POOLS:
            _pad_before_pooling(module, node)


def _pad_before_pooling(module: fx.GraphModule, node: fx.Node) -> None:
    values: list[Any] = [None, None, [], [0], False, True]
    values[: len(node.args)] = node.args
    source, kernel, stride, padding, ceil, counts_zeros = values[:6]
    if not any(padding) or ceil or not counts_zeros:
        return
    padding = [*padding] * (len(kernel) // len(padding))
    with module.graph.inserting_before(node):
        sides = [n for n in reversed(padding) for _ in range(2)]
        pad = module.graph.call_function(aten.constant_pad_nd.default, (source, sides, 0.0))
    node.args = (pad, kernel, stride or kernel, [0] * len(kernel), *node.args[4:])


def state_moves(module: fx.GraphModule) -> None:
    """Writes a split as slices, and drops copies into another layout: a reshape makes its own."""
    graph = module.graph
    copies = [n for n in graph.nodes if n.op == "call_function" and n.target is aten.clone.default]
    for node in copies:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten._unsafe_view.default or (
            copies and node.target is aten.view.default
        ):
            node.target = aten.reshape.default
        elif node.target in _SPLITS:
            _slice(module, node)


def _slice(module: fx.GraphModule, split: fx.Node) -> None:
    source, axis = split.args[0], split.args[2] if len(split.args) > 2 else 0
    ends = list(itertools.accumulate(part.shape[axis] for part in split.meta["val"]))
    for user in list(split.users):
        assert user.target is operator.getitem
        index = user.args[1]
        assert isinstance(index, int)
        span = (ends[index - 1] if index else 0, ends[index])
        with module.graph.inserting_before(user):
            piece = module.graph.call_function(aten.slice.Tensor, (source, axis, *span))
        piece.meta = {**user.meta}
        user.replace_all_uses_with(piece)
        module.graph.erase_node(user)
    module.graph.erase_node(split)


def unshare_biases(module: fx.GraphModule) -> None:
    """Gives every layer a bias of its own: its integers depend on that layer's input scale."""
    seen: set[fx.Node] = set()
    for layer in compute_nodes(module):
        bias = layer.args[2] if len(layer.args) > 2 else None
        value = tensor_of(module, bias)
        if value is None or not isinstance(bias, fx.Node):
            continue
        if bias in seen:
            copy = add_constant(module, f"{bias.name}_of_{layer.name}", value.clone(), layer)
            layer.args = (*layer.args[:2], copy, *layer.args[3:])
        seen.add(bias)


def fold_batch_norm(module: fx.GraphModule) -> None:
    """Folds eval-mode batch norm into the convolution or linear layer that feeds it alone."""
    for norm in list(module.graph.nodes):
        if norm.op != "call_function" or norm.target not in _BATCH_NORMS:
            continue
        source = norm.args[0]
        if not (isinstance(source, fx.Node) and source.target in COMPUTE):
            continue
        if len(source.users) > 1 or not _absorb(module, source, norm):
            continue
        if norm.target is _BATCH_NORMS[0]:
            norm.replace_all_uses_with(source)
        else:  # this overload gives a tuple
            for user in list(norm.users):
                user.replace_all_uses_with(source)
                module.graph.erase_node(user)
        module.graph.erase_node(norm)


def _absorb(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> bool:
    """Moves the scale and shift of ``norm`` into the constants of ``layer``, if they allow it."""
    weight_node = layer.args[1]
    weight = tensor_of(module, weight_node)
    gamma, beta, mean, var = (tensor_of(module, a) for a in norm.args[1:5])
    if weight is None or mean is None or var is None:
        return False
    assert isinstance(weight_node, fx.Node)
    if len(weight_node.users) > 1:
        return False  # a weight used twice can't absorb one layer's normalization
    axis = channel_axis(layer)
    if axis == 1 and groups(layer) != 1:
        return False
    eps = norm.args[7] if norm.target is _BATCH_NORMS[0] else norm.args[6]
    assert isinstance(eps, float)
    factor = torch.rsqrt(var.double() + eps)
    if gamma is not None:
        factor = factor * gamma.double()
    old_bias = tensor_of(module, layer.args[2]) if len(layer.args) > 2 else None
    shift = -mean.double() if old_bias is None else old_bias.double() - mean.double()
    bias = shift * factor + (beta.double() if beta is not None else 0.0)
    shape = [1] * weight.dim()
    shape[axis] = -1
    set_tensor(module, weight_node, (weight.double() * factor.reshape(shape)).float())
    bias_node = add_constant(module, f"{weight_node.name}_folded_bias", bias.float(), layer)
    layer.args = (*layer.args[:2], bias_node, *layer.args[3:])
    return True


def fold_constants(module: fx.GraphModule) -> None:
    """Replaces what no input has a part in (mask indices, position embeddings) by its value.

    Random operators are left, and so are results that would grow the program by more than
    `FOLD_LIMIT` bytes.
    """
    known: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        value = tensor_of(module, node)
        if node.op == "call_function":
            value = _constant_value(node, known)
        if value is not None:
            known[node] = value
    for node in list(module.graph.nodes):
        value = known.get(node)
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            continue
        if all(user in known for user in node.users):
            continue  # only steps on the way to another constant need it
        name = f"{node.name}_constant"
        while hasattr(module, name):
            name += "_"
        value = value.clone(memory_format=torch.contiguous_format)
        node.replace_all_uses_with(add_constant(module, name, value, node))
        module.graph.erase_node(node)


def _constant_value(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    """What ``node`` gives on every call, or None where that depends on the input or is too big."""
    values: dict[fx.Node, Any] = {n: known[n] for n in node.all_input_nodes if n in known}
    if node.target in _SHAPE_ONLY and node.args[0] not in values:
        like = node.args[0]
        assert isinstance(like, fx.Node)
        meta = like.meta["val"]
        values[like] = torch.empty(meta.shape, dtype=meta.dtype)
    if len(values) < len(node.all_input_nodes) or not _is_repeatable(node.target):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    with torch.no_grad():
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    grown = _bytes(result) - sum(_bytes(v) for n, v in values.items() if n in known)
    return result if grown <= FOLD_LIMIT else None


def _is_repeatable(target: Any) -> bool:
    """Whether an operator gives the same for the same arguments, and changes none of them."""
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    if target._schema.name.rsplit("::")[-1].startswith(("empty", "new_empty")):
        return False  # uninitialized memory
    return torch.Tag.nondeterministic_seeded not in target.tags


def _bytes(value: Any) -> int:
    values = value if isinstance(value, list | tuple) else [value]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


def drop_unused_constants(module: fx.GraphModule) -> None:
    """Deletes parameters and buffers that the graph no longer reads, such as folded ones."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    named = [*module.named_parameters(remove_duplicate=False)]
    for name, _ in [*named, *module.named_buffers(remove_duplicate=False)]:
        if name not in used:
            path, _, last = name.rpartition(".")
            delattr(module.get_submodule(path), last)


def drop_identities(module: fx.GraphModule) -> None:
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in _IDENTITIES or _is_noop_cast(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _is_noop_cast(node: fx.Node) -> bool:
    """``to``/``clone`` calls that change neither dtype nor layout."""
    if node.target not in (
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten._to_copy.default,
        aten.clone.default,
        aten.contiguous.default,
    ):
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")  # type: ignore[union-attr]
    return (
        before is not None
        and after is not None
        and before.dtype == after.dtype
        and before.is_contiguous()
    )
