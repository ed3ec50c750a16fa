"""The floor of what verification may ask for: as sure on few samples as on many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress import evaluate as evaluation
from edgekit.compress.graph import canonical
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.export.reference import FLOOR_SAMPLES, PROBE_DRAWS, rounding_floors
from edgekit.signature import Signature, TensorSpec
from edgekit.verify import output_steps

SIGNATURE = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 4)),))


def given(n: int) -> tuple[Any, Any, dict[str, Any], Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
        rows = [(torch.randn(1, 4),) for _ in range(n + 2)]
    program = canonical(torch.export.export(net, rows[0]))
    plan = quantize(program, rows)
    feeds = {"x": np.stack([row[0].numpy() for row in rows])}
    return render(program, plan, "fake"), plan, feeds, program


@pytest.mark.parametrize(("n", "draws"), [(4, 8), (50, 3), (128, 1), (200, 1)])
def test_few_samples_are_disturbed_more_often(
    n: int, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, plan, feeds, program = given(n)
    answers = evaluation.evaluate(module, feeds, ["x"], ["y"])
    seen: list[int] = []
    own = evaluation.with_rounding_noise

    def noisy(given: Any, relative: float = 1e-6, *, draw: int = 0) -> Any:
        seen.append(draw)
        return own(given, 0.02, draw=draw)  # so that something moves

    monkeypatch.setattr(evaluation, "with_rounding_noise", noisy)
    steps = output_steps(program, plan, ["y"])
    floors = rounding_floors(SIGNATURE, module, feeds, answers, steps, n, "w8a8")
    assert seen == [*range(draws), *range(PROBE_DRAWS)]
    # All draws count: what moved is the mean over them, in dB about each.
    count, noise, signal = min(n, FLOOR_SAMPLES), 0.0, 0.0
    few = {"x": feeds["x"][:count]}
    for draw in range(draws):
        moved = evaluation.evaluate(own(module, 0.02, draw=draw), few, ["x"], ["y"])["y"]
        noise += float(np.square(moved - answers["y"][:count], dtype=np.float64).sum())
        signal += float(np.square(answers["y"][:count], dtype=np.float64).sum())
    assert floors["floor"]["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise), abs=1e-6)
    assert floors["probe_floor"]["sqnr_db"] is not None
