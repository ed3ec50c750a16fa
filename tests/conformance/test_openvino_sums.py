"""A residual sum in OpenVINO: its convolution keeps to the plan's range and isn't rounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress import evaluate as evaluation
from edgekit.compress.graph import canonical, save_program
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.unrounded import Unrounded
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import worker

pytest.importorskip("openvino")
pytestmark = pytest.mark.runtime

SIGNATURE = Signature((TensorSpec("x", (1, 3, 16, 16)),), (TensorSpec("y", (1, 10)),))


class Residual(nn.Module):
    """A branch of two convolutions that is added, a global mean, and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
        )
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU())
        self.scores = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.down(torch.relu(x + self.branch(x)))
        scores: torch.Tensor = self.scores(x.mean((2, 3)))
        return scores


def off(program: Any, plan: QuantPlan, feeds: dict[str, Any], got: Any) -> float:
    """The largest difference from a plan's evaluation."""
    want = evaluation.evaluate(render(program, plan, "fake"), feeds, ["x"], ["y"])["y"]
    return float(np.abs(got - want).max())


def test_inputs_beyond_the_range_give_what_its_kernels_are_held_against(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = [(torch.randn(1, 3, 16, 16),) for _ in range(32)]
        net = Residual().eval()
    program = canonical(torch.export.export(net, rows[0]))
    plan = quantize(program, rows)
    # Pictures of one colour are far from noise, which the ranges come from.
    feeds = {"x": np.concatenate([np.full((1, 1, 3, 16, 16), v, "f") for v in (-4, -1, 0, 1, 4)])}
    save_program(program, tmp_path / "program.pt2")
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    np.savez(tmp_path / "feeds.npz", **feeds)
    about = {
        "program": str(tmp_path / "program.pt2"),
        "plan": str(tmp_path / "plan.json"),
        "signature": SIGNATURE.to_json(),
        "feeds": str(tmp_path / "feeds.npz"),
        "outputs": str(tmp_path / "answers.npz"),
        "out": str(tmp_path / "model.xml"),
        "artifact": str(tmp_path / "model.xml"),
    }
    results = worker.run(
        "openvino", [{**about, "op": o} for o in ("convert", "infer", "unrounded")]
    )
    assert not [r["error"] for r in results if "error" in r]
    left_out = Unrounded.from_json(results[-1]["unrounded"])
    if not left_out.convolutions:
        pytest.skip("this processor's kernels round before they add")
    with np.load(tmp_path / "answers.npz") as data:
        got = data["y"]
    step = plan.activations()["linear"].scale[0]
    held = left_out.without(program, plan)
    without = tuple(e for e in held.edges if e.rounded)
    assert len(without) == len(held.edges) - 1
    rounded = Unrounded(gates=left_out.gates, results=left_out.results).without(program, plan)
    assert off(program, held, feeds, got) < 0.3 * step
    assert off(program, rounded, feeds, got) > 0.5 * step
    no_range = QuantPlan(plan.scheme, plan.program_digest, without)
    assert off(program, no_range, feeds, got) > step
