"""Quantization-aware training: what is trained, what stays, and which plan is used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from edgekit.compress._aware import Aware
from edgekit.compress.graph import program_digest
from edgekit.compress.ptq import Quantized
from edgekit.compress.qat import QatSettings, qat
from edgekit.compress.render import render
from edgekit.compress.train import TrainSettings
from edgekit.model import Model

sys.path.insert(0, str(Path(__file__).parent))
try:
    from qat_models import Tensors, picture_model, pictures, quantized
finally:
    sys.path.pop(0)

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = TrainSettings(epochs=2, batch=32, rate=1e-3)


@pytest.fixture(scope="module")
def data() -> Tensors:
    return pictures()


@pytest.fixture(scope="module")
def model(data: Tensors) -> Model:
    return picture_model(data.part(0, 384))


@pytest.fixture(scope="module")
def start(model: Model, data: Tensors) -> Quantized:
    return quantized(model, data)


def test_before_any_step_it_is_post_trainings_plan(start: Quantized, data: Tensors) -> None:
    aware = Aware(start, ["x"]).eval()
    fake = render(start.program, start.plan, "fake")
    with torch.no_grad():
        together = aware(data.inputs["x"][:16])
        alone = torch.cat([fake(x[None])[0] for x in data.inputs["x"][:16]])
    step = start.plan.activations()[start.plan.edges[-3].node].scale[0] if False else 0.0
    assert torch.allclose(together, alone, atol=step + 1e-5)
    again = aware.finish()
    assert again.plan.edges == start.plan.edges


def test_it_learns(model: Model, start: Quantized, data: Tensors) -> None:
    made = qat(model, start, data.part(0, 384), QatSettings(train=SHORT), held=data.part(384, 512))
    print(made.before, made.after, made.difference, made.curve)
    assert made.trained.plan.program_digest == program_digest(made.trained.program)
