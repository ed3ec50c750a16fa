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
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from edgekit.compress.graph import (
    COMPUTE,
    example_args,
    graph_module,
    layer_of,
    program_digest,
    save_program,
)
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.render import render
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import worker

__all__ = ["LayerError", "Tap", "Tapped", "answers_of", "examine", "layer_errors", "tap"]

aten = torch.ops.aten
_RESHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.dim,
    aten.unsqueeze.default,
)

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

SAMPLES: Final = 4

FAR_STEPS: Final = 4.0
"""No element of a quantized layer's output may be off by more steps than this."""

WRONG_FRACTION: Final = 0.001
"""This fraction of them may be off by more than one step."""

CHANNEL_BIAS: Final = 0.1
"""A channel's mean error in steps, beside one element that fell the other way: a cut-off instead of
a rounding makes half a step, a zero point off by one a whole one."""

FLOAT_ERROR: Final = 1e-4
"""The largest error of a float output over its largest value. Right kernels reach about 1e-6."""


@dataclass(frozen=True)
class Tap:
    """One layer's output, made a result of the program.

    Attributes:
        output: its name among the results.
        layer: ``module path (node)`` of the operator that makes it; the convolution or linear layer
            where an activation function is fused with one.
        edge: how the plan quantizes it; None where it is float.
    """

    output: str
    layer: str
    edge: Edge | None


@dataclass(frozen=True)
class Tapped:
    """A program whose results are the outputs of its layers, in execution order."""

    program: torch.export.ExportedProgram
    plan: QuantPlan
    taps: tuple[Tap, ...]

    def signature(self, inputs: Sequence[TensorSpec]) -> Signature:
        """Of the tapped program, given the inputs of the model."""
        results = _results(graph_module(self.program))
        specs = [
            TensorSpec(t.output, tuple(n.meta["val"].shape), str(n.meta["val"].dtype)[6:])
            for t, n in zip(self.taps, results, strict=True)
        ]
        return Signature(tuple(inputs), tuple(specs))


@dataclass(frozen=True)
class LayerError:
    """How far a layer's output is from what the plan makes of the layer's inputs.

    Attributes:
        layer: as `Tap.layer`.
        step: the quantization step of its output; None where that is float.
        largest: largest error, in steps; of a float output, relative to its largest value.
        wrong: fraction of elements off by more than one step.
        bias: the largest mean error of a channel, in steps.
        per_channel: elements of a channel.
    """

    layer: str
    step: float | None
    largest: float
    wrong: float = 0.0
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
        if not self.bias <= CHANNEL_BIAS + 1.5 / max(self.per_channel, 1):
            return f"a channel off by {self.bias:.2f} steps on average"
        return ""


def tap(program: torch.export.ExportedProgram, plan: QuantPlan) -> Tapped:
    """The program with the outputs of its layers as results, and its plan under the new names."""
    module = graph_module(program)
    edges = plan.activations()
    kept = {name for name, _ in plan.kept_float}
    nodes = [
        n
        for n in module.graph.nodes
        if _computes(n) and (n.name in edges or n.name in kept or not edges)
    ]
    last = module.graph.output_node()
    with module.graph.inserting_before(last):
        # Flat, so that no converter turns its channels last.
        flat = [module.graph.call_function(aten.reshape.default, (n, [-1])) for n in nodes]
    last.args = (tuple(flat),)
    # The pytree that the module was exported with describes the old outputs.
    module.graph.set_codegen(fx.graph.CodeGen())
    module.graph.eliminate_dead_code()
    module.recompile()
    before = _stable_names(module)
    with torch.no_grad():
        tapped = torch.export.export(module, example_args(program), strict=False)
    after = {key: name for name, key in _stable_names(graph_module(tapped)).items()}
    renamed = {name: after.get(key) for name, key in before.items()}
    moved = tuple(
        dataclasses.replace(e, node=str(renamed[e.node])) for e in plan.edges if renamed.get(e.node)
    )
    taps = tuple(
        Tap(f"tap_{i}_{n.name}", _culprit(n, set(nodes)), edges.get(n.name))
        for i, n in enumerate(nodes)
    )
    new = dataclasses.replace(plan, edges=moved, program_digest=program_digest(tapped))
    return Tapped(tapped, new, taps)


def answers_of(
    target: str, tapped: Tapped, inputs: Sequence[TensorSpec], feeds: Arrays
) -> dict[str, Array]:
    """What the target's runtime computes at every tap: arrays [n, *shape] by output name.

    Raises:
        EdgekitError: the tapped program doesn't convert or doesn't run.
    """
    from edgekit.targets import find

    with tempfile.TemporaryDirectory(prefix="edgekit-taps-") as folder:
        base = Path(folder)
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
            ],
        )
        for result in results:
            if "error" in result:
                raise result["error"]
        with np.load(base / "outputs.npz", allow_pickle=False) as data:
            return {name: data[name] for name in data.files}


