"""Channel splitting: the same answers, less lost before depthwise convolutions, and no more."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from edgekit.compress._chains import Loss, find_chains, measure_losses
from edgekit.compress.graph import canonical, graph_module, program_digest
from edgekit.compress.ptq import PLAIN, post_training
from edgekit.compress.split import split_channels

pytestmark = pytest.mark.usefixtures("one_thread")

Program = torch.export.ExportedProgram
Feeds = list[tuple[torch.Tensor, ...]]
CHANNELS, WORST = 16, 5


class Block(nn.Module):
    """A block whose depthwise convolution is an edge detector in one channel."""

    def __init__(self, *, sharp: float = 12.0, silent: int = 0, then: nn.Module | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, CHANNELS, 1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.then = then or nn.ReLU6()
        self.third = nn.Conv2d(CHANNELS, 8, 1)
        # As behind a network, so that small sizes of the block are no small share of all.
        self.rest = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3))
        with torch.no_grad():
            self.first.bias.fill_(3.0)
            self.first.weight.mul_(0.5)
            laplace = torch.full((3, 3), -16 * sharp / 127)  # on the weights' grid
            laplace[1, 1] = sharp
            self.second.weight[WORST, 0] = laplace
            self.second.bias[WORST] = 3.0
            for channel in range(CHANNELS - silent, CHANNELS):
                self.second.weight[channel] = 0
                self.second.bias[channel] = 1.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = nn.functional.relu6(self.first(x))
        result: torch.Tensor = self.rest(self.third(self.then(self.second(value))))
        return result


def pictures(n: int = 8) -> Feeds:
    """Smooth ones."""
    generator = torch.Generator().manual_seed(1)
    small = torch.randn(n, 3, 2, 2, generator=generator)
    large = nn.functional.interpolate(small, size=(24, 24), mode="bicubic")
    return [(picture[None],) for picture in large]


def program_of(module: nn.Module, feeds: Feeds) -> Program:
    return canonical(torch.export.export(module.eval(), feeds[0], strict=False))


def answers(program: Program, feeds: Feeds) -> torch.Tensor:
    module = graph_module(program)
    with torch.no_grad():
        return torch.stack([module(*feed) for feed in feeds])


def arriving(program: Program, feeds: Feeds) -> float:
    module = graph_module(program)
    [loss] = measure_losses(module, find_chains(module)[:1], feeds, None)
    return loss.total / loss.own


@pytest.mark.parametrize(("silent", "added"), [(0, 8), (6, 0)])
def test_answers_stay_and_less_is_lost(silent: int, added: int) -> None:
    feeds = pictures()
    program = program_of(Block(silent=silent), feeds)
    digest = program_digest(program)
    made, [split] = split_channels(program, feeds)
    exact = answers(program, feeds)
    # A clamp may cut a copy half a step earlier or later, no more.
    assert (answers(made, feeds) - exact).square().mean() < 1e-5 * exact.square().mean()
    before = arriving(program, feeds)
    assert before > 1 and arriving(made, feeds) < before / 8
    assert split.copies[WORST] >= 3 and program_digest(program) == digest
    # Channels without effect are taken first; more are added only where those do not do.
    assert split.added == added and (split.reused > 1) == (silent > 0)
    [first, second, third] = [made.state_dict[f"{n}.weight"] for n in ("first", "second", "third")]
    assert first.shape[0] == second.shape[0] == third.shape[1] == CHANNELS + added


def test_what_costs_too_much_is_left() -> None:
    feeds = pictures()
    block = Block()
    block.rest = nn.Sequential(nn.Conv2d(8, 8, 1))
    program = program_of(block, feeds)
    made, done = split_channels(program, feeds)
    assert made is program and done == []


def test_blocks_that_lose_little_are_left() -> None:
    feeds = pictures()
    program = program_of(Block(sharp=0.5), feeds)
    made, done = split_channels(program, feeds)
    assert made is program and done == []


def test_hard_swish_may_follow_the_depthwise_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = pictures()
    program = program_of(Block(then=nn.Hardswish()), feeds)
    assert arriving(program, feeds) < 1  # such a result reaches far and has wide steps itself
    assert split_channels(program, feeds) == (program, [])

    def strict(*args: Any) -> list[Loss]:
        return [dataclasses.replace(x, own=x.own / 20) for x in measure_losses(*args)]

    monkeypatch.setattr("edgekit.compress.split.measure_losses", strict)
    made, [split] = split_channels(program, feeds)
    assert split.copies[WORST] > 1
    assert arriving(made, feeds) < arriving(program, feeds) / 4


class Watched(Block):
    """The channels are read elsewhere too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = nn.functional.relu6(self.first(x))
        return super().forward(x) + value.mean()


class Padded(Block):
    """The pointwise convolution pads: what a silent channel gives is not the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(CHANNELS, 8, 1, padding=1)


@pytest.mark.parametrize("block", [Watched, Padded])
def test_other_shapes_of_blocks_are_left(block: type[Block]) -> None:
    feeds = pictures()
    program = program_of(block(), feeds)
    module = graph_module(program)
    assert find_chains(module) == []
    assert split_channels(program, feeds) == (program, [])


def test_a_plan_gains_by_it() -> None:
    feeds = pictures()
    program = program_of(Block(sharp=40), feeds)
    exact = answers(program, feeds)

    def noise(splitting: bool) -> float:
        from edgekit.compress.render import render

        made = post_training(program, feeds, dataclasses.replace(PLAIN, splitting=splitting))
        module = render(made.program, made.plan, "fake")
        with torch.no_grad():
            got = torch.stack([module(*feed) for feed in feeds])
        return float((got - exact).square().mean())

    assert noise(True) < 0.4 * noise(False)
