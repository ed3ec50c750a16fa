"""Which layer does harm, what sparing it gains, and choosing the fewest that suffice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.graph import canonical, graph_module
from edgekit.compress.plan import QuantPlan
from edgekit.compress.precision import find_units, keep_float
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.select import fewest
from edgekit.compress.sensitivity import Sensitivity, measure
from edgekit.export.evaluators import TaskMetric
from edgekit.signature import Signature, TensorSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Program = torch.export.ExportedProgram
Feeds = list[tuple[torch.Tensor, ...]]
SIGNATURE = Signature((TensorSpec("x", (1, 3, 8, 8)),), (TensorSpec("y", (1, 4)),))


def planted() -> nn.Module:
    """One channel of the depthwise layer is 3000 times as large as what the next layer reads."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    with torch.no_grad():
        net[2].weight[0] *= 3000
        net[3].weight[:, 0] = 0
        for layer in (0, 2, 3, 5, 9):
            net[layer].bias.zero_()
    return net.eval()


@pytest.fixture(scope="module")
def feeds() -> Feeds:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1, 3, 8, 8, generator=generator),) for _ in range(16)]


@pytest.fixture(scope="module")
def program(feeds: Feeds) -> Program:
    return canonical(torch.export.export(planted(), feeds[0], strict=False))


@pytest.fixture(scope="module")
def plan(program: Program, feeds: Feeds) -> QuantPlan:
    return quantize(program, feeds)


@pytest.fixture(scope="module")
def found(program: Program, plan: QuantPlan, feeds: Feeds) -> Sensitivity:
    return measure(program, plan, program, feeds, ["y"], evaluator=TaskMetric(SIGNATURE))


def answers(module: torch.fx.GraphModule, feeds: Feeds) -> np.ndarray:
    with torch.no_grad():
        return np.stack([module(*feed).numpy() for feed in feeds])


def noise(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(((got.astype(float) - wanted) ** 2).sum() / (wanted.astype(float) ** 2).sum())


def test_the_planted_layer_is_named_first(found: Sensitivity) -> None:
    document = found.to_json()
    first, second = document["layers"][:2]
    assert (first["layer"], first["kind"]) == ("2 (conv2d_1)", "layer")
    assert first["sqnr_alone_db"] < 5 and second["sqnr_alone_db"] > 35
    assert found.ranked()[0].unit.name == "2 (conv2d_1)"
    gains = {row["layer"]: row["gain_kept_db"] for row in document["layers"]}
    assert gains.pop("2 (conv2d_1)") > 30 > 1 > max(gains.values())
    assert document["sqnr_db"] == pytest.approx(first["sqnr_alone_db"], abs=1)
    assert (document["metric"], document["metric_float"]) == ("agreement", 100)
    assert document["metric_quantized"] < 60 and first["metric_alone"] < 60
    assert first["metric_kept"] > 90


def test_figures_are_those_of_whole_renderings(
    found: Sensitivity, program: Program, plan: QuantPlan, feeds: Feeds
) -> None:
    """Only what changes is computed again: it must come to the same as computing all of it."""
    module = graph_module(program)
    exact = answers(module, feeds)
    assert found.noise == pytest.approx(noise(exact, answers(render(program, plan, "fake"), feeds)))
    for finding, unit in zip(found.findings, find_units(module, plan), strict=True):
        assert finding.unit == unit
        kept = keep_float(module, plan, [unit])
        whole = noise(exact, answers(render(program, kept, "fake"), feeds))
        assert finding.kept_noise == pytest.approx(whole, rel=1e-4)
        own = tuple(e for e in plan.edges if e.node in unit.edges)
        alone = dataclasses.replace(plan, edges=own)
        whole = noise(exact, answers(render(program, alone, "fake"), feeds))
        assert finding.alone_noise == pytest.approx(whole, rel=1e-4)


def test_metrics_of_tasks() -> None:
    exact = {"y": np.eye(4, dtype=np.float32)[:, None] * 2}
    turned = {"y": np.roll(exact["y"], 1, axis=0)}
    agreement = TaskMetric(SIGNATURE)
    assert (agreement(exact, exact), agreement(turned, exact)) == (100, 0)
    assert agreement.name == "agreement"
    top1 = TaskMetric(SIGNATURE, np.array([3, 0, 1, 0]))
    assert (top1(turned, exact), top1.name) == (75, "top1")
    embedding = TaskMetric(SIGNATURE)
    unit = {"y": exact["y"] / 2}
    assert (embedding(unit, unit), embedding(turned, unit)) == (1, 0)
    assert embedding.name == "cosine"
    wide = Signature(SIGNATURE.inputs, (TensorSpec("y", (1, 2, 2)),))
    assert TaskMetric(wide).name == "cosine"


@pytest.mark.parametrize(
    ("needed", "most"),
    [((0,), 1), ((6,), 12), ((2, 3), 8), ((0, 9), 14), (tuple(range(7)), 14), ((11,), 16)],
)
def test_the_fewest_that_suffice(needed: tuple[int, ...], most: int) -> None:
    asked: list[Sequence[int]] = []

    def holds(some: Sequence[int]) -> bool:
        asked.append(some)
        return set(needed) <= set(some)

    assert fewest(range(12), holds, taken_back=12) == list(needed)
    assert len(asked) <= most + 12
    assert all(list(some) == sorted(some) and some for some in asked)


def test_dear_ones_are_left_out_first_and_not_forever() -> None:
    def holds(some: Sequence[int]) -> bool:
        return len(some) >= 3

    assert fewest(range(8), holds) == [0, 1, 2]

    def either(some: Sequence[int]) -> bool:
        return {3, 0} <= set(some) or {3, 1} <= set(some)

    assert fewest(range(8), either, cost=lambda i: (9, 1, 1, 1)[i]) == [1, 3]
    assert fewest(range(8), either, cost=lambda i: (1, 9, 1, 1)[i]) == [0, 3]
    asked: list[int] = []
    fewest(range(64), lambda some: bool(asked.append(1)) or 63 in some, taken_back=5)
    assert len(asked) <= 7 + 6 + 5
    assert fewest(range(3), lambda some: False) is None
