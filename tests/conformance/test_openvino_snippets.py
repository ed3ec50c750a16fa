"""Small heads on one thread in OpenVINO, which runs them in a kernel of its own.

That kernel of the CPU plug-in 2026.4.1 (x86 with VNNI; elsewhere these tests hold anyway) gives
garbage where a FakeQuantize has a range per channel. `edgekit.targets.openvino` keeps the plug-in
from making one, so the artifact is right without any property that a user would have to know of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.graph import canonical, program_digest
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.unrounded import Unrounded
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import find

openvino = pytest.importorskip("openvino")
pytestmark = pytest.mark.runtime

IN, HIDDEN = 32, 48


class Vector(nn.Module):
    """A number per channel, multiplied or added."""

    def __init__(self, size: int, *, multiply: bool) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.rand(size) + 0.5)
        self.multiply = multiply

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.value if self.multiply else x + self.value


def two(width: int, *between: nn.Module, bias: bool = True) -> nn.Sequential:
    """Two linear layers with ``between`` between them."""
    return nn.Sequential(
        nn.Linear(IN, HIDDEN, bias=bias), *between, nn.Linear(HIDDEN, width, bias=bias)
    )


def zeroed(module: nn.Module) -> nn.Module:
    """Sets every bias of every linear layer to zero, as libraries initialize them."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    return module


def norm(size: int) -> nn.Module:
    """Batch norm with statistics that are not the identity."""
    layer = nn.BatchNorm1d(size)
    assert layer.running_mean is not None and layer.running_var is not None
    layer.running_mean.normal_(0, 0.3)
    layer.running_var.uniform_(0.5, 2)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    return layer


HIT: dict[str, Callable[[], nn.Module]] = {
    "no bias": lambda: two(2, nn.ReLU(), bias=False),
    "zero bias": lambda: zeroed(two(10, nn.Hardswish())),
    "one channel": lambda: zeroed(two(1, nn.ReLU())),
    "three layers": lambda: nn.Sequential(
        two(16, nn.ReLU(), bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False)
    ),
    "norm after the activation": lambda: two(4, nn.ReLU(), norm(HIDDEN)),
    "scale between": lambda: two(4, Vector(HIDDEN, multiply=True)),
    "shift at the end": lambda: nn.Sequential(two(4, nn.ReLU()), Vector(4, multiply=False)),
}
"""Heads that come out wrong on one thread when they are converted as they are."""

SPARED: dict[str, Callable[[], nn.Module]] = {
    "one layer, no bias": lambda: nn.Linear(IN, 10, bias=False),
    "two layers": lambda: two(10, nn.ReLU()),
    "mobilenet_v3": lambda: two(1000, nn.Hardswish()),
}
"""Heads that are right as they are, and should stay so."""

HEADS = {**HIT, **SPARED}


@dataclass(frozen=True)
class Converted:
    """An artifact, the plan in it, and what that gives in torch for ``feeds``."""

    path: Path
    plan: QuantPlan
    feeds: list[np.ndarray[Any, Any]]
    expected: np.ndarray[Any, Any]

    def nodes(self) -> list[Any]:
        """The saved graph, in order."""
        nodes: list[Any] = openvino.Core().read_model(str(self.path)).get_ordered_ops()
        return nodes

    def run(self, **settings: Any) -> tuple[np.ndarray[Any, Any], list[str]]:
        """Outputs, and every executed operator as ``type:precision``."""
        compiled = openvino.Core().compile_model(str(self.path), "CPU", settings)
        request = compiled.create_infer_request()
        outputs = [request.infer([x])[0].copy() for x in self.feeds]
        infos = [n.get_rt_info() for n in compiled.get_runtime_model().get_ordered_ops()]
        keys = ("layerType", "runtimePrecision")
        return np.stack(outputs), [":".join(str(i[k].astype(str)) for k in keys) for i in infos]

    def steps_off(self, outputs: np.ndarray[Any, Any]) -> float:
        """The largest difference to the plan, in steps of the output."""
        step = next(e.scale[0] for e in reversed(self.plan.edges) if e.kind == "activation")
        return float(np.abs(outputs - self.expected).max() / step)


