"""Layers judged by themselves: what is a fault, and what lies between two steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.evaluate import evaluate
from edgekit.compress.graph import canonical
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.taps import Tapped, tap
from edgekit.layerwise import LayerError, layer_errors
from edgekit.signature import TensorSpec

pytestmark = pytest.mark.usefixtures("one_thread")

Arrays = dict[str, np.ndarray[Any, Any]]
INPUTS = (TensorSpec("x", (1, 1, 4, 4)),)


def halving() -> tuple[Tapped, Arrays, Arrays]:
    """A layer that halves whole numbers, in steps of 1: every odd one comes between two steps."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(conv.weight, 0.5)
    picture = torch.arange(16.0).reshape(1, 1, 4, 4)
    program = canonical(torch.export.export(conv.eval(), (picture,), strict=False))
    plan = quantize(program, [(picture,)])
    edges = tuple(
        dataclasses.replace(e, scale=(0.5 if e.kind == "weight" else 1.0,), zero_point=(0,))
        for e in plan.edges
    )
    tapped = tap(program, dataclasses.replace(plan, edges=edges))
    feeds = {"x": picture.numpy()[None]}
    module = render(tapped.program, tapped.plan, "fake")
    answers = evaluate(module, feeds, ["x"], [t.output for t in tapped.taps])
    return tapped, feeds, answers


def judged(place: int, steps: float) -> LayerError:
    """With the answer at one place moved."""
    tapped, feeds, answers = halving()
    (name,) = answers
    answers[name] = answers[name].copy()
    answers[name].reshape(-1)[place] += steps
    [error] = layer_errors(tapped, INPUTS, feeds, answers)
    return error


def test_a_value_between_two_steps_may_fall_either_way() -> None:
    tapped, feeds, answers = halving()
    assert [e.fault for e in layer_errors(tapped, INPUTS, feeds, answers)] == [""]
    error = judged(5, 1.0)  # 2.5 is 2 by the plan, and may be 3
    assert (error.largest, error.moved, error.bias, error.fault) == (0.0, 0.0, 0.0, "")


@pytest.mark.parametrize(("place", "steps"), [(4, 1.0), (4, -1.0), (5, -1.0), (5, 2.0)])
def test_others_and_the_other_way_count_as_they_are(place: int, steps: float) -> None:
    error = judged(place, steps)
    assert error.largest == abs(steps) and error.moved == 1 / 16 and error.bias > 0
