"""Layer by layer: every layer of a conversion, judged on the inputs its own runtime gave it.

The same target converts the same program again with the layers' outputs as results of their own.
Then each layer is computed in torch from what the runtime itself computed before it, and the two
answers are compared. So nothing piles up over the layers: however deep the graph, a right kernel
is off by a step at most, and the layer that isn't is the layer at fault.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from edgekit.compress.dynamic import fake_dynamic
from edgekit.compress.fake import fake_quantize
from edgekit.compress.graph import save_program, tensor_of
from edgekit.compress.plan import QuantPlan
from edgekit.compress.render import render
from edgekit.compress.taps import Tap, Tapped, results_of, tap
from edgekit.compress.unrounded import Unrounded
from edgekit.errors import EdgekitError
from edgekit.scratch import scratch
from edgekit.signature import TensorSpec
from edgekit.targets import worker

__all__ = ["LayerError", "answers_of", "examine", "layer_errors"]

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

SAMPLES: Final = 4

FAR_STEPS: Final = 4.0
"""No element of a quantized layer's output may be off by more steps than this."""

WRONG_FRACTION: Final = 0.001
"""This fraction of them may be off by more than one step."""

MOVED_FRACTION: Final = 0.1
"""This fraction of them may be off by one step. Right kernels reach 1.5 % after a hard-swish in
fixed point, and next to nothing elsewhere; half the resolution moves half of them."""

CHANNEL_BIAS: Final = 0.1
"""A channel's mean error in steps, beside one element that fell the other way: a cut-off instead of
a rounding makes half a step, a zero point off by one a whole one."""

WIDE_STEP: Final = 8.0
"""So many steps of 16 bits count as one here, since kernels round their multipliers to 15 bits,
which alone moves a value by up to a step. Right ones reach 2 steps, and a mean of 0.6."""

TIE: Final = 2.0**-10
"""Within so much of a step about the middle between two steps a value may fall to either of them: a
kernel that multiplies in another order is off by some 1e-6 of up to 255 steps. Such values are no
accident where a gate gives exactly 1/2: in a map of one pixel a channel of EfficientNet-B0 had
seven of nine samples at 1.5 steps, and OpenVINO gave 1 for the plan's 2 in six of them."""

FLOAT_ERROR: Final = 1e-4
"""The largest error of a float output over its largest value. Right kernels reach about 1e-6."""


@dataclass(frozen=True)
class LayerError:
    """How far a layer's output is from what the plan makes of the layer's inputs.

    Attributes:
        layer: as `Tap.layer`.
        step: the quantization step of its output, `WIDE_STEP` of them where it has 16 bits; None
            where it is float. Where the input is quantized at run time it is what one step of it
            makes at most: a value that lies between two steps may fall either way.
        largest: largest error, in steps; of a float output, relative to its largest value.
        wrong: fraction of elements off by more than one step.
        moved: fraction of elements off by a step or more.
        bias: the largest mean error of a channel, in steps.
        per_channel: elements of a channel.
    """

    layer: str
    step: float | None
    largest: float
    wrong: float = 0.0
    moved: float = 0.0
    bias: float = 0.0
    per_channel: int = 0

    @property
    def fault(self) -> str:
        """What is wrong, in a few words; empty if nothing is. NaN is wrong."""
        if math.isnan(self.largest):
            return "NaN, or not there at all"
        if self.step is None:
            if self.largest <= FLOAT_ERROR:
                return ""
            return f"off by {self.largest:.2g} of its largest value"
        if not self.largest <= FAR_STEPS:
            return f"off by {self.largest:.3g} steps"
        if not self.wrong <= WRONG_FRACTION:
            return f"{self.wrong:.2%} of its elements off by more than a step"
        if not self.moved <= MOVED_FRACTION:
            return f"{self.moved:.0%} of its elements off by a step"
        if not self.bias <= CHANNEL_BIAS + 1.5 / max(self.per_channel, 1):
            return f"a channel off by {self.bias:.2f} steps on average"
        return ""


