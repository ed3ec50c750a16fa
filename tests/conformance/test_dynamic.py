"""A runtime's own arithmetic is what its answers are held to, layer by layer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.dynamic import as_computed
from edgekit.compress.evaluate import evaluate
from edgekit.compress.graph import canonical, graph_module, save_program
from edgekit.compress.render import render
from edgekit.compress.weights import quantize_weights
from edgekit.layerwise import LayerError, examine
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import available, find, installed, worker

pytestmark = [pytest.mark.runtime, pytest.mark.slow]

FILES = {"program": "pt2", "plan": "json", "feeds": "npz", "outputs": "npz"}
TARGETS = [t for t in available() if "w8a8-dyn" in find(t).schemes]


@pytest.mark.parametrize("target", TARGETS)
def test_layers_have_the_runtimes_arithmetic_and_no_other(target: str) -> None:
    if None in installed(find(target)).values():
        pytest.skip(f"{target} is not installed")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 6)
    )
    rows = torch.randn(6, 1, 9, 48) * torch.logspace(-1, 1, 9)[:, None]  # of unlike sizes
    program = canonical(torch.export.export(net.eval(), (rows[0],), strict=False))
    plan = as_computed(graph_module(program), quantize_weights(program, "w8a8-dyn"), find(target))
    other: Any = "tensor" if plan.dynamic[0].per == "row" else "row"
    wrong = dataclasses.replace(
        plan, dynamic=tuple(dataclasses.replace(d, per=other) for d in plan.dynamic)
    )
    specs = (TensorSpec("input", (1, 9, 48)),)

    def faults(judged: Any) -> list[LayerError]:
        found = examine(target, program, judged, specs, {"input": rows.numpy().astype(np.float32)})
        return [e for e in found if e.fault]

    assert not faults(plan)
    assert faults(wrong)


@pytest.mark.parametrize("target", [t for t in TARGETS if find(t).dynamic.convolution])  # type: ignore[attr-defined]
def test_convolutions_too(target: str, tmp_path: Path) -> None:
    """A tap behind a layer can't tell one scale from another there: a step is all it judges by."""
    if None in installed(find(target)).values():
        pytest.skip(f"{target} is not installed")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
        nn.Conv2d(24, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 1, stride=2), nn.ReLU(),
        nn.Conv2d(24, 4, 1, padding=1),
    )  # fmt: skip
    pictures = torch.randn(4, 1, 3, 8, 8) * torch.logspace(-1, 0.5, 8)[:, None]
    program = canonical(torch.export.export(net.eval(), (pictures[0],), strict=False))
    plan = as_computed(graph_module(program), quantize_weights(program, "w8a8-dyn"), find(target))
    signature = Signature((TensorSpec("x", (1, 3, 8, 8)),), (TensorSpec("y", (1, 4, 6, 6)),))
    save_program(program, tmp_path / "program.pt2")
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    feeds, out = {"x": pictures.numpy()}, str(tmp_path / f"model{find(target).suffix}")
    np.savez(tmp_path / "feeds.npz", **feeds)
    own = {"signature": signature.to_json()}
    files = {name: str(tmp_path / f"{name}.{end}") for name, end in FILES.items()}
    run = {"feeds": files["feeds"], "outputs": files["outputs"], "artifact": out}
    results = worker.run(
        target,
        [
            {
                "op": "convert",
                "program": files["program"],
                "plan": files["plan"],
                "out": out,
                **own,
            },
            {"op": "infer", **run, **own},
        ],
    )
    assert not [r["error"] for r in results if "error" in r]
    answers = np.load(files["outputs"])["y"]

    def nearness(per: Sequence[Any]) -> float:
        """dB of the plan with these scales about the runtime's answers."""
        pairs = zip(plan.dynamic, per, strict=True)
        dynamic = tuple(dataclasses.replace(d, per=p) for d, p in pairs)
        module = render(program, dataclasses.replace(plan, dynamic=dynamic), "fake")
        noise = evaluate(module, feeds, ["x"], ["y"])["y"] - answers
        return float(10 * np.log10((answers**2).sum() / (noise**2).sum()))

    right = [d.per for d in plan.dynamic]
    assert set(right) == {"pixel", "sample"}
    assert nearness(right) > 90
    for i, per in enumerate(right):
        other = "sample" if per == "pixel" else "pixel"
        assert nearness([*right[:i], other, *right[i + 1 :]]) < 70, plan.dynamic[i].node
