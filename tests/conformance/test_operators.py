"""One operator at a time between int8 layers, in every target: the plan's answers, or a refusal.

Whole models hide what they happen not to contain. Several of these were wrong in some runtime when
they were first tried: average pooling that counts padding, a softmax between integers, a bilinear
resize, a plain factor.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekit.compress.graph import canonical, save_program
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.unrounded import Unrounded
from edgekit.errors import UnsupportedError
from edgekit.parity import TOLERANCES, ParityAccumulator
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import available, find, installed, worker

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]

Tensor = torch.Tensor
SAMPLES = 16
SIDE = 8


def _channel_shuffle(x: Tensor) -> Tensor:
    return x.view(1, 2, 2, SIDE, SIDE).transpose(1, 2).reshape(1, 4, SIDE, SIDE)


def _rows(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A layer over one dimension, on all pixels in a row."""
    return lambda x: layer(x.flatten(2)).unflatten(2, (SIDE, SIDE))


EVERY_DAY: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "relu6": lambda: functional.relu6,
    "average-pool-padded": lambda: nn.AvgPool2d(3, 1, 1),
    "max-pool-padded": lambda: nn.MaxPool2d(3, 2, 1),
    "softmax": lambda: nn.Softmax(1),
    "resize-bilinear": lambda: lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "factor": lambda: lambda x: x * 0.5,
    "split-and-concatenate": lambda: lambda x: torch.cat(torch.chunk(x, 2, 1)[::-1], 1),
    "grouped-transposed-convolution": lambda: nn.ConvTranspose2d(4, 4, 2, 2, groups=4),
}
SLOW: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "clamp-to-1": lambda: lambda x: x.clamp(0, 1),
    "hardtanh": lambda: nn.Hardtanh(),
    "leaky-relu": lambda: nn.LeakyReLU(0.1),
    "silu": lambda: nn.SiLU(),
    "hardswish": lambda: nn.Hardswish(),
    "hardsigmoid": lambda: nn.Hardsigmoid(),
    "sigmoid": lambda: torch.sigmoid,
    "tanh": lambda: torch.tanh,
    "gelu": lambda: nn.GELU(),
    "prelu": lambda: nn.PReLU(),
    "mean": lambda: lambda x: x.mean((2, 3), keepdim=True),
    "average-pool-of-nine": lambda: nn.AvgPool2d(3, 1),
    "average-pool-of-four": lambda: nn.AvgPool2d(2),
    "adaptive-average-pool": lambda: nn.AdaptiveAvgPool2d(2),
    "adaptive-max-pool": lambda: nn.AdaptiveMaxPool2d(1),
    "resize-nearest": lambda: lambda x: functional.interpolate(x, scale_factor=2),
    "pad": lambda: lambda x: functional.pad(x, (0, 1, 0, 1)),
    "pixel-shuffle": lambda: (
        lambda x: functional.pixel_unshuffle(functional.pixel_shuffle(x, 2), 2)
    ),
    "channel-shuffle": lambda: _channel_shuffle,
    "slice": lambda: lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    "add-to-itself": lambda: lambda x: x + x,
    "transposed-convolution": lambda: nn.ConvTranspose2d(4, 4, 2, 2),
    "transposed-convolution-cut": lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, 1),
    "batch-norm-alone": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
    "dilated-convolution": lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2),
    "grouped-convolution": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    "even-convolution-same": lambda: nn.Conv2d(4, 4, 4, padding="same"),
    "one-dimension": lambda: _rows(nn.Conv1d(4, 4, 3, padding=1)),
    "layer-norm": lambda: nn.LayerNorm([4, SIDE, SIDE]),
    "normalize": lambda: lambda x: functional.normalize(x, dim=1),
}
OPERATORS = {**EVERY_DAY, **SLOW}

LAST = ("average-pool-of-four",)
"""Operators with no layer behind them: the mean of four integers often lies halfway between two, in
torch no less than elsewhere, and a layer would sum up which way each of them fell."""

REFUSED = {("tflite", "normalize")}
"""What a target's converter can't take yet; to be shortened, never to be lengthened lightly."""


class Between(nn.Module):
    """Convolution, ReLU, convolution, the operator, and one more convolution if it isn't last."""

    def __init__(self, operator: Callable[[Tensor], Tensor], last: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4))
        self.operator = operator
        self.last = nn.Identity() if last else nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.operator(self.second(torch.relu(self.first(x)))))
        return result