def answers_of(
    target: str, tapped: Tapped, inputs: Sequence[TensorSpec], feeds: Arrays
) -> tuple[dict[str, Array], Unrounded]:
    """What the target's runtime computes at every tap: arrays [n, *shape] by output name.

    And which roundings of the plan its kernels leave out.

    Raises:
        EdgekitError: the tapped program doesn't convert or doesn't run.
    """
    from edgekit.targets import find

    with scratch("taps") as base:
        save_program(tapped.program, base / "program.pt2")
        (base / "plan.json").write_text(json.dumps(tapped.plan.to_json()))
        np.savez(base / "feeds.npz", **feeds)  # type: ignore[arg-type]
        out = base / f"tapped{find(target).suffix}"
        signature = tapped.signature(inputs).to_json()
        convert = {"op": "convert", "program": str(base / "program.pt2"), "out": str(out)}
        infer = {"op": "infer", "artifact": str(out), "feeds": str(base / "feeds.npz")}
        results = worker.run(
            target,
            [
                {**convert, "plan": str(base / "plan.json"), "signature": signature},
                {**infer, "outputs": str(base / "outputs.npz"), "signature": signature},
                {"op": "unrounded", "artifact": str(out)},
            ],
        )
        for result in results:
            if "error" in result:
                raise result["error"]
        with np.load(base / "outputs.npz", allow_pickle=False) as data:
            answers = {name: data[name] for name in data.files}
        return answers, Unrounded.from_json(results[-1]["unrounded"])


def examine(
    target: str,
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    inputs: Sequence[TensorSpec],
    feeds: Arrays,
    suspects: Sequence[int] = (),
) -> list[LayerError]:
    """`tap`, `answers_of` and `layer_errors` in one.

    Args:
        target: target id.
        program: the canonical program.
        plan: its quantization.
        inputs: of the model.
        feeds: arrays [n, *shape] by input name. The first and the last `SAMPLES` are used, which
            are ordinary and extreme ones where probes stand at the end.
        suspects: indices of up to `SAMPLES` samples that are used too.

    Raises:
        EdgekitError: the tapped program doesn't convert or doesn't run.
    """
    count = len(feeds[inputs[0].name])
    ends = {*range(min(SAMPLES, count)), *range(max(count - SAMPLES, 0), count)}
    rows = sorted(ends | set(suspects[:SAMPLES]))
    few = {k: v[rows] for k, v in feeds.items()}
    tapped = tap(program, plan)
    try:
        answers, left_out = answers_of(target, tapped, inputs, few)
    except EdgekitError:
        tapped = tap(program, plan, sparing=True)
        answers, left_out = answers_of(target, tapped, inputs, few)
    return layer_errors(tapped, inputs, few, answers, left_out)


def layer_errors(
    tapped: Tapped,
    inputs: Sequence[TensorSpec],
    feeds: Arrays,
    answers: Arrays,
    left_out: Unrounded | None = None,
) -> list[LayerError]:
    """How far every layer is from what the plan makes of its inputs, in execution order.

    Args:
        tapped: the program and its plan.
        inputs: of the model.
        feeds: arrays [n, *shape] by input name.
        answers: what a runtime gave for them, see `answers_of`.
        left_out: roundings that its kernels leave out; such a layer is held to its step all the
            same.
    """
    sizes = {spec.name: spec.shape for spec in tapped.signature(inputs).outputs}
    fitting = {k: v for k, v in answers.items() if v.shape[1:] == sizes.get(k)}
    if left_out is not None:
        computed = left_out.without(tapped.program, tapped.plan)
        tapped = dataclasses.replace(tapped, plan=computed)
    want, exact, steps = _wanted(tapped, inputs, feeds, fitting)
    return [
        _error(t, want[t.output], exact.get(t.output), fitting.get(t.output), steps.get(t.output))
        for t in tapped.taps
    ]


