"""``w8a16`` on LiteRT: what runs on integers of 16 bits, what can't, and that faults show."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekit import layerwise
from edgekit.compress.graph import canonical
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.runtime.session import open_session
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import Placement, find, installed
from edgekit.targets._stored import compare_stored

pytestmark = pytest.mark.runtime

SHAPE = (1, 3, 12, 12)
INPUTS = (TensorSpec("x", SHAPE),)


class Net(nn.Module):
    """One of each operator that the converter refuses with int16, between layers; GELU if asked."""

    def __init__(self, *, curve: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.excite, self.gate = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.mix = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)
        self.curve = curve

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu6(self.stem(x)), 3, 2, 1)
        y = functional.hardswish(self.depthwise(x))
        pooled = functional.adaptive_avg_pool2d(y, 1)
        y = y * functional.hardsigmoid(self.excite(pooled)) + y * torch.sigmoid(self.gate(y))
        x = self.mix(torch.cat([x, y], 1))
        x = functional.gelu(x) if self.curve else functional.relu6(x) * x
        result: torch.Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


@dataclasses.dataclass(frozen=True)
class Made:
    """A network's program, plan, samples [n, *shape], file and where its operators compute."""

    program: torch.export.ExportedProgram
    plan: QuantPlan
    feeds: np.ndarray[Any, Any]
    path: Path
    placement: Placement
    signature: Signature


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """`Net` as ``integers`` and, with GELU, as ``curve``."""
    target = find("tflite")
    if None in installed(target).values():
        pytest.skip("tflite is not installed")
    found = {}
    for name, curve in (("integers", False), ("curve", True)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net, feeds = Net(curve=curve).eval(), 2 * torch.randn(24, *SHAPE)
        program = canonical(torch.export.export(net, (feeds[0],), strict=False))
        plan = quantize(program, [(x,) for x in feeds], scheme="w8a16")
        signature = Signature(INPUTS, (TensorSpec("y", (1, 5)),))
        path = tmp_path_factory.mktemp(name) / "model.tflite"
        target.convert(program, plan, signature, path)
        placement = target.inspect(path)
        found[name] = Made(program, plan, feeds.numpy(), path, placement, signature)
    return found


@pytest.mark.parametrize("name", ["integers", "curve"])
def test_answers_are_the_plans(made: dict[str, Made], name: str) -> None:
    one = made[name]
    module = render(one.program, one.plan, "fake")
    session = open_session("tflite", one.path, one.signature, threads=1)
    got = np.stack([session.run({"x": x})["y"] for x in one.feeds])
    session.close()
    with torch.no_grad():
        want = np.stack([module(torch.from_numpy(x)).numpy() for x in one.feeds])
    step = one.plan.activations()["linear"].scale[0]
    assert np.abs(got - want).max() <= 8 * step
    assert 10 * np.log10(np.square(want).sum() / np.square(got - want).sum()) > 60
    stored = [dataclasses.asdict(s) for s in find("tflite").stored(one.path)]
    assert compare_stored(one.program, one.plan, stored) == []


def test_only_what_has_no_kernel_of_16_bits_stays_in_float(made: dict[str, Made]) -> None:
    all_integer, curve = (made[name].placement for name in ("integers", "curve"))
    assert all_integer.float_ops == 0 and all_integer.boundary_ops == 2, all_integer
    assert {"HARD_SWISH", "RELU6", "PADV2"}.isdisjoint(all_integer.ops)
    assert all_integer.ops["CONCATENATION"] == all_integer.ops["MAX_POOL_2D"] == 1
    assert curve.float_ops == 2, "GELU, and the conversion before it"
    reasons = {r.operator: r.why for r in curve.reasons if "16 bits" in r.why}
    assert reasons == {"GELU": "LiteRT has no kernel of it for 16 bits"}


def test_integers_have_16_bits_and_biases_64(made: dict[str, Made]) -> None:
    from edgekit.targets import _tflite_file

    model = _tflite_file.read(made["integers"].path)
    graph = model.subgraphs[0]
    layers = [
        op
        for op in graph.operators
        if _tflite_file.op_name(model, op) in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]
    assert len(layers) == 6
    for op in layers:
        ends = [*op.inputs, *op.outputs]
        types = [_tflite_file.dtype_name(graph.tensors[i]) for i in ends]
        assert types == ["int16", "int8", "int64", "int16"]
    assert made["integers"].placement.bytes_by_dtype.keys() >= {"int8", "int64"}
    assert "float32" not in made["integers"].placement.bytes_by_dtype


def test_a_stored_scale_that_is_not_the_plans_shows(made: dict[str, Made], tmp_path: Path) -> None:
    from edgekit.targets import _tflite_file

    one = made["integers"]
    for suffix in (b"_part", b"_gate"):  # of a hard-swish, whose scales follow from the plan's
        model = _tflite_file.read(one.path)
        tensor = next(t for t in model.subgraphs[0].tensors if bytes(t.name).endswith(suffix))
        tensor.quantization.scale = np.asarray(tensor.quantization.scale) * np.float32(1.001)
        _tflite_file.write(model, tmp_path / "other.tflite")
        stored = find("tflite").stored(tmp_path / "other.tflite")
        faults = compare_stored(one.program, one.plan, [dataclasses.asdict(s) for s in stored])
        assert faults and "scale" in faults[0], suffix


def test_layers_are_right_by_themselves_and_a_planted_fault_is_found(
    made: dict[str, Made],
) -> None:
    feeds = torch.from_numpy(made["integers"].feeds)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8)),
            *(nn.Hardswish(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(6, 4),
        )
    program = canonical(torch.export.export(net.eval(), (feeds[0],), strict=False))
    plan = quantize(program, [(x,) for x in feeds], scheme="w8a16")
    tapped = layerwise.tap(program, plan, sparing=True)
    few = {"x": feeds[:4].numpy()}
    answers, _ = layerwise.answers_of("tflite", tapped, INPUTS, few)
    errors = layerwise.layer_errors(tapped, INPUTS, few, answers)
    assert len(errors) == 4 and not [e for e in errors if e.fault], errors
    place = next(t.output for t in tapped.taps if t.layer.startswith("2 "))
    wrong = {**answers, place: answers[place] * np.float32(1.003)}
    found = [e for e in layerwise.layer_errors(tapped, INPUTS, few, wrong) if e.fault]
    assert found[0].layer == "2 (conv2d_1)"
