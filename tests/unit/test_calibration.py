"""NUM-05: calibration that can't be right ends in an error or a failed check, never in a plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import verify
from edgekit.compress.evaluate import evaluate
from edgekit.compress.graph import canonical
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.errors import BadData
from edgekit.model import Model
from edgekit.parity import calibration_checks

Feeds = list[tuple[torch.Tensor, ...]]


def pictures(n: int = 8, *, scale: float = 1.0, shift: float = 0.0) -> Feeds:
    """``n`` pictures [1, 3, 8, 8] with values in 0 to 1, scaled and shifted."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(1, 3, 8, 8, generator=generator) * scale + shift,) for _ in range(n)]


@pytest.fixture(scope="module")
def model() -> Model:
    """Two convolutions and a linear layer; scores [1, 4] of x [1, 3, 8, 8]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )
    return Model.from_module(module.eval(), {"input": torch.zeros(1, 3, 8, 8)})


def plan_of(model: Model, feeds: Feeds) -> tuple[torch.export.ExportedProgram, QuantPlan]:
    program = canonical(model.program())
    return program, quantize(program, feeds)


@pytest.mark.parametrize(
    ("feeds", "finding"),
    [
        ([(torch.zeros(1, 3, 8, 8),)] * 16, "all 16 samples are the same"),
        (pictures(1) * 16, "all 16 samples are the same"),
        ([(torch.zeros(1, 3, 8, 8),)], "input 'input' is 0 throughout, samples: 1"),
        ([(torch.full((1, 3, 8, 8), -2.5),)], "input 'input' is -2.5 throughout"),
    ],
    ids=["all zeros", "one picture over and over", "one of zeros", "one grey picture"],
)
def test_num_05_calibration_without_information_is_refused(
    model: Model, feeds: Feeds, finding: str
) -> None:
    with pytest.raises(BadData, match="calibration is suspect") as caught:
        plan_of(model, feeds)
    assert finding in caught.value.message
    assert "normalised" in caught.value.hint
    assert caught.value.exit_code == 7


def test_num_05_calibration_that_silences_most_layers_is_refused() -> None:
    """Pictures so dark that every ReLU gives zeros: their ranges would say nothing."""
    convolutions: list[nn.Module] = []
    for channels in (3, 4, 4, 4):
        convolutions += [nn.Conv2d(channels, 4, 1), nn.ReLU()]
    module = nn.Sequential(*convolutions).eval()
    with torch.no_grad():
        for value in module.parameters():
            value.abs_().clamp_(min=0.1)
        first = module[0].bias
        assert isinstance(first, torch.Tensor)
        first.zero_()
        for layer in convolutions[2::2]:
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            layer.bias.fill_(-1e-3)
    model = Model.from_module(module, {"input": torch.zeros(1, 3, 8, 8)})
    with pytest.raises(BadData, match="calibration is suspect: 4 of 5 quantized tensors") as caught:
        plan_of(model, pictures(shift=-2.0))
    assert "first 1 (relu)" in caught.value.message
    plan_of(model, pictures())


def test_one_sample_of_one_value_is_no_reason_to_refuse() -> None:
    model = Model.from_module(nn.Linear(1, 4).eval(), {"input": torch.zeros(1, 1)})
    _, plan = plan_of(model, [(torch.tensor([[2.0]]),)])
    assert plan.activations()


def judged(model: Model, calibration: Feeds, evaluation: Feeds) -> verify.Verdict:
    """The plan's own answers, judged on other samples than it was calibrated with."""
    program, plan = plan_of(model, calibration)
    feeds = {"input": np.stack([x.numpy() for (x,) in evaluation])}
    outputs = [s.name for s in model.signature.outputs]
    answers = evaluate(render(program, plan, "fake"), feeds, ["input"], outputs)
    steps = verify.output_steps(program, plan, outputs)
    ranges = verify.input_ranges(program, plan, ["input"])
    reference = verify.Reference("w8a8", feeds, answers, steps, ranges=ranges)
    return verify.judge(
        reference, model.signature, answers, outputs, 1, stored_faults=None, runtime="torch"
    )


def failed(verdict: verify.Verdict) -> list[str]:
    return [c.name for c in verdict.checks if c.passed is False]


def test_num_05_calibration_like_the_evaluation_passes(model: Model) -> None:
    verdict = judged(model, pictures(8), pictures(24, scale=1.05))
    assert verdict.passed, verdict.reason
    assert {"calibration-range:input", "calibration-span:input"} <= {c.name for c in verdict.checks}


@pytest.mark.parametrize(
    ("calibration", "evaluation", "check"),
    [
        (pictures(), pictures(scale=255.0), "calibration-range:input"),
        (pictures(), pictures(scale=4.4, shift=-2.1), "calibration-range:input"),
        (pictures(scale=255.0), pictures(), "calibration-span:input"),
    ],
    ids=["0..1 for 0..255", "not normalised for normalised", "0..255 for 0..1"],
)
def test_num_05_wrong_normalisation_fails_though_the_answers_are_the_plans(
    model: Model, calibration: Feeds, evaluation: Feeds, check: str
) -> None:
    verdict = judged(model, calibration, evaluation)
    assert not verdict.passed
    assert check in failed(verdict)
    assert all(name.startswith("calibration-") for name in failed(verdict))
    assert "calibration is suspect" in str(verdict.reason)


def test_a_tenth_outside_is_told_but_passes() -> None:
    values = np.concatenate([np.zeros(90), np.full(10, 9.0)])
    clipped, span = calibration_checks({"x": (-1.0, 1.0)}, {"x": values})
    assert (
        clipped.passed and clipped.value == pytest.approx(0.1) and "suspect" not in clipped.detail
    )
    assert span.passed


def test_nan_fails() -> None:
    checks = calibration_checks({"x": (-1.0, 1.0)}, {"x": np.full(4, np.nan)})
    assert checks[1].passed is False


def test_inputs_that_stay_in_float_have_no_range() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, image: torch.Tensor, ids: torch.Tensor, raw: torch.Tensor) -> Any:
            return self.layer(image.flatten(1)) + self.layer(torch.exp(raw)) + ids

    feeds: Feeds = [
        (torch.randn(1, 2, 3), torch.randint(0, 3, (1, 1)), torch.randn(1, 6)) for _ in range(4)
    ]
    examples = dict(zip(("image", "ids", "raw"), feeds[0], strict=True))
    program, plan = plan_of(Model.from_module(Scaled().eval(), examples), feeds)
    ranges = verify.input_ranges(program, plan, ["image", "ids", "raw"])
    assert list(ranges) == ["image"]
    low, high = ranges["image"]
    seen = torch.cat([f[0] for f in feeds])
    assert low == pytest.approx(float(seen.min()), abs=0.05)
    assert high == pytest.approx(float(seen.max()), abs=0.05)