def convert(head: nn.Module, folder: Path, scheme: str) -> Converted:
    """Quantizes and converts ``head``."""
    feeds = [torch.randn(1, IN) for _ in range(6)]
    program = canonical(torch.export.export(head.eval(), (feeds[0],), strict=False))
    plan = QuantPlan("fp32", program_digest(program))
    if scheme == "w8a8":
        plan = quantize(program, [(x,) for x in feeds])
        plan = Unrounded(results=True).without(program, plan)
    reference = render(program, plan, "fake")
    with torch.no_grad():
        expected = np.stack([reference(x).numpy() for x in feeds])
    signature = Signature(
        (TensorSpec("x", (1, IN)),), (TensorSpec("y", tuple(expected.shape[1:])),)
    )
    path = folder / "net.xml"
    find("openvino").convert(program, plan, signature, path)
    return Converted(path, plan, [x.numpy() for x in feeds], expected)


Nets = Callable[..., Converted]


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Nets:
    """Heads by name, each converted once."""
    made: dict[tuple[str, str], Converted] = {}

    def get(name: str, scheme: str = "w8a8") -> Converted:
        if (name, scheme) not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                folder = tmp_path_factory.mktemp("head")
                made[name, scheme] = convert(HEADS[name](), folder, scheme)
        return made[name, scheme]

    return get


@pytest.mark.parametrize("name", HEADS)
def test_one_thread_gives_what_the_plan_gives(name: str, nets: Nets) -> None:
    outputs, _ = nets(name).run(INFERENCE_NUM_THREADS=1, INFERENCE_PRECISION_HINT="f32")
    assert nets(name).steps_off(outputs) <= 2.01


@pytest.mark.parametrize("name", HEADS)
def test_no_other_property_is_needed(name: str, nets: Nets) -> None:
    outputs, _ = nets(name).run(INFERENCE_NUM_THREADS=1)
    assert nets(name).steps_off(outputs) <= 8  # bfloat16 between the layers, where the CPU has it


@pytest.mark.parametrize("name", HEADS)
def test_layers_on_two_threads_stay_int8(name: str, nets: Nets) -> None:
    net = nets(name)
    outputs, executed = net.run(INFERENCE_NUM_THREADS=2, INFERENCE_PRECISION_HINT="f32")
    assert net.steps_off(outputs) <= 2.01
    layers = [op for op in executed if op.startswith("FullyConnected")]
    assert len(layers) == sum(e.kind == "weight" for e in net.plan.edges)
    assert set(layers) <= {"FullyConnected:u8", "FullyConnected:i8"}


@pytest.mark.parametrize("name", HEADS)
def test_scales_and_zero_points_are_the_plans(name: str, nets: Nets) -> None:
    stored, edges = find("openvino").stored(nets(name).path), nets(name).plan.edges
    for kind in ("activation", "weight"):
        in_plan = {(_digits(e.scale), e.zero_point) for e in edges if e.kind == kind}
        assert {(_digits(s.scale), s.zero_point) for s in stored if s.kind == kind} == in_plan


def _digits(scale: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f"{s:.5g}" for s in scale)


@pytest.mark.parametrize("name", SPARED)
def test_what_is_right_by_itself_is_left_alone(name: str, nets: Nets) -> None:
    assert not [n for n in nets(name).nodes() if n.get_friendly_name().endswith("/Bias")]
    assert not [n for n in nets(name).nodes() if n.get_type_name() == "PRelu"]


def test_a_missing_bias_becomes_one_that_no_step_can_show(nets: Nets) -> None:
    adds = [n for n in nets("no bias").nodes() if n.get_friendly_name().endswith("/Bias")]
    assert len(adds) == 2
    for add in adds:
        bias = add.input_value(1).get_node().get_data().reshape(-1)
        assert np.count_nonzero(bias) == 1
        assert 0 < bias.max() < 1e-29


@pytest.mark.parametrize("name", ["no bias", "norm after the activation"])
def test_float_models_need_and_get_nothing(name: str, nets: Nets) -> None:
    net = nets(name, "fp32")
    assert not {"FakeQuantize", "PRelu"} & {n.get_type_name() for n in net.nodes()}
    assert not [n for n in net.nodes() if n.get_friendly_name().endswith("/Bias")]
    outputs, _ = net.run(INFERENCE_NUM_THREADS=1, INFERENCE_PRECISION_HINT="f32")
    np.testing.assert_allclose(outputs, net.expected, rtol=1e-3, atol=1e-4)
