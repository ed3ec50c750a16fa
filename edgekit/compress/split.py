"""Channel splitting: what a few channels lose to rounding, divided among copies of them.

A depthwise convolution that takes differences of its neighbours (an edge detector, weights of -8
and 8) multiplies the rounding error of its input by them, and no scale helps a channel that fills
its range. On ImageNet networks such channels of the first block alone can lose more than all other
tensors together: of EfficientNet-Lite2's 32 channels three do, and with them 8 bits there give
25 dB, where the next tensor inside is at 40.

Such a channel is computed ``k`` times, each copy with another fraction of the step added before it
is rounded and taken off behind the depthwise convolution; the pointwise convolution that follows
takes the mean. The mean of ``k`` roundings at offsets of a k-th of a step is a rounding with a k-th
of the step. All stays in 8 bits, on every runtime alike. Copies take the place of channels that
have no effect, which training often leaves; where those do not do, channels are added, as far as
that costs little.

That copying channels lowers quantization error without training is from Zhao et al., "Improving
Neural Network Quantization without Retraining using Outlier Channel Splitting" (arXiv:1901.09504),
which halves outliers among copies; dividing the step is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from edgekit.compress._chains import (
    Chain,
    Loss,
    bias_tensor,
    find_chains,
    measure_losses,
    weight_tensor,
)
from edgekit.compress.graph import compute_nodes, example_args, graph_module, set_tensor, tensor_of
from edgekit.compress.precision import macs_of

__all__ = ["Split", "split_channels"]

_MOST = 8
"""Copies of one channel, at most."""
_ADDED = 8
"""Channels are added by so many, which is what kernels compute at once."""
_COST = 0.02
"""The share of the network's multiply-accumulates that added channels may take."""
_ENOUGH = 0.25
"""Copies are made until what arrives is this share of what rounding the block's result adds."""


@dataclass(frozen=True)
class Split:
    """What was done to one chain.

    Attributes:
        layer: the name of the depthwise convolution.
        copies: how many times each channel is computed, of those with more than one copy.
        reused: channels without effect whose place copies took.
        added: channels added.
    """

    layer: str
    copies: dict[int, int]
    reused: int
    added: int


def split_channels(
    program: torch.export.ExportedProgram,
    feeds: Sequence[tuple[torch.Tensor, ...]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[torch.export.ExportedProgram, list[Split]]:
    """A program with the same answers that loses less where channels feed a depthwise convolution.

    Args:
        program: the canonical program.
        feeds: samples that show what rounding does; some 30 will do.
        progress: called with the samples seen and their number.

    Returns:
        The program, and what was done; the program itself where nothing needs to be.
    """
    module = graph_module(program)
    chains = find_chains(module)
    if not chains:
        return program, []
    losses = measure_losses(module, chains, feeds, progress)
    layers = [n for n in compute_nodes(module) if tensor_of(module, n.args[1]) is not None]
    allowed = int(_COST * sum(macs_of(module, n) for n in layers))
    done = []
    for chain, loss in zip(chains, losses, strict=True):
        split = _choose(module, chain, loss, allowed)
        if split is None:
            continue
        allowed -= split.added * _macs_of_channel(module, chain)
        _apply(module, chain, loss, split)
        done.append(split)
    if not done:
        return program, []
    module.recompile()
    with torch.no_grad():
        return torch.export.export(module, example_args(program), strict=False), done


def _macs_of_channel(module: fx.GraphModule, chain: Chain) -> int:
    width = len(weight_tensor(module, chain.first))
    return sum(macs_of(module, n) for n in (chain.first, chain.second, chain.third)) // width


# -- what is done ---------------------------------------------------------------------------------


def _choose(module: fx.GraphModule, chain: Chain, loss: Loss, allowed: int) -> Split | None:
    """How many copies of which channels; None where the chain is fine as it is."""
    if not loss.total > loss.own:
        return None
    # Errors of channels alike may add up; how far they do is taken to stay as it is.
    together = max(1.0, loss.total / max(float(loss.channels.sum()), 1e-30))
    noise = together * torch.where(loss.silent, 0.0, loss.channels)
    counts = torch.ones_like(noise)
    silent, each = int(loss.silent.sum()), _macs_of_channel(module, chain)
    free, added = silent, 0
    while float((noise / counts**2).sum()) > _ENOUGH * loss.own:
        if free == 0:
            enough = float((noise / counts**2).sum()) <= loss.own
            if enough or (added + _ADDED) * each > allowed:
                break
            added, free = added + _ADDED, _ADDED
        gain = noise / counts**2 - noise / (counts + 1) ** 2
        gain[counts >= _MOST] = 0
        channel = int(gain.argmax())
        if not gain[channel] > 0:
            break
        counts[channel] += 1
        free -= 1
    copies = {i: int(count) for i, count in enumerate(counts) if count > 1}
    if not copies:
        return None
    more = sum(copies.values()) - len(copies)
    added = -(-max(0, more - silent) // _ADDED) * _ADDED
    return Split(chain.second.name, copies, min(more, silent), added)


def _apply(module: fx.GraphModule, chain: Chain, loss: Loss, split: Split) -> None:
    """Changes the constants of a chain, and its shapes where channels are added."""
    weights = [weight_tensor(module, n).double() for n in (chain.first, chain.second, chain.third)]
    biases = [bias_tensor(module, n).double() for n in (chain.first, chain.second, chain.third)]
    if split.added:
        for i in (0, 1):
            weights[i] = torch.cat([weights[i], torch.zeros_like(weights[i][: split.added])])
            biases[i] = torch.cat([biases[i], torch.zeros_like(biases[i][: split.added])])
        weights[2] = torch.cat([weights[2], torch.zeros_like(weights[2][:, : split.added])], 1)
        chain.second.args = (*chain.second.args[:6], len(weights[1]))
    silent = [int(c) for c in loss.silent.nonzero()]
    places = silent[: split.reused] + list(range(len(weights[0]) - split.added, len(weights[0])))
    for place in silent[: split.reused]:  # what it gives is the same everywhere
        biases[2] += weights[2][:, place, 0, 0] * loss.level[place]
        weights[2][:, place] = 0
    for channel, count in split.copies.items():
        weights[2][:, channel] /= count
        held = [channel, *(places.pop(0) for _ in range(count - 1))]
        start, behind = biases[0][channel].clone(), biases[1][channel].clone()
        for i, place in enumerate(held):
            offset = loss.step * ((i + 0.5) / count - 0.5)
            weights[0][place], weights[1][place] = weights[0][channel], weights[1][channel]
            weights[2][:, place] = weights[2][:, channel]
            biases[0][place] = start + offset
            biases[1][place] = behind - offset * weights[1][channel].sum()
    for node, weight, bias in zip(
        (chain.first, chain.second, chain.third), weights, biases, strict=True
    ):
        for argument, value in ((node.args[1], weight), (node.args[2], bias)):
            assert isinstance(argument, fx.Node)
            set_tensor(module, argument, value.float())
