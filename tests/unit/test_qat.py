"""Quantization-aware training: what is trained, what stays, and which plan is used."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress._aware import Aware
from edgekit.compress._many import Many
from edgekit.compress._straight import rounded
from edgekit.compress.evaluate import evaluate
from edgekit.compress.fake import fake_quantize
from edgekit.compress.folder import load_quantized, save_quantized
from edgekit.compress.graph import canonical, graph_module, program_digest
from edgekit.compress.plan import QuantPlan
from edgekit.compress.ptq import Quantized
from edgekit.compress.qat import QatSettings, Tuned, qat
from edgekit.compress.render import render
from edgekit.compress.train import TrainSettings
from edgekit.compress.weights import quantize_weights
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.model import Model
from edgekit.schemas import validate

sys.path.insert(0, str(Path(__file__).parent))
try:
    from qat_models import Net, Tensors, picture_model, pictures, quantized
finally:
    sys.path.pop(0)

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = TrainSettings(epochs=2, batch=64, rate=2e-3)
ONE = TrainSettings(epochs=1, batch=64, rate=2e-3)


@pytest.fixture(scope="module")
def data() -> Tensors:
    return pictures()


@pytest.fixture(scope="module")
def learned(data: Tensors) -> Tensors:
    return data.part(0, 384)


@pytest.fixture(scope="module")
def held(data: Tensors) -> Tensors:
    return data.part(384, 512)


@pytest.fixture(scope="module")
def model(learned: Tensors) -> Model:
    return picture_model(learned)


@pytest.fixture(scope="module")
def start(model: Model, learned: Tensors) -> Quantized:
    return quantized(model, learned)


@pytest.fixture(scope="module")
def narrow(model: Model) -> Quantized:
    """Four-bit weights, of three values here: what post-training alone is bad at."""
    own = canonical(model.program())
    plan = quantize_weights(own, "w8")
    edges = tuple(
        dataclasses.replace(
            e, quant_min=-1, quant_max=1, dtype="int4", scale=tuple(127 * s for s in e.scale)
        )
        for e in plan.edges
    )
    return Quantized(own, dataclasses.replace(plan, scheme="w4", edges=edges))


@pytest.fixture(scope="module")
def tuned(model: Model, narrow: Quantized, learned: Tensors, held: Tensors) -> Tuned:
    train = TrainSettings(epochs=6, batch=32, rate=5e-3)
    return qat(model, narrow, learned, QatSettings(train=train), held=held)


def answers(quantized: Quantized, data: Tensors) -> np.ndarray[Any, Any]:
    feeds = {name: value.numpy()[:, None] for name, value in data.inputs.items()}
    module = render(quantized.program, quantized.plan, "fake")
    return evaluate(module, feeds, list(feeds), ["y"])["y"][:, 0]


@pytest.mark.parametrize("zero", [-128, 3])
def test_rounding_gives_the_plans_bits_and_lsqs_gradients(zero: int) -> None:
    scale, low, high = torch.tensor(0.037, requires_grad=True), -128 - zero, 127 - zero
    value = (4 * torch.randn(4000, generator=torch.Generator().manual_seed(0))).requires_grad_()
    made = rounded(value, scale, low, high)
    assert torch.equal(made, fake_quantize(value.detach(), float(scale.detach()), zero, -128, 127))
    made.sum().backward()
    with torch.no_grad():
        ratio = value / scale
        whole, inside = ratio.round(), (ratio.round() >= low) & (ratio.round() <= high)
        expected = torch.where(inside, whole - ratio, whole.clamp(low, high)).sum()
    assert value.grad is not None and torch.equal(value.grad, inside.float())
    assert scale.grad is not None and torch.isclose(scale.grad, expected, rtol=1e-3)
    again = torch.vmap(lambda v: rounded(v, scale, low, high))(value.view(40, 100))
    assert torch.equal(again.flatten(), made)


def test_no_step_is_post_trainings_plan(start: Quantized, held: Tensors) -> None:
    aware = Aware(start, ["x"]).eval()
    with torch.no_grad():
        together = aware(held.inputs["x"]).numpy()
    # Biases are rounded in float32 here: by the last bit, which may tip a rounding now and then.
    step = start.plan.activations()["linear"].scale[0]
    apart = np.abs(together - answers(start, held)) / step
    assert apart.max() < 1.5 and (apart > 0.5).mean() < 0.01
    again = aware.finish()
    assert again.plan.edges == start.plan.edges
    assert np.array_equal(answers(again, held), answers(start, held))


def test_what_three_values_lost_training_gains(tuned: Tuned, narrow: Quantized) -> None:
    assert tuned.gained and tuned.quantized is tuned.trained
    assert tuned.difference.low > 0 and tuned.difference.verdict == "better"
    assert tuned.after - tuned.before == pytest.approx(tuned.difference.difference)
    assert tuned.curve[-1]["loss"] < 0.8 * tuned.curve[0]["loss"]


def test_the_plan_holds_what_was_trained(
    tuned: Tuned, narrow: Quantized, held: Tensors, tmp_path: Path
) -> None:
    made = tuned.trained
    assert made.plan.program_digest == program_digest(made.program)
    assert made.plan.origin == narrow.plan.program_digest
    assert [e.edge for e in made.plan.edges] == [e.edge for e in narrow.plan.edges]
    assert made.plan.edges != narrow.plan.edges
    module = graph_module(made.program)
    for edge in made.plan.edges:
        node = next(n for n in module.graph.nodes if n.name == edge.node)
        value = dict(module.named_parameters(), **dict(module.named_buffers()))[str(node.target)]
        stored = edge.quantize(value.detach().numpy())
        assert np.array_equal(edge.dequantize(stored), value.detach().numpy()), "on the grid"
        assert set(np.unique(stored)) <= {-1, 0, 1}
    document = made.plan.to_json()
    validate(document)
    assert document["training"]["before"] == tuned.before
    again = load_quantized(save_quantized(made, tmp_path / "plan"))
    assert again.plan == made.plan
    assert np.array_equal(answers(again, held), answers(made, held))


@pytest.mark.parametrize("learn", [True, False])
def test_trained_edges_obey_the_plans_rules(
    learn: bool, model: Model, start: Quantized, learned: Tensors, held: Tensors
) -> None:
    settings = QatSettings(train=SHORT, learn_scales=learn, freeze_ranges_after=1, momentum=0.3)
    made = qat(model, start, learned, settings, held=held)
    before, after = start.plan.activations(), made.trained.plan.activations()
    assert before["x"] == after["x"], "a model's input keeps its range"
    moved = [n for n in before if before[n].scale != after[n].scale]
    assert len(moved) >= len(before) - 3
    for edge in after.values():
        assert edge.quant_min <= edge.zero_point[0] <= edge.quant_max and edge.scale[0] > 0
    relu = next(e for e in after.values() if "hardtanh" in e.node)
    assert relu.zero_point == (-128,)
    groups: dict[str, set[Any]] = {}
    for edge in after.values():
        groups.setdefault(edge.group or edge.node, set()).add((edge.scale, edge.zero_point))
    assert all(len(found) == 1 for found in groups.values())
    bend = next(e for e in after.values() if e.node == "conv2d_3")
    steps = 3 / bend.scale[0]
    assert steps == pytest.approx(round(steps), rel=1e-6), "hard-swish bends on the grid"
    module = graph_module(made.trained.program)
    constants = made.trained.plan.constants()
    for node in module.graph.nodes:
        if node.op == "call_function" and str(node.args[1:2]) and len(node.args) > 2:
            if str(node.args[1]) not in constants or str(node.args[2]) not in constants:
                continue
            weight, bias = constants[str(node.args[1])], constants[str(node.args[2])]
            step = np.float32(after[node.args[0].name].scale[0])
            assert bias.scale == tuple(float(np.float32(s) * step) for s in weight.scale)


@pytest.mark.slow
@pytest.mark.parametrize("learn", [True, False])
def test_frozen_ranges_stay(
    learn: bool, model: Model, start: Quantized, learned: Tensors, held: Tensors
) -> None:
    settings = QatSettings(train=ONE, learn_scales=learn, freeze_ranges_after=0)
    made = qat(model, start, learned, settings, held=held).trained
    assert made.plan.edges == start.plan.edges
    assert made.plan.program_digest != start.plan.program_digest, "weights move on"


@pytest.mark.slow
def test_killed_and_called_again_it_ends_with_the_same_bytes(
    model: Model, start: Quantized, learned: Tensors, held: Tensors, tmp_path: Path
) -> None:
    settings = QatSettings(train=SHORT.model_copy(update={"ema": 0.9, "checkpoint_s": 0.0}))
    whole = qat(model, start, learned, settings, held=held)

    class Killed(Exception):
        pass

    class Once(Tensors):
        left = 8

        def batch(self, rows: torch.Tensor, generator: Any) -> dict[str, torch.Tensor]:
            if len(rows) == 64 and generator is not None:
                Once.left -= 1
                if not Once.left:
                    raise Killed
            return super().batch(rows, generator)

    once = Once(learned.inputs, learned.y)
    with pytest.raises(Killed):
        qat(model, start, once, settings, held=held, folder=tmp_path)
    again = qat(model, start, once, settings, held=held, folder=tmp_path)
    assert Once.left < -2, "it went on, and not from the beginning"
    assert again.trained.plan == whole.trained.plan


def test_no_gain_is_post_trainings_plan(
    model: Model, start: Quantized, learned: Tensors, held: Tensors
) -> None:
    settings = QatSettings(train=TrainSettings(epochs=1, batch=64, rate=1e-7))
    made = qat(model, start, learned, settings, held=held)
    assert not made.gained and made.quantized is start
    assert made.difference.low <= 0 <= made.difference.high
    assert made.to_json()["difference"]["n"] == len(held)


@pytest.mark.slow
def test_without_labels_the_float_model_teaches_and_judges(
    model: Model, narrow: Quantized, learned: Tensors, held: Tensors
) -> None:
    bare, out = learned.without_labels(), held.without_labels()
    with pytest.raises(BadData, match="no labels"):
        qat(model, narrow, bare, QatSettings(train=ONE), held=out)
    made = qat(model, narrow, bare, QatSettings(train=ONE, soft=1), held=out)
    assert made.metric == "cosine" and made.after > made.before


@pytest.mark.slow
def test_a_given_teacher_and_a_given_loss(
    model: Model, start: Quantized, learned: Tensors, held: Tensors
) -> None:
    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_zeros(len(x), 4)

    soft = QatSettings(train=ONE, soft=1, temperature=1)
    made = qat(model, start, learned, soft, held=held, teacher=Silent())
    assert np.abs(answers(made.trained, held)).mean() < np.abs(answers(start, held)).mean()

    def larger(module: nn.Module, batch: Any) -> torch.Tensor:
        logits: torch.Tensor = module(x=batch["x"])
        return -logits.square().mean()

    made = qat(model, start, learned, QatSettings(train=ONE), held=held, loss=larger)
    assert np.abs(answers(made.trained, held)).mean() > np.abs(answers(start, held)).mean()


def test_many_is_the_graph_for_each(model: Model, held: Tensors) -> None:
    graph = graph_module(canonical(model.program()))
    with torch.no_grad():
        together = Many(graph, ["x"])(held.inputs["x"])
        alone = torch.cat([graph(x[None])[0] for x in held.inputs["x"]])
    assert torch.allclose(together, alone, atol=1e-5)


def test_what_is_refused(model: Model, start: Quantized, learned: Tensors, held: Tensors) -> None:
    with pytest.raises(UnsupportedError, match="fp32 holds no integers"):
        qat(model, dataclasses.replace(start, plan=QuantPlan("fp32", "x")), learned, held=held)
    own = canonical(model.program())
    with pytest.raises(UnsupportedError, match="fp16 holds no integers"):
        qat(model, Quantized(own, quantize_weights(own, "fp16")), learned, held=held)
    other = Model.from_module(Net().eval(), {"x": torch.zeros(1, 1, 8, 8)}, name="gratings")
    with pytest.raises(UsageError, match="not made from 'gratings'"):
        qat(other, start, learned, held=held)
    renamed = Tensors({"image": learned.inputs["x"]}, learned.y)
    with pytest.raises(BadData, match="training data have no 'x'"):
        qat(model, start, renamed, held=held)
    with pytest.raises(BadData, match="there are 1"):
        qat(model, start, learned, held=held.part(0, 1))
