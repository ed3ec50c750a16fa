"""How much a network would miss each of its channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import nn

from edgekit.compress._cut import Gone, Member, Survey, Width, axes, drops
from edgekit.errors import BadData, UsageError

__all__ = ["Importance", "Losses", "importance"]

Importance = Literal["l1", "l2", "bn", "taylor"]

Losses = Callable[[nn.Module], Iterable[torch.Tensor]]
"""Scalar losses of a module on batches of labelled samples, one after the other; each is followed
back by gradients before the next is asked for."""


def importance(
    module: nn.Module,
    survey: Survey,
    gone: Gone,
    kind: Importance,
    *,
    losses: Losses | None = None,
) -> dict[str, torch.Tensor]:
    """Importance of every slot of every width.

    - ``l1``, ``l2``: the norm of all weights that make or read a channel, divided by the mean of
      its width (Li et al., "Pruning Filters for Efficient ConvNets", 2016, arXiv:1608.08710; over
      all layers that go together, as DepGraph, 2023, arXiv:2301.12900, found better).
    - ``bn``: the scales of its batch norms (Liu et al., "Learning Efficient Convolutional Networks
      through Network Slimming", 2017, arXiv:1708.06519). Widths without batch norm are left out.
    - ``taylor``: the squared first-order estimate of what the loss would change without it, mean
      over batches (Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019,
      arXiv:1906.10771), at its batch norms where it has them, else at the weights that make it.

    Args:
        module: from which ``gone`` is cut out already; it is not changed.
        survey: of the network before anything was cut.
        gone: what is cut out.
        kind: which of them.
        losses: for ``taylor``.

    Returns:
        By width, float64 ``[slots]``; infinity for slots that are gone.

    Raises:
        UsageError: no losses for ``taylor``, or no batch norm at all for ``bn``.
        BadData: an importance is NaN, or there was no loss.
    """
    if kind == "taylor":
        found = _taylor(module, survey, gone, losses)
    elif kind == "bn":
        found = {
            w.name: s for w in survey.widths if (s := _scales(module, survey, gone, w)) is not None
        }
        if not found:
            raise UsageError(
                "importance 'bn' reads the scales of batch norms, and the model has none",
                hint="choose l1, l2 or taylor",
            )
    else:
        power = 1 if kind == "l1" else 2
        found = {w.name: _norms(module, survey, gone, w, power) for w in survey.widths}
    for name, scores in found.items():
        if bool(scores.isnan().any()):
            raise BadData(f"the importance of {name}'s channels is NaN: so are its weights or loss")
        scores[list(gone.get(name, ()))] = torch.inf
    return found


def _norms(module: nn.Module, survey: Survey, gone: Gone, width: Width, power: int) -> torch.Tensor:
    total = torch.zeros(width.slots, dtype=torch.float64)
    for layer, slots, rows in _rows(module, survey, gone, width, ("in", "out")):
        if isinstance(layer, _WEIGHTED):
            total.index_add_(0, slots, rows.abs().pow(power).sum(1))
    total = total.pow(1 / power)
    left = total[total > 0]
    return total / left.mean() if len(left) else total


def _scales(module: nn.Module, survey: Survey, gone: Gone, width: Width) -> torch.Tensor | None:
    total = torch.zeros(width.slots, dtype=torch.float64)
    seen = False
    for layer, slots, rows in _rows(module, survey, gone, width, ("out",)):
        if isinstance(layer, _NORMS):
            seen = True
            total.index_add_(0, slots, rows.abs().sum(1))
    return total if seen else None


def _taylor(
    module: nn.Module, survey: Survey, gone: Gone, losses: Losses | None
) -> dict[str, torch.Tensor]:
    if losses is None:
        raise UsageError(
            "importance 'taylor' needs losses on labelled samples",
            hint="give prune() losses=..., or choose l1, l2 or bn",
        )
    # In eval mode: dropout would make it a matter of chance, and batch norm's statistics stay.
    copied = deepcopy(module).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    total = {w.name: torch.zeros(w.slots, dtype=torch.float64) for w in survey.widths}
    batches = 0
    with torch.enable_grad():
        for loss in losses(copied):
            copied.zero_grad()
            loss.backward()
            batches += 1
            for width in survey.widths:
                total[width.name] += _gates(copied, survey, gone, width)
    if batches == 0:
        raise BadData("there was no loss to estimate importance from")
    return {name: scores / batches for name, scores in total.items()}


def _gates(module: nn.Module, survey: Survey, gone: Gone, width: Width) -> torch.Tensor:
    """The squared change of the loss without each slot, to first order, from one batch."""
    makers = list(_rows(module, survey, gone, width, ("out",), gradient=True))
    norms = [m for m in makers if isinstance(m[0], _NORMS)]
    change = torch.zeros(width.slots, dtype=torch.float64)
    for _, slots, rows in norms or makers:
        change.index_add_(0, slots, rows.sum(1))
    return change.square()


def _rows(
    module: nn.Module,
    survey: Survey,
    gone: Gone,
    width: Width,
    sides: tuple[str, ...],
    *,
    gradient: bool = False,
) -> Iterator[tuple[nn.Module, torch.Tensor, torch.Tensor]]:
    """Of each layer of a width: the layer, the slots of the channels left, and their weights.

    Weights are float64 ``[channels, ...]``; with ``gradient`` times their gradients, the bias's
    beside them.
    """
    cut = drops(survey, gone)
    for member in width.members:
        if member.side not in sides:
            continue
        layer = module.get_submodule(member.layer)
        at, slots = _left(member, cut.get((member.layer, member.side)))
        parts = []
        for name, axis in axes(module, member.layer, member.side):
            tensor: Any = getattr(layer, name.rpartition(".")[2])
            if not isinstance(tensor, nn.Parameter):
                continue
            if tensor.grad is None if gradient else not name.endswith(".weight"):
                continue
            value = tensor.detach().double().cpu()
            if gradient and tensor.grad is not None:
                value = value * tensor.grad.double().cpu()
            value = value.transpose(0, axis).flatten(1) if value.ndim > 1 else value[:, None]
            if len(at) and int(at.max()) < len(value):
                # A grouped convolution's inputs, of which it keeps one group's, are not counted.
                parts.append(value[at])
        if parts:
            yield layer, slots, torch.cat(parts, 1)


def _left(member: Member, gone: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the channels of a member stand now that some are gone, and their slots."""
    if gone is None:
        return member.index, member.slot
    stays = ~torch.isin(member.index, gone)
    index = member.index[stays]
    return index - torch.searchsorted(gone, index), member.slot[stays]


_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
_NORMS = nn.modules.batchnorm._BatchNorm
