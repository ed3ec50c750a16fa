"""The canonical float graph: what plans name their edges after and every target starts from.

A model arrives as a `torch.export` program in whatever shape its author wrote it. Before anything
is quantized, the program is brought into one form: batch norm folded into the convolution or
linear layer before it, what no input has a part in computed once and stored, dropout and identities
gone, in-place operators made functional, padding stated in numbers, a bias for every layer, and
runtime assertions dropped. The same program always gives the same node names, so a plan made from
it in one process can be rendered in another.
"""

from __future__ import annotations

import hashlib
import io
import json
import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

CONVS = (aten.conv1d.default, aten.conv2d.default, aten.conv_transpose2d.input)
LINEARS = (aten.linear.default,)
COMPUTE = (*CONVS, *LINEARS)
"""Operators with a weight at argument 1 and an optional bias at argument 2."""

_GROUPS = 6
"""The position of ``groups`` among the arguments of every operator in `CONVS`."""

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

_BATCH_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)


def canonical(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The canonical form of ``program``; same inputs, outputs and values (to float rounding).

    Args:
        program: an exported program with static shapes, in eval mode.

    Returns:
        A new program; the one given is not changed.
    """
    module = graph_module(program)
    args = example_args(program)
    _state_padding(module)
    _fold_batch_norm(module)
    _drop_identities(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    with torch.no_grad():
        functional = torch.export.export(module, args, strict=False).run_decompositions({})
        clean = graph_module(functional)
        _drop_identities(clean)
        _fold_constants(clean)
        _unshare_biases(clean)
        clean.graph.eliminate_dead_code()
        _drop_unused_constants(clean)
        clean.recompile()
        return torch.export.export(clean, args, strict=False)


def example_args(program: torch.export.ExportedProgram) -> tuple[torch.Tensor, ...]:
    """The example inputs a program was exported with, or zeros of the same shape and dtype."""
    if program.example_inputs is not None:
        args, kwargs = program.example_inputs
        return (*args, *kwargs.values())
    user = set(program.graph_signature.user_inputs)
    metas = [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in user]
    return tuple(torch.zeros(tuple(m.shape), dtype=m.dtype) for m in metas)


def graph_module(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """A runnable module of ``program`` whose parameters are ``get_attr`` nodes."""
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def tensor_of(module: fx.GraphModule, node: Any) -> torch.Tensor | None:
    """The constant tensor behind a ``get_attr`` node, or None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, torch.Tensor) else None


def set_tensor(module: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    """Replaces the constant behind a ``get_attr`` node."""
    *path, last = str(node.target).split(".")
    owner: Any = module
    for part in path:
        owner = getattr(owner, part)
    if isinstance(getattr(owner, last), torch.nn.Parameter):
        setattr(owner, last, torch.nn.Parameter(value, requires_grad=False))
    else:
        setattr(owner, last, value)


def add_constant(
    module: fx.GraphModule, name: str, value: torch.Tensor, before: fx.Node
) -> fx.Node:
    """Registers ``value`` as a buffer called ``name`` and gives a ``get_attr`` node for it."""
    module.register_buffer(name, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(name)
    node.meta["val"] = value
    return node


def layer_of(node: fx.Node) -> str:
    """The dotted path of the user's module that a node came from, or the node's own name."""
    stack = node.meta.get("nn_module_stack")
    paths = [path for path, _ in stack.values()] if stack else []
    path = paths[-1] if paths else ""
    for prefix in ("L['self'].", "L__self___"):
        path = path.removeprefix(prefix)
    path = path.replace("slice(None, None, None)", "").strip(".")
    return path or node.name


def channel_axis(node: fx.Node) -> int:
    """The output-channel axis of the weight of a convolution or linear layer."""
    return 1 if node.target is aten.conv_transpose2d.input else 0


def groups(node: fx.Node) -> int:
    """The number of groups of a convolution; 1 for a linear layer."""
    if node.target not in CONVS or len(node.args) <= _GROUPS:
        return 1
    count = node.args[_GROUPS]
    assert isinstance(count, int)
    return count


def compute_nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    """Convolutions and linear layers, in execution order."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in COMPUTE:
            yield node


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Writes a program as ``.pt2``.

    Through memory: where a disk is full, torch's own writer ends the whole process.

    Raises:
        OSError: no space, or no permission.
    """
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getbuffer())


def program_digest(program: torch.export.ExportedProgram) -> str:
    """sha256 over the graph (operators, arguments, names) and every constant's bytes."""
    sha = hashlib.sha256()
    for node in program.graph.nodes:
        entry = [node.op, node.name, str(node.target), repr(node.args), repr(node.kwargs)]
        sha.update(json.dumps(entry).encode())
    tensors = {**program.state_dict, **{k: v for k, v in program.constants.items()}}
    for name in sorted(tensors):
        value = tensors[name]
        if isinstance(value, torch.Tensor):
            data = value.detach().cpu().contiguous()
            sha.update(f"{name}:{data.dtype}:{tuple(data.shape)}".encode())
            sha.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _state_padding(module: fx.GraphModule) -> None:
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


def _named_padding_args(node: fx.Node) -> list[Any]:
    """Input, weight, bias, stride, padding, dilation and groups, whatever is left to defaults."""
    dims = 1 if node.target is aten.conv1d.padding else 2
    values: list[Any] = [None, None, None, [1] * dims, "valid", [1] * dims, 1]
    values[: len(node.args)] = node.args
    for i in (3, 5):  # one number stands for all spatial axes
        if len(values[i]) == 1:
            values[i] = [*values[i]] * dims
    return values


def _unshare_biases(module: fx.GraphModule) -> None:
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


def _fold_batch_norm(module: fx.GraphModule) -> None:
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


def _fold_constants(module: fx.GraphModule) -> None:
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


def _drop_unused_constants(module: fx.GraphModule) -> None:
    """Deletes parameters and buffers that the graph no longer reads, such as folded ones."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    named = [*module.named_parameters(remove_duplicate=False)]
    for name, _ in [*named, *module.named_buffers(remove_duplicate=False)]:
        if name not in used:
            path, _, last = name.rpartition(".")
            delattr(module.get_submodule(path), last)


def _drop_identities(module: fx.GraphModule) -> None:
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
