"""Pruned modules in real runtimes: smaller files, less time, and gates that hold them to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.artifact import Store
from edgekit.compress.prune import MeasuredCost, PruneSettings, prune
from edgekit.data import ArraySamples
from edgekit.errors import UnsupportedError, UsageError
from edgekit.export import ExportRequest, export_bundle
from edgekit.export.cost import Latency, Macs
from edgekit.model import Model

EXAMPLES = {"x": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


class Network(nn.Module):
    """Convolutions that take long enough to be timed."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.body = nn.Sequential(
            *(nn.Conv2d(taken, 64, 3, padding=1) for taken in (3, 64, 64, 64)),
        )
        self.head = nn.Linear(64, 10)
        for parameter in self.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.body:
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


def network() -> nn.Module:
    return Network().eval()


def exported(module: nn.Module, out: Path, **options: object) -> tuple[int, float]:
    """Bytes of the module's one artifact, and how far its answers in the runtime are from torch."""
    model = Model.from_module(module, {"x": EXAMPLES["x"][:1]}, name="network")
    samples = ArraySamples({"x": EXAMPLES["x"].numpy()}, signature=model.signature)
    request = ExportRequest(
        targets=("onnxruntime",), schemes=("fp32",), out=out, evaluation=samples, bench=False
    )
    row = export_bundle(model, request, store=Store(out.parent / "store")).document["artifacts"][0]
    assert row["status"] == "ok"
    assert row["verification"] == "runtime"
    return row["bytes"], row["parity"]["sqnr_db"]


@pytest.mark.runtime
@pytest.mark.slow
def test_the_file_is_really_smaller(tmp_path: Path) -> None:
    module = network()
    pruned = prune(module, EXAMPLES, PruneSettings(target=0.25, steps=1), cost=Macs(EXAMPLES))
    before, _ = exported(module, tmp_path / "before")
    after, sqnr = exported(pruned.module, tmp_path / "after")
    numbers = [sum(p.numel() for p in m.parameters()) for m in (module, pruned.module)]
    assert numbers[1] < 0.4 * numbers[0]
    # What is left beside the weights are names and shapes.
    assert before - after == pytest.approx(4 * (numbers[0] - numbers[1]), rel=0.02)
    assert sqnr > 60


@pytest.mark.runtime
@pytest.mark.slow
def test_to_half_of_the_time_in_a_runtime(tmp_path: Path) -> None:
    module = network()
    cost = Latency("host", "onnxruntime", "fp32", examples=EXAMPLES, threads=1, rounds=6)
    assert isinstance(cost, MeasuredCost)
    assert not cost.stand_in
    settings = PruneSettings(steps=1, tries=3)
    pruned = prune(module, EXAMPLES, settings, cost=cost, folder=tmp_path)
    whole, narrow = cost.compare([module, pruned.module])
    assert pruned.history[-1]["cost"] <= 0.5 * pruned.history[0]["cost"]
    # Measured again, by other processes: near enough to show that it was no chance.
    assert narrow < 0.65 * whole
    assert "onnxruntime fp32, on this machine with 1 thread" in pruned.cost


@pytest.mark.runtime
@pytest.mark.slow
def test_gates_hold_a_pruned_model_to_its_source(tmp_path: Path) -> None:
    module = network()
    pruned = prune(module, EXAMPLES, PruneSettings(target=0.5, steps=1), cost=Macs(EXAMPLES))
    source = Model.from_module(module, {"x": EXAMPLES["x"][:1]}, name="source")
    store = Store(tmp_path / "store")
    samples = np.random.default_rng(0).standard_normal((32, 3, 32, 32)).astype(np.float32)
    for narrow, passed in ((pruned.module, True), (network(), False)):
        model = Model.from_module(narrow, {"x": EXAMPLES["x"][:1]}, name="narrow")
        request = ExportRequest(
            targets=("onnxruntime",),
            schemes=("w8a8",),
            calib=ArraySamples({"x": samples}, signature=model.signature),
            out=tmp_path / str(passed),
            pruned_from=source,
            bench=False,
            without=("rounding",),
        )
        document = export_bundle(model, request, store=store).document
        gates = {g["name"]: g for g in document["gates"]}
        assert gates["parameters"]["passed"] is passed
        assert ("are gone" if passed else "no parameter was removed") in gates["parameters"][
            "detail"
        ]
        assert gates["smaller"]["passed"] is True


def test_a_device_that_is_not_here_is_stood_in_for() -> None:
    cost = Latency("pixel-8", "tflite", "w8a8", examples=EXAMPLES)
    assert cost.stand_in
    assert "which stands in for pixel-8: no measurement of that device" in cost.name
    with pytest.raises(UsageError, match="rounds is 3"):
        Latency("host", "tflite", examples=EXAMPLES, rounds=3)
    with pytest.raises(UnsupportedError):
        Latency("iphone-12", "openvino", examples=EXAMPLES)
