"""Transposed convolutions on LiteRT, which its converter leaves in float, cuts wrongly or refuses.

The other targets' are among the operators of `test_operators`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekit import layerwise
from edgekit.compress.dynamic import as_computed
from edgekit.compress.graph import canonical, graph_module
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.weights import quantize_weights
from edgekit.names import CALIBRATED
from edgekit.runtime.session import open_session
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import Placement, find, installed
from edgekit.targets._stored import compare_stored

pytestmark = pytest.mark.runtime

SHAPE = (1, 3, 9, 8)
INPUTS = (TensorSpec("x", SHAPE),)
LAYERS = {"twice": (2, 2), "borders": (3, 2, 1, 1)}
"""Kernel, stride, padding and output padding."""


class Decoder(nn.Module):
    """Transposed convolutions of all kinds, one with a skip whose scale has negative numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.same = nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False)
        self.skip = nn.Conv2d(3, 6, 1)
        self.turned = nn.ConvTranspose2d(12, 6, 3, 1, 1, dilation=1)
        self.longer = nn.ConvTranspose2d(6, 4, 3, 2, 0, 1)
        self.uneven = nn.ConvTranspose2d(4, 2, (3, 1), (2, 1), (1, 0), (1, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.same(functional.relu(self.stem(x))))
        y = self.turned(torch.cat([y[:, :, : x.shape[2]], self.skip(x)], 1))
        result: torch.Tensor = self.uneven(functional.relu6(self.longer(y)))
        return result


@dataclasses.dataclass(frozen=True)
class Made:
    """A network under a scheme: what it was made of, where it computes, and how far it is off.

    ``off`` holds the largest difference to the plan's own evaluation; in steps of the result, if
    that is quantized. ``faults`` are those of `edgekit.targets._stored.compare_stored`.
    """

    program: torch.export.ExportedProgram
    plan: QuantPlan
    placement: Placement
    off: float
    faults: list[str]


def samples(count: int = 12) -> list[tuple[torch.Tensor]]:
    """The same ones every time."""
    generator = torch.Generator().manual_seed(1)
    return [(2 * torch.randn(SHAPE, generator=generator),) for _ in range(count)]


def made(net: nn.Module, scheme: str, path: Path, *, float_result: bool = False) -> Made:
    """Converts a network to ``path`` and runs it."""
    target = find("tflite")
    if None in installed(target).values():
        pytest.skip("tflite is not installed")
    program = canonical(torch.export.export(net.eval(), samples()[0], strict=False))
    if scheme in CALIBRATED:
        plan = quantize(program, samples(), scheme=scheme)
    else:
        plan = as_computed(graph_module(program), quantize_weights(program, scheme), target)
    step = 1.0
    if float_result:
        last = [e for e in plan.edges if e.kind == "activation"][-1]
        plan = dataclasses.replace(plan, edges=tuple(e for e in plan.edges if e is not last))
    elif scheme in CALIBRATED:
        step = [e for e in plan.edges if e.kind == "activation"][-1].scale[0]
    module = render(program, plan, "fake")
    with torch.no_grad():
        want = np.stack([first(module(*x)).numpy() for x in samples()])
    signature = Signature(INPUTS, (TensorSpec("y", want.shape[1:]),))
    target.convert(program, plan, signature, path)
    session = open_session("tflite", path, signature, threads=1)
    got = np.stack([session.run({"x": x.numpy()})["y"] for (x,) in samples()])
    session.close()
    stored = [dataclasses.asdict(s) for s in target.stored(path)]
    faults = compare_stored(program, plan, stored)
    off = float(np.abs(got - want).max()) / step
    return Made(program, plan, target.inspect(path), off, faults)


def first(result: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The one result, which some modules give in a tuple."""
    return result[0] if isinstance(result, tuple | list) else result


def one_layer(name: str, *, clamp: bool) -> nn.Module:
    """A transposed convolution between two others."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, *LAYERS[name])]
    return nn.Sequential(*layers, *[nn.ReLU()] * clamp, nn.Conv2d(6, 4, 1))


@pytest.mark.parametrize("clamp", [False, True], ids=["bare", "relu"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_transposed_convolution_computes_the_plan_on_integers(
    name: str, clamp: bool, tmp_path: Path
) -> None:
    one = made(one_layer(name, clamp=clamp), "w8a8", tmp_path / "model.tflite")
    assert one.off <= 1.01 and one.faults == []
    assert one.placement.float_ops == 0 and one.placement.boundary_ops == 2, one.placement
    assert one.placement.ops["TRANSPOSE_CONV"] == 1
    assert one.placement.ops.get("SLICE", 0) == (name == "borders")
    assert one.placement.bytes_by_dtype.keys() == {"int8", "int32"}


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w8", "fp16"])
def test_all_kinds_of_them_compute_the_plan(scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = made(Decoder(), scheme, tmp_path / "model.tflite")
    assert one.faults == []
    assert one.off <= {"w8a8": 1.01, "w8a16": 8}.get(scheme, 1e-5)
    assert one.placement.ops["TRANSPOSE_CONV"] == 3 and one.placement.ops["CONV_2D"] == 3
    if scheme in CALIBRATED:
        assert one.placement.float_ops == 0 and one.placement.boundary_ops == 2, one.placement
        assert "float32" not in one.placement.bytes_by_dtype


def test_one_that_gives_float_has_the_plans_weights_all_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, 2, 1, 1))
    one = made(net, "w8a8", tmp_path / "model.tflite", float_result=True)
    assert one.faults == [] and one.off <= 1e-5
    known = {(r.operator, r.why) for r in one.placement.reasons}
    assert ("DEQUANTIZE", "hands integers to TRANSPOSE_CONV, in float") in known


def test_every_layer_is_right_by_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = made(Decoder(), "w8a8", tmp_path / "model.tflite")
    feeds = {"x": np.stack([x.numpy() for (x,) in samples(4)])}
    errors = layerwise.examine("tflite", one.program, one.plan, INPUTS, feeds)
    assert len(errors) == 8 and not [e for e in errors if e.fault], errors
