"""Smoothing of linear layers' inputs, and the outputs that need no rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.compress.graph import LINEARS, aten, canonical, graph_module
from edgekit.compress.ptq import PLAIN, post_training
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.smooth import find_groups, smooth
from edgekit.compress.unrounded import Unrounded

TOKENS, WIDTH = 6, 16


class Block(nn.Module):
    """Post-norm, as in BERT: the norm's output goes into a layer and around it."""

    def __init__(self, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.last = nn.LayerNorm(WIDTH)
        with torch.no_grad():  # one feature is forty times as large as the others
            self.norm.weight[3] *= 40

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        y = self.down(torch.nn.functional.gelu(self.up(x)))
        return self.last(x + y) if self.residual else self.last(y)


def _program(module: nn.Module) -> torch.export.ExportedProgram:
    x = torch.zeros(1, TOKENS, WIDTH)
    return canonical(torch.export.export(module.eval(), (x,), strict=False))


def _samples(count: int, seed: int) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, TOKENS, WIDTH, generator=generator),) for _ in range(count)]


def _run(module: torch.fx.GraphModule, feeds: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    with torch.no_grad():
        found = [module(*feed) for feed in feeds]
    return torch.cat([f[0] if isinstance(f, tuple | list) else f for f in found])


def _error(program: torch.export.ExportedProgram, smoothed: torch.export.ExportedProgram) -> float:
    plan = quantize(smoothed, _samples(16, 1))
    kept = Unrounded(results=True).without(smoothed, plan)
    feeds = _samples(16, 2)
    exact = _run(graph_module(program), feeds)
    return float((_run(render(smoothed, kept, "fake"), feeds) - exact).square().mean())


@pytest.mark.parametrize("residual", [False, True])
def test_answers_stay_and_quantize_better(residual: bool) -> None:
    torch.manual_seed(0)
    program = _program(Block(residual=residual))
    smoothed = smooth(program, _samples(16, 1))
    feeds = _samples(8, 3)
    before, after = (_run(graph_module(p), feeds) for p in (program, smoothed))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    assert _error(program, smoothed) < 0.5 * _error(program, program)


def test_the_norm_takes_the_factors_where_nothing_else_reads_it() -> None:
    torch.manual_seed(0)
    for residual in (False, True):
        program = _program(Block(residual=residual))
        groups = {g.source.target: g for g in find_groups(graph_module(program))}
        assert (groups[aten.layer_norm.default].fold is None) is residual
        smoothed = graph_module(smooth(program, _samples(16, 1)))
        divided = [
            n for n in smoothed.graph.nodes if n.target is aten.mul.Tensor and _follows_norm(n)
        ]
        assert len(divided) == int(residual)


def _follows_norm(node: torch.fx.Node) -> bool:
    return any(s.target is aten.layer_norm.default for s in node.all_input_nodes)


def test_a_weight_used_twice_and_even_features_are_left_alone() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.relu(self.layer(torch.relu(x))))

    assert find_groups(graph_module(_program(Twice()))) == []
    even = _program(nn.Sequential(nn.Tanh(), nn.Linear(WIDTH, WIDTH)))
    assert smooth(even, _samples(8, 1)) is even


def test_results_that_only_floats_read_are_not_rounded() -> None:
    torch.manual_seed(0)
    program = _program(Block(residual=True))
    plan = quantize(program, _samples(8, 1))
    names = {n.name: n for n in graph_module(program).graph.nodes}
    kept = Unrounded(results=True).without(program, plan).activations()
    dropped = [names[n] for n in plan.activations() if n not in kept]
    # The layer before GELU feeds an operator that takes integers; the one before the sum does not.
    assert [n.target for n in dropped] == [LINEARS[0]]
    assert [u.target for u in dropped[0].users] == [aten.add.Tensor]


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)),
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4)),
    ],
    ids=["read by a layer", "behind a ReLU"],
)
def test_of_layers_only_the_last_is_not_rounded(module: nn.Module) -> None:
    torch.manual_seed(0)
    program = _program(module)
    plan = post_training(program, _samples(8, 1), PLAIN).plan
    (result,) = graph_module(program).graph.output_node().all_input_nodes
    expected = tuple(e for e in plan.edges if e.node != result.name)
    assert Unrounded(results=True).without(program, plan).edges == expected
    assert len(expected) == len(plan.edges) - 1
