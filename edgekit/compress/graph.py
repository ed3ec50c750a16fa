"""The canonical float graph: what plans name their edges after and every target starts from.

A model arrives as a `torch.export` program in whatever shape its author wrote it. Before anything
is quantized, the program is brought into one form: batch norm folded into the convolution or
linear layer before it, dropout and identities gone, in-place operators made functional, and
runtime assertions dropped. The same program always gives the same node names, so a plan made from
it in one process can be rendered in another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

CONVS = (aten.conv1d.default, aten.conv2d.default, aten.conv_transpose2d.input)
LINEARS = (aten.linear.default,)
COMPUTE = (*CONVS, *LINEARS)
"""Operators with a weight at argument 1 and an optional bias at argument 2."""

_IDENTITIES = (
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)


def canonical(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The canonical form of ``program``; same inputs, outputs and values (to float rounding).

    Args:
        program: an exported program with static shapes, in eval mode.

    Returns:
        A new program; the one given is not changed.
    """
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    args = example_args(program)
    _fold_batch_norm(module)
    _drop_identities(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    with torch.no_grad():
        functional = torch.export.export(module, args, strict=False).run_decompositions({})
        clean = functional.module(check_guards=False)
        _drop_identities(clean)
        clean.graph.eliminate_dead_code()
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


def compute_nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    """Convolutions and linear layers, in execution order."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in COMPUTE:
            yield node


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


def _fold_batch_norm(module: fx.GraphModule) -> None:
    """Folds eval-mode batch norm into the convolution or linear layer that feeds it alone."""
    graph = module.graph
    targets = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
    for norm in [n for n in graph.nodes if n.op == "call_function" and n.target in targets]:
        source = norm.args[0]
        if not (isinstance(source, fx.Node) and source.target in COMPUTE and len(source.users) == 1):
            continue
        weight_node = source.args[1]
        weight = tensor_of(module, weight_node)
        if weight is None or len(weight_node.users) > 1:
            continue  # a weight used twice can't absorb one layer's normalization
        eps = norm.args[7] if norm.target is targets[0] else norm.args[6]
        gamma, beta, mean, var = (tensor_of(module, a) for a in norm.args[1:5])
        if mean is None or var is None:
            continue
        factor = torch.rsqrt(var.double() + float(eps))
        if gamma is not None:
            factor = factor * gamma.double()
        old_bias = tensor_of(module, source.args[2]) if len(source.args) > 2 else None
        shift = -mean.double() if old_bias is None else old_bias.double() - mean.double()
        bias = shift * factor + (beta.double() if beta is not None else 0.0)
        axis = 1 if source.target is aten.conv_transpose2d.input else 0
        if axis == 1 and _groups(source) != 1:
            continue
        shape = [1] * weight.dim()
        shape[axis] = -1
        set_tensor(module, weight_node, (weight.double() * factor.reshape(shape)).float())
        bias_node = add_constant(module, f"{weight_node.name}_folded_bias", bias.float(), source)
        args = list(source.args) + [None] * (3 - len(source.args))
        args[2] = bias_node
        source.args = tuple(args)
        replacement = source
        if norm.target is targets[1]:  # this overload gives a tuple
            for user in list(norm.users):
                user.replace_all_uses_with(replacement)
                graph.erase_node(user)
        else:
            norm.replace_all_uses_with(replacement)
        graph.erase_node(norm)


def _groups(node: fx.Node) -> int:
    index = 6 if node.target is aten.conv_transpose2d.input else 6
    return int(node.args[index]) if len(node.args) > index else 1  # type: ignore[arg-type]


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
