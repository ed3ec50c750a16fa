"""Where channels feed a depthwise convolution, and what rounding them there loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from edgekit.compress._nodes import has_own_constants, only_user, pads_around
from edgekit.compress.graph import (
    CONVS,
    aten,
    compute_nodes,
    feature_axis,
    groups,
    tensor_of,
)
from edgekit.compress.quantize import affine_int8
from edgekit.compress.ranges import RangeObserver, least_error_range

__all__ = ["Chain", "Loss", "bias_tensor", "find_chains", "measure_losses", "weight_tensor"]

_SILENT = 1e-3
"""A channel whose effect stays below this share of a step behind the convolution has none."""

_CLAMPS = (aten.relu.default, aten.hardtanh.default)
_ACTIVATIONS = (*_CLAMPS, aten.hardswish.default)


@dataclass(frozen=True)
class Chain:
    """A convolution, a depthwise one and a pointwise one, with nothing but activations between.

    Attributes:
        first: gives the channels.
        value: the node whose rounding counts, after the activation function.
        second: the depthwise convolution.
        between: what it gives, after the activation function.
        third: the pointwise convolution.
    """

    first: fx.Node
    value: fx.Node
    second: fx.Node
    between: fx.Node
    third: fx.Node


def find_chains(module: fx.GraphModule) -> list[Chain]:
    """Every chain of a canonical graph whose channels can be copied, in execution order."""
    found = []
    for first in compute_nodes(module):
        if first.target is not aten.conv2d.default or groups(first) != 1:
            continue
        value = _activated(first, _CLAMPS)
        second = only_user(value)
        while second is not None and second.target is aten.constant_pad_nd.default:
            second = only_user(second) if pads_around(second, feature_axis(first)) else None
        if second is None or second.target is not aten.conv2d.default:
            continue
        between = _activated(second, _ACTIVATIONS)
        third = only_user(between)
        if third is None or third.target is not aten.conv2d.default:
            continue
        if all(_is_whole(module, n) for n in (first, second, third)) and _fits(
            module, first, second, third
        ):
            found.append(Chain(first, value, second, between, third))
    return found


@dataclass(frozen=True)
class Loss:
    """What rounding a chain's tensor does to the result of the chain.

    Attributes:
        step: of the tensor, as calibration on these samples gives it.
        channels: squared error per channel [channels], mean over the result's elements.
        total: of all channels together, which may add up.
        own: what rounding the result adds itself.
        level: mean of every channel behind the depthwise convolution [channels].
        silent: channels [channels] without effect.
    """

    step: float
    channels: torch.Tensor
    total: float
    own: float
    level: torch.Tensor
    silent: torch.Tensor


class _Ranges(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, nodes: set[fx.Node]) -> None:
        super().__init__(module)
        self.seen = {n: RangeObserver(dtype=torch.int8) for n in nodes}

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node in self.seen:
            self.seen[node](value)
        return value

    def step(self, node: fx.Node) -> float:
        seen = self.seen[node]
        low, high = float(seen.min_val), float(seen.max_val)
        return affine_int8(*least_error_range(seen.values(), low, high))[0]


class _Losses(fx.Interpreter):
    """Runs the model in float, and each chain once more behind its rounded tensor."""

    def __init__(self, module: fx.GraphModule, chains: Sequence[Chain], steps: Sequence[float]):
        super().__init__(module)
        self.ends = {chain.third: i for i, chain in enumerate(chains)}
        self.starts = {chain.value: i for i, chain in enumerate(chains)}
        self.chains, self.steps = chains, steps
        self.values: dict[int, torch.Tensor] = {}
        self.sums: dict[int, tuple[torch.Tensor, float, torch.Tensor]] = {}

    def run_node(self, node: fx.Node) -> object:
        if node in self.ends:
            self._compare(self.ends[node], self.env[self.chains[self.ends[node]].between])
        value = super().run_node(node)
        if node in self.starts:
            assert isinstance(value, torch.Tensor)
            self.values[self.starts[node]] = value
        return value

    def _compare(self, which: int, exact: torch.Tensor) -> None:
        chain, step = self.chains[which], self.steps[which]
        value = self.values.pop(which)
        env: dict[fx.Node, Any] = {chain.value: torch.round(value / step) * step}
        node = chain.value
        while node is not chain.between:
            after = only_user(node)
            assert after is not None
            env[after] = self._run_on(after, env)
            node = after
        error = env[chain.between] - exact
        weight = self._constant(chain.third.args[1])
        columns = weight.flatten(1).square().mean(0)  # per element of the result
        each = error.square().mean((0, 2, 3)).double() * columns.double()
        result = torch.nn.functional.conv2d(error, weight)
        found = (each, float(result.square().mean()), exact.mean((0, 2, 3)).double())
        before = self.sums.get(which)
        if before is not None:
            found = (before[0] + found[0], before[1] + found[1], before[2] + found[2])
        self.sums[which] = found

    def _run_on(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        def value(source: fx.Node) -> Any:
            return env[source] if source in env else self._constant(source)

        assert callable(node.target)
        return node.target(*fx.map_arg(node.args, value))

    def _constant(self, node: object) -> torch.Tensor:
        assert isinstance(self.module, fx.GraphModule)
        value = tensor_of(self.module, node)
        assert value is not None
        return value


def measure_losses(
    module: fx.GraphModule,
    chains: Sequence[Chain],
    feeds: Sequence[tuple[torch.Tensor, ...]],
    progress: Callable[[int, int], None] | None,
) -> list[Loss]:
    """What rounding does in each chain, on samples.

    Args:
        module: the graph of the canonical program.
        chains: of `find_chains`.
        feeds: samples, one tuple of tensors each.
        progress: called with how far it is and how far it goes; samples count twice.
    """
    ranges = _Ranges(
        module, {n for c in chains for n in (c.value, c.between, _activated(c.third, _CLAMPS))}
    )
    tell = progress or (lambda done, total: None)
    with torch.no_grad():
        for i, feed in enumerate(feeds):
            ranges.run(*feed)
            tell(i + 1, 2 * len(feeds))
        runs = _Losses(module, chains, [ranges.step(c.value) for c in chains])
        for i, feed in enumerate(feeds):
            runs.run(*feed)
            tell(len(feeds) + i + 1, 2 * len(feeds))
    found = []
    for i, chain in enumerate(chains):
        each, total, level = runs.sums[i]
        result = ranges.step(_activated(chain.third, _CLAMPS))
        seen = ranges.seen[chain.value]
        top = max(abs(float(seen.min_val)), abs(float(seen.max_val)))
        reach = weight_tensor(module, chain.second).abs().flatten(1).sum(1) * top
        found.append(
            Loss(
                step=runs.steps[i],
                channels=each / len(feeds),
                total=total / len(feeds),
                own=result**2 / 12,
                level=level / len(feeds),
                silent=reach < _SILENT * ranges.step(chain.between),
            )
        )
    return found


def _activated(node: fx.Node, allowed: Sequence[object]) -> fx.Node:
    after = only_user(node)
    return after if after is not None and after.target in allowed else node


def _is_whole(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a convolution has a weight and a bias of its own."""
    return (
        node.target in CONVS
        and has_own_constants(module, node)
        and tensor_of(module, (*node.args, None, None)[2]) is not None
    )


def _fits(module: fx.GraphModule, first: fx.Node, second: fx.Node, third: fx.Node) -> bool:
    """Whether ``second`` is depthwise and ``third`` pointwise, without padding."""
    padding = third.args[4] if len(third.args) > 4 else ()
    assert isinstance(padding, list | tuple)
    width = len(weight_tensor(module, first))
    return (
        groups(second) == width == len(weight_tensor(module, second))
        and groups(third) == 1
        and weight_tensor(module, third)[0, 0].numel() == 1
        and not any(padding)
    )


def weight_tensor(module: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """The weight of a convolution that has one."""
    weight = tensor_of(module, node.args[1])
    assert weight is not None
    return weight


def bias_tensor(module: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    """The bias of a convolution that has one."""
    bias = tensor_of(module, node.args[2])
    assert bias is not None
    return bias
