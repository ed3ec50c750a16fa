"""Cutting channels out: which rows of which tensors go, and the module without them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from edgekit.compress.state import fit_state, state_of

__all__ = ["Gone", "Member", "Survey", "Width", "axes", "cut", "drops", "left_of"]

Gone = Mapping[str, frozenset[int]]
"""By width, the slots that are cut out, counted as they were before any was."""


_CONV: Final = nn.modules.conv._ConvNd


@dataclass(frozen=True, eq=False)
class Member:
    """One side of one layer that a width runs through.

    Attributes:
        layer: its name; of a parameter that no layer of torch's holds, the parameter's.
        side: ``in`` or ``out``; the axis of a parameter, as text.
        index: int64 ``[k]``, channels of this side, as before anything was cut.
        slot: int64 ``[k]``, the slot that each belongs to.
    """

    layer: str
    side: str
    index: torch.Tensor
    slot: torch.Tensor


@dataclass(frozen=True, eq=False)
class Width:
    """Channels of several layers that can only go together.

    Attributes:
        name: of the first layer that gives them out.
        channels: how many there are.
        slots: in how many parts they can go: a channel, one of each group, or a head.
        heads: whether slots are heads of attention.
        members: the layers.
    """

    name: str
    channels: int
    slots: int
    heads: bool
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Survey:
    """What of a network can be pruned, and why what is left alone can't be."""

    widths: tuple[Width, ...]
    left: Mapping[str, str]


def drops(survey: Survey, gone: Gone) -> dict[tuple[str, str], torch.Tensor]:
    """By layer and side, the channels that are gone, as before anything was cut, sorted."""
    found: dict[tuple[str, str], list[torch.Tensor]] = {}
    for width in survey.widths:
        slots = torch.tensor(sorted(gone.get(width.name, ())), dtype=torch.int64)
        if not len(slots):
            continue
        for member in width.members:
            index = member.index[torch.isin(member.slot, slots)]
            found.setdefault((member.layer, member.side), []).append(index)
    return {at: torch.cat(some).unique() for at, some in found.items()}


def left_of(survey: Survey, gone: Gone) -> dict[str, int]:
    """By width, the channels that are left."""
    return {
        w.name: w.channels - len(gone.get(w.name, ())) * (w.channels // w.slots)
        for w in survey.widths
    }


def cut(module: nn.Module, survey: Survey, before: Gone, after: Gone) -> nn.Module:
    """A copy of the module without some more of its channels.

    Args:
        module: from which ``before`` is cut out already; it is not changed.
        survey: of the network before anything was cut.
        before: what is gone.
        after: what is to be gone; ``before`` is part of it.
    """
    state = state_of(module)
    old, new = drops(survey, before), drops(survey, after)
    for (name, side), index in new.items():
        was = old.get((name, side), index[:0])
        now = index[~torch.isin(index, was)]
        if not len(now):
            continue
        # Where a channel stands now: as many places earlier as went before it.
        now = now - torch.searchsorted(was, now)
        for tensor, axis in axes(module, name, side):
            if tensor not in state:
                continue  # another name of a tensor that is there
            rows = torch.ones(_size(module, name, side, state[tensor], axis), dtype=torch.bool)
            rows[now] = False
            kept = rows.reshape(-1, state[tensor].shape[axis])[0]
            state[tensor] = state[tensor].index_select(axis, kept.nonzero().flatten())
    return fit_state(deepcopy(module), state)


def _size(module: nn.Module, name: str, side: str, tensor: torch.Tensor, axis: int) -> int:
    """Channels of a side, of which a convolution in groups keeps one group's on an axis."""
    if side.isdigit() or not isinstance(layer := module.get_submodule(name), _CONV):
        return tensor.shape[axis]
    return int(layer.in_channels if side == "in" else layer.out_channels)


def axes(module: nn.Module, name: str, side: str) -> list[tuple[str, int]]:
    """Names of the tensors that hold a side's channels, and the axis of each."""
    if side.isdigit():
        return [(name, int(side))]
    layer: Any = module.get_submodule(name)
    if isinstance(layer, nn.Embedding):
        return [(f"{name}.weight", 1)]
    if isinstance(layer, (nn.Linear, _CONV)):
        turned = isinstance(layer, _CONV) and layer.transposed
        depthwise = isinstance(layer, _CONV) and layer.groups == layer.in_channels > 1
        first = 0 if (side == "out") is not turned or depthwise else 1
        bias = side == "out" and layer.bias is not None
        return [(f"{name}.weight", first), *([(f"{name}.bias", 0)] if bias else [])]
    tensors = {**layer._parameters, **layer._buffers}
    return [(f"{name}.{k}", 0) for k, t in tensors.items() if t is not None and t.ndim == 1]