def examine(
    target: str,
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    inputs: Sequence[TensorSpec],
    feeds: Arrays,
) -> list[LayerError]:
    """`tap`, `answers_of` and `layer_errors` in one.

    Args:
        target: target id.
        program: the canonical program.
        plan: its quantization.
        inputs: of the model.
        feeds: arrays [n, *shape] by input name. The first and the last `SAMPLES` are used, which
            are ordinary and extreme ones where probes stand at the end.

    Raises:
        EdgekitError: the tapped program doesn't convert or doesn't run.
    """
    tapped = tap(program, plan)
    few = {k: v if len(v) <= 2 * SAMPLES else _ends(v) for k, v in feeds.items()}
    return layer_errors(tapped, inputs, few, answers_of(target, tapped, inputs, few))


def layer_errors(
    tapped: Tapped, inputs: Sequence[TensorSpec], feeds: Arrays, answers: Arrays
) -> list[LayerError]:
    """How far every layer is from what the plan makes of its inputs, in execution order.

    Args:
        tapped: the program and its plan.
        inputs: of the model.
        feeds: arrays [n, *shape] by input name.
        answers: what a runtime gave for them, see `answers_of`.
    """
    sizes = {spec.name: spec.shape for spec in tapped.signature(inputs).outputs}
    fitting = {k: v for k, v in answers.items() if v.shape[1:] == sizes.get(k)}
    want = _wanted(tapped, inputs, feeds, fitting)
    return [_error(t, want[t.output], fitting.get(t.output)) for t in tapped.taps]


def _ends(values: Array) -> Array:
    return np.concatenate([values[:SAMPLES], values[-SAMPLES:]])


def _error(tap: Tap, want: Array, got: Array | None) -> LayerError:
    if got is None:
        return LayerError(tap.layer, None, math.nan)
    got = got.reshape(want.shape)
    wanted = want.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        delta = got.astype(np.float64) - wanted
    if tap.edge is None:
        reach = float(np.abs(wanted).max(initial=0.0)) or 1.0
        return LayerError(tap.layer, None, float(np.abs(delta).max(initial=0.0)) / reach)
    steps = delta / tap.edge.scale[0]
    # [n, 1, C, H, W] of a picture's features; else the channels come last.
    axis = 2 if steps.ndim == 5 else steps.ndim - 1
    others = tuple(i for i in range(steps.ndim) if i != axis)
    count = steps.size // max(steps.shape[axis], 1)
    mean = float(np.abs(steps.sum(axis=others)).max(initial=0.0)) / max(count, 1)
    off = np.abs(steps)
    return LayerError(
        tap.layer,
        tap.edge.scale[0],
        largest=float(off.max(initial=0.0)),
        wrong=float(np.mean(~(off <= 1.5))) if steps.size else 0.0,
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

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.kept:
            self.computed[n] = result
        return self.given.get(n, result)


def _computes(node: fx.Node) -> bool:
    """Whether a node gives float values that its input doesn't hold in the same order already."""
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, torch.Tensor):
        return False
    if not value.is_floating_point() or node.target in _RESHAPES:
        return False
    source = node.args[0]
    pool = node.target is aten.adaptive_avg_pool2d.default and isinstance(source, fx.Node)
    return not (pool and source.meta["val"].shape == value.shape)  # type: ignore[union-attr]


def _wanted(
    tapped: Tapped, inputs: Sequence[TensorSpec], feeds: Arrays, answers: Arrays
) -> dict[str, Array]:
    """What the plan makes at every tap of what the runtime gave at the taps before it."""
    module = render(tapped.program, tapped.plan, "fake")
    outputs = [t.output for t in tapped.taps]
    nodes = [flat.all_input_nodes[0] for flat in _results(module)]
    rows: dict[str, list[Array]] = {name: [] for name in outputs}
    for i in range(len(feeds[inputs[0].name])):
        given = {
            node: torch.from_numpy(answers[name][i]).reshape(node.meta["val"].shape)
            for name, node in zip(outputs, nodes, strict=True)
            if name in answers
        }
        forced = _Forced(module, nodes, given)
        with torch.no_grad():
            forced.run(*(torch.from_numpy(feeds[spec.name][i]) for spec in inputs))
        for name, node in zip(outputs, nodes, strict=True):
            rows[name].append(forced.computed[node].numpy())
    return {name: np.stack(values) for name, values in rows.items()}


def _results(module: fx.GraphModule) -> list[fx.Node]:
    return list(module.graph.output_node().all_input_nodes)


def _culprit(node: fx.Node, tapped: set[fx.Node]) -> str:
    """Names the layer that makes a tap: the one compute node since the taps before it, if any."""
    seen, todo, found = set(), [node], []
    while todo:
        here = todo.pop()
        if here in seen or here.op != "call_function" or (here in tapped and here is not node):
            continue
        seen.add(here)
        if here.target in COMPUTE:
            found.append(here)
        todo += here.all_input_nodes
    made = found[0] if len(found) == 1 else node
    return f"{layer_of(made)} ({made.name})"


def _stable_names(module: fx.GraphModule) -> dict[str, str]:
    """Node name to something that exporting again keeps: a constant's path, an operator's place."""
    keys: dict[str, str] = {}
    for place, node in enumerate(n for n in module.graph.nodes if n.op == "call_function"):
        keys[node.name] = f"{place}:{node.target}"
    for node in module.graph.nodes:
        if node.op in ("get_attr", "placeholder"):
            keys[node.name] = str(node.target)
    return keys