def _error(
    tap: Tap, want: Array, exact: Array | None, got: Array | None, step: float | None
) -> LayerError:
    if got is None:
        return LayerError(tap.layer, None, math.nan)
    wanted = want.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        delta = got.astype(np.float64) - wanted
    if tap.edge is not None:
        step = tap.edge.scale[0] * (WIDE_STEP if tap.edge.dtype == "int16" else 1.0)
    if step is None:
        reach = float(np.abs(wanted).max(initial=0.0)) or 1.0
        return LayerError(tap.layer, None, float(np.abs(delta).max(initial=0.0)) / reach)
    steps = delta / step
    if exact is not None and tap.edge is not None:
        # In the plan's own steps; right is each of the nearest, if there are two.
        steps[np.abs(got / tap.edge.scale[0] - exact) <= 0.5 + TIE] = 0.0
    # [n, 1, C, H, W] of a picture's features; else the channels come last.
    axis = 2 if steps.ndim == 5 else steps.ndim - 1
    others = tuple(i for i in range(steps.ndim) if i != axis)
    count = steps.size // max(steps.shape[axis], 1)
    mean = float(np.abs(steps.sum(axis=others)).max(initial=0.0)) / max(count, 1)
    off = np.abs(steps)
    return LayerError(
        tap.layer,
        step,
        largest=float(off.max(initial=0.0)),
        wrong=float(np.mean(~(off <= 1.5))) if steps.size else 0.0,
        moved=float(np.mean(~(off <= 0.5))) if steps.size else 0.0,
        bias=mean,
        per_channel=count,
    )


class _Forced(fx.Interpreter):
    """Runs a graph, keeps what some nodes compute, and hands other values on in their place."""

    def __init__(
        self, module: fx.GraphModule, kept: Sequence[fx.Node], given: Mapping[fx.Node, torch.Tensor]
    ) -> None:
        super().__init__(module)
        self.kept, self.given = set(kept), given
        self.computed: dict[fx.Node, torch.Tensor] = {}
        self.exact: dict[fx.Node, torch.Tensor] = {}
        self.steps: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is fake_dynamic:
            span = float(self.env[n.args[0]].clamp_max(0).min())  # type: ignore[index]
            span = float(self.env[n.args[0]].clamp_min(0).max()) - span  # type: ignore[index]
            for layer in n.users:
                weight = tensor_of(self.module, layer.args[1])  # type: ignore[arg-type]
                assert weight is not None
                self.steps[layer] = span / 255 * float(weight.abs().max())
        result = super().run_node(n)
        if n in self.kept:
            self.computed[n] = result
            if n.target is fake_quantize:
                self.exact[n] = self.env[n.args[0]].double() / n.args[1]  # type: ignore[index]
        if n not in self.given:
            return result
        # In the memory layout of what it replaces: views further on rely on that.
        return torch.empty_like(result).copy_(self.given[n])


def _wanted(
    tapped: Tapped, inputs: Sequence[TensorSpec], feeds: Arrays, answers: Arrays
) -> tuple[dict[str, Array], dict[str, Array], dict[str, float]]:
    """What the plan makes at every tap of what the runtime gave at the taps before it.

    And, for taps that are quantized, what it was before, in steps, and the step of every tap behind
    an input that is quantized at run time.
    """
    module = render(tapped.program, tapped.plan, "fake")
    outputs = [t.output for t in tapped.taps]
    nodes = results_of(module)
    rows: dict[str, list[Array]] = {name: [] for name in outputs}
    unrounded: dict[str, list[Array]] = {}
    steps: dict[str, float] = {}
    for i in range(len(feeds[inputs[0].name])):
        given = {
            node: torch.from_numpy(answers[name][i])
            for name, node in zip(outputs, nodes, strict=True)
            if name in answers
        }
        forced = _Forced(module, nodes, given)
        with torch.no_grad():
            forced.run(*(torch.from_numpy(feeds[spec.name][i]) for spec in inputs))
        for name, node in zip(outputs, nodes, strict=True):
            rows[name].append(forced.computed[node].numpy())
            if node in forced.exact:
                unrounded.setdefault(name, []).append(forced.exact[node].numpy())
            if node in forced.steps:
                steps[name] = max(forced.steps[node], steps.get(name, 0.0))
    want, exact = (
        {name: np.stack(values) for name, values in found.items()} for found in (rows, unrounded)
    )
    return want, exact, steps
