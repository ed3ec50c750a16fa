"""A runtime's own arithmetic is what its answers are held to, layer by layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.dynamic import as_computed
from edgekit.compress.graph import canonical, graph_module
from edgekit.compress.weights import quantize_weights
from edgekit.layerwise import LayerError, examine
from edgekit.signature import TensorSpec
from edgekit.targets import available, find, installed

pytestmark = [pytest.mark.runtime, pytest.mark.slow]

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
