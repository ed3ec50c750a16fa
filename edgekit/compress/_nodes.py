"""Reading and writing single nodes of a graph: constants, layers and their attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

CONVS = (aten.conv1d.default, aten.conv2d.default, aten.conv_transpose2d.input)
LINEARS = (aten.linear.default,)
COMPUTE = (*CONVS, *LINEARS)
"""Operators with a weight at argument 1 and an optional bias at argument 2."""

TABLES = (aten.embedding.default,)
"""Operators that look rows up in a table at argument 0."""

RESHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.dim,
    aten.unsqueeze.default,
)
MOVES = (
    *RESHAPES,
    aten.permute.default,
    aten.transpose.int,
    aten.slice.Tensor,
    aten.pixel_shuffle.default,
)
"""Operators that move data and change none, with an integer form on every runtime."""

VIEWS = (*MOVES, aten.select.int, aten.expand.default)
"""All operators that move data and change none."""

PASS_THROUGH = (
    *MOVES,
    aten.constant_pad_nd.default,
    aten.pixel_unshuffle.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
)
"""Operators whose output has the scale of their input."""

CURVES = (aten.sigmoid.default, aten.gelu.default)
ELEMENTWISE = (
    *CURVES,
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.relu.default,
    aten.hardtanh.default,
    aten.adaptive_avg_pool2d.default,
    aten.mean.dim,
)
INTEGER_KERNELS = (*ELEMENTWISE, aten.cat.default)
"""Operators without weights that compute on integers where the plan quantizes their output."""

_GROUPS = 6
"""The position of ``groups`` among the arguments of every operator in `CONVS`."""


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


def feature_axis(node: fx.Node) -> int:
    """The channel axis of what a convolution or linear layer gives, counted from the end."""
    if node.target in LINEARS:
        return -1
    return -2 if node.target is aten.conv1d.default else -3


def groups(node: fx.Node) -> int:
    """The number of groups of a convolution; 1 for a linear layer."""
    if node.target not in CONVS or len(node.args) <= _GROUPS:
        return 1
    count = node.args[_GROUPS]
    assert isinstance(count, int)
    return count


def weight_of(node: fx.Node) -> fx.Node:
    """The weight of a convolution or linear layer, or the table of an embedding."""
    weight = node.args[0 if node.target in TABLES else 1]
    assert isinstance(weight, fx.Node)
    return weight


def compute_nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    """Convolutions and linear layers, in execution order."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in COMPUTE:
            yield node


def only_user(node: fx.Node) -> fx.Node | None:
    """The one operator that reads ``node``; None where others do, or it is a result."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def pads_around(pad: fx.Node, axis: int) -> bool:
    """Whether padding puts zeros around channels and adds none to them; ``axis`` from the end."""
    sides = pad.args[1]
    assert isinstance(sides, list | tuple)
    return not any(pad.args[2:]) and not any(sides[-2 * axis - 2 :])


def has_own_constants(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a layer's weight and bias are constants that nothing else reads."""
    if node.op != "call_function" or node.target not in (*CONVS, *LINEARS):
        return False
    for argument in node.args[1:3]:
        if argument is None:
            continue
        if tensor_of(module, argument) is None:
            return False
        assert isinstance(argument, fx.Node)
        same = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == argument.target]
        if len(argument.users) != 1 or len(same) != 1:
            return False
    return True