@dataclass(frozen=True)
class Case:
    """One operator, ready to convert."""

    program: torch.export.ExportedProgram
    plan: Any
    signature: Signature
    feeds: list[tuple[Tensor, ...]]
    folder: Path

    def tasks(self, target: str) -> list[dict[str, Any]]:
        """Conversion and everything that is asked of the artifact."""
        out = str(self.folder / f"model-{target}{find(target).suffix}")
        return [
            {
                "op": "convert",
                "program": str(self.folder / "program.pt2"),
                "plan": str(self.folder / "plan.json"),
                "signature": self.signature.to_json(),
                "out": out,
            },
            {
                "op": "infer",
                "artifact": out,
                "signature": self.signature.to_json(),
                "feeds": str(self.folder / "feeds.npz"),
                "outputs": str(self.folder / f"answers-{target}.npz"),
                "repeats": 2,
            },
            {"op": "stored", "artifact": out},
            {"op": "unrounded", "artifact": out},
        ]


@pytest.fixture(scope="module")
def cases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Case]:
    """The operators that the selected tests need."""
    params = [getattr(i, "callspec", None) for i in request.session.items]
    wanted = {p.params["operator"] for p in params if p is not None and "operator" in p.params}
    return {
        name: _case(make, name in LAST, tmp_path_factory.mktemp(name))
        for name, make in OPERATORS.items()
        if name in wanted
    }


def _case(make: Callable[[], Callable[[Tensor], Tensor]], last: bool, folder: Path) -> Case:
    torch.manual_seed(0)
    module = Between(make(), last).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()  # type: ignore[union-attr,operator]
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr,operator]
    feeds = [(torch.randn(1, 3, SIDE, SIDE),) for _ in range(SAMPLES)]
    program = canonical(torch.export.export(module, feeds[0], strict=False))
    plan = quantize(program, feeds)
    with torch.no_grad():
        shape = tuple(module(*feeds[0]).shape)
    signature = Signature((TensorSpec("x", (1, 3, SIDE, SIDE)),), (TensorSpec("y", shape),))
    save_program(program, folder / "program.pt2")
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    np.savez(folder / "feeds.npz", x=np.stack([f[0].numpy() for f in feeds]))
    return Case(program, plan, signature, feeds, folder)


@pytest.fixture(
    scope="module", params=[t for t in available() if "w8a8" in find(t).schemes], ids=str
)
def answers(
    request: pytest.FixtureRequest, cases: dict[str, Case]
) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """One target's answers to every task, by operator; one worker process for all."""
    target: str = request.param
    missing = [name for name, version in installed(find(target)).items() if version is None]
    if missing:
        pytest.skip(f"{target}: {', '.join(missing)} not installed")
    tasks = [task for case in cases.values() for task in case.tasks(target)]
    found = worker.run(target, tasks)
    each = len(found) // len(cases)
    return target, {name: found[i * each : (i + 1) * each] for i, name in enumerate(cases)}


@pytest.mark.parametrize(
    "operator", [*EVERY_DAY, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
def test_an_operator_between_int8_layers_gives_the_plans_answers(
    operator: str,
    answers: tuple[str, dict[str, list[dict[str, Any]]]],
    cases: dict[str, Case],
) -> None:
    target, results = answers
    case = cases[operator]
    converted, ran, stored, kernels = results[operator]
    if (target, operator) in REFUSED:
        assert type(converted["error"]) is UnsupportedError
        return
    for result in (converted, ran, stored, kernels):
        assert "error" not in result, f"{target}: {result['error']}"
    assert ran["distinct"] == 1
    left_out = Unrounded.from_json(kernels["unrounded"])
    module = render(case.program, left_out.without(case.program, case.plan), "fake")
    step = [e for e in case.plan.edges if e.kind == "activation"][-1].scale[0]
    accumulator = ParityAccumulator(case.signature.outputs, TOLERANCES["w8a8"], step)
    with np.load(case.folder / f"answers-{target}.npz") as data, torch.no_grad():
        for feed, answer in zip(case.feeds, data["y"], strict=True):
            accumulator.add({"y": module(*feed).numpy()}, {"y": answer})
    report = accumulator.report()
    [stats] = report.outputs
    failed = "; ".join(f"{c.name} {c.value} (limit {c.limit})" for c in report.failures)
    assert report.passed, f"{target} {operator}: SQNR {stats.sqnr_db:.1f} dB, {failed}"
    carried = left_out.not_stored().without(case.program, case.plan)
    _assert_stored(target, carried, stored["stored"])


def _assert_stored(target: str, plan: QuantPlan, stored: list[dict[str, Any]]) -> None:
    ours = {(e.scale[0], e.zero_point[0]) for e in plan.edges if e.kind == "activation"}
    theirs = {(s["scale"][0], s["zero_point"][0]) for s in stored if s["kind"] == "activation"}
    for some, others, where in ((ours, theirs, "file"), (theirs, ours, "plan")):
        for scale, zero in some:
            near = [abs(s - scale) <= 1e-6 * scale and z == zero for s, z in others]
            assert any(near), f"{target}: scale {scale}, zero point {zero} is not in the {where}"
