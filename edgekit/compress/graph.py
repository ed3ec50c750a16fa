"""The canonical float graph: what plans name their edges after and every target starts from.

A model arrives as a `torch.export` program in whatever shape its author wrote it. Before anything
is quantized, the program is brought into one form: batch norm folded into the convolution or linear
layer before it, what no input has a part in computed once and stored, dropout and identities gone,
in-place operators made functional, padding stated in numbers, one operator for every spelling of a
clamp and of global average pooling, hard-sigmoid a clamp behind the layer that feeds it, SiLU a
product with a sigmoid, a bias for every layer, and runtime assertions dropped. The same program
always gives the same node names, so a plan made from it in one process can be rendered in another.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import fx

from edgekit.compress import _pools, _rewrite
from edgekit.compress._nodes import (
    COMPUTE,
    CONVS,
    LINEARS,
    add_constant,
    aten,
    channel_axis,
    compute_nodes,
    feature_axis,
    groups,
    layer_of,
    set_tensor,
    tensor_of,
)

__all__ = [
    "COMPUTE",
    "CONVS",
    "LINEARS",
    "add_constant",
    "aten",
    "canonical",
    "channel_axis",
    "compute_nodes",
    "example_args",
    "feature_axis",
    "graph_module",
    "groups",
    "layer_of",
    "program_digest",
    "save_program",
    "set_tensor",
    "tensor_of",
    "with_constants",
]


def canonical(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The canonical form of ``program``; same inputs, outputs and values (to float rounding).

    Args:
        program: an exported program with static shapes, in eval mode.

    Returns:
        A new program; the one given is not changed.
    """
    module = graph_module(program)
    args = example_args(program)
    _rewrite.state_padding(module)
    _rewrite.fold_batch_norm(module)
    _rewrite.drop_identities(module)
    module.graph.eliminate_dead_code()
    module.recompile()
    with torch.no_grad(), warnings.catch_warnings():
        # torch's own decompositions use what torch calls deprecated.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        functional = torch.export.export(module, args, strict=False).run_decompositions({})
        clean = graph_module(functional)
        _rewrite.drop_identities(clean)
        _rewrite.state_clamps(clean)
        _rewrite.state_pads(clean)
        _pools.state_pools(clean)
        _pools.state_max_pools(clean)
        _rewrite.state_moves(clean)
        _rewrite.fold_constants(clean)
        _rewrite.fold_hard_sigmoid(clean)
        _rewrite.state_silu(clean)
        _rewrite.unshare_biases(clean)
        clean.graph.eliminate_dead_code()
        _rewrite.drop_unused_constants(clean)
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


def with_constants(
    program: torch.export.ExportedProgram, values: Mapping[str, torch.Tensor]
) -> torch.export.ExportedProgram:
    """A copy of ``program`` with other values for some parameters and buffers, by name."""
    # Not a deep copy: that renames inputs called like a builtin (`input`, as nn.Sequential has it),
    # and doubles the model in memory.
    new = copy.copy(program)
    new._state_dict = dict(program.state_dict)
    new._constants = dict(program.constants)
    for name, value in values.items():
        held = new._state_dict if name in new._state_dict else new._constants
        old = held[name]
        assert isinstance(old, torch.Tensor)
        tensor = value.detach().to(old.dtype).clone()
        held[name] = torch.nn.Parameter(tensor) if isinstance(old, torch.nn.Parameter) else tensor
    return new
