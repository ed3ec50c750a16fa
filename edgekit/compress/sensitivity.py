"""Sensitivity: what quantizing each part of a model costs its answers, and what sparing it gains.

Every unit (`edgekit.compress.precision`) is looked at from both sides, on a few samples: *alone*,
as the only one that is quantized in a float model, and *kept*, as the only one that stays in float
in a quantized model, together with what can't be integer without it. The figure is the signal to
quantization noise ratio of the model's outputs, as in Lin et al., "Fixed Point Quantization of Deep
Convolutional Networks" (arXiv:1511.06393), and beside it a task metric. Alone tells which part does
harm; kept tells what a higher precision there would mend, which is what a choice is made by.

Of each sample the values of every operator are kept, for the float and the quantized model; only
what a unit changes is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from edgekit.compress.dynamic import fake_dynamic
from edgekit.compress.fake import fake_quantize
from edgekit.compress.graph import graph_module, tensor_of
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.precision import Cost, Unit, all_macs, cost_of, find_units, keep_float
from edgekit.protocols import Evaluator

__all__ = ["SAMPLES", "Finding", "Sensitivity", "measure"]

SAMPLES = 32
"""Samples that are enough to rank layers by; more tells their task metric more finely."""

_LEAST_NOISE = 1e-12
"""Noise over signal that float rounding makes by itself: less counts as none."""


@dataclass(frozen=True)
class Finding:
    """What was measured of one unit.

    Attributes:
        unit: the unit.
        cost: of keeping it in float, with what has to follow it.
        share: of the multiply-accumulates on integers that move to float with it.
        alone_noise: noise over signal of the outputs when only this unit is quantized.
        kept_noise: the same when only this one is kept in float.
        alone_metric: the task metric when only this unit is quantized; None without an evaluator.
        kept_metric: the same when only this one is kept in float.
    """

    unit: Unit
    cost: Cost
    share: float
    alone_noise: float
    kept_noise: float
    alone_metric: float | None = None
    kept_metric: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What was measured of a plan.

    Attributes:
        findings: one per unit, in execution order.
        noise: noise over signal of the outputs when all is quantized.
        n: samples.
        metric: the evaluator's name.
        quantized_metric: with everything quantized.
        float_metric: of the float model.
    """

    findings: tuple[Finding, ...]
    noise: float
    n: int
    metric: str | None = None
    quantized_metric: float | None = None
    float_metric: float | None = None

    def ranked(self) -> list[Finding]:
        """By how much noise keeping a unit in float takes away, over what that costs; best first.

        Units that take nothing away come last, as there is nothing to tell them apart by.
        """

        def worth(finding: Finding) -> float:
            return max(self.noise - finding.kept_noise, 0.0) / finding.cost.total

        return sorted(self.findings, key=worth, reverse=True)

    def to_json(self) -> dict[str, Any]:
        """As a plan keeps it: the units that lose most first. Ratios in dB, null for no noise."""
        rows = [
            {
                "layer": f.unit.name,
                "kind": f.unit.kind,
                "nodes": list(f.unit.nodes),
                "sqnr_alone_db": _db(f.alone_noise),
                "gain_kept_db": _gain(self.noise, f.kept_noise),
                "metric_alone": f.alone_metric,
                "metric_kept": f.kept_metric,
                "macs": f.cost.macs,
                "macs_share": round(f.share, 6),
                "bytes": f.cost.bytes,
                "border_elements": f.cost.border,
            }
            for f in sorted(self.findings, key=lambda f: -f.alone_noise)
        ]
        return {
            "n": self.n,
            "sqnr_db": _db(self.noise),
            "metric": self.metric,
            "metric_quantized": self.quantized_metric,
            "metric_float": self.float_metric,
            "layers": rows,
        }


def _db(noise: float) -> float | None:
    return None if noise <= _LEAST_NOISE else round(-10 * math.log10(noise), 2)


def _gain(noise: float, kept: float) -> float | None:
    """By how many dB the outputs are better; null where no noise is left, or there was none."""
    if min(noise, kept) <= _LEAST_NOISE:
        return None
    return round(10 * math.log10(noise / kept), 2)


def measure(
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    base: torch.export.ExportedProgram,
    feeds: Sequence[tuple[torch.Tensor, ...]],
    outputs: Sequence[str],
    *,
    evaluator: Evaluator | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sensitivity:
    """Measures every unit of a plan.

    Args:
        program: the program that the plan belongs to.
        plan: its quantization.
        base: the program before its weights were rounded and its biases corrected; what is kept
            in float computes with its constants. ``program`` itself where that didn't happen.
        feeds: samples, one tuple of input tensors each, batch of 1.
        outputs: the model's output names, in order.
        evaluator: the task metric, of these samples in this order.
        progress: called with 1 after every sample.
    """
    module = graph_module(program)
    units = find_units(module, plan)
    kept = [keep_float(module, plan, [unit]) for unit in units]
    runs = _Runs(module, graph_module(base), plan)
    alone = [_Setting(runs.of_units([u])) for u in units]
    spared = [_Setting(runs.of_plan(k)) for k in kept]
    exact, whole = _Setting(runs.of_units([])), _Setting(runs.of_plan(plan))
    with torch.no_grad():
        for feed in feeds:
            values = runs.all_values(feed, exact.change)
            results = runs.results(values)
            exact.add(results, results, evaluator)
            for setting in alone:
                setting.add(runs.again(values, setting.change, exact.change), results, evaluator)
            values = runs.all_values(feed, whole.change)
            whole.add(runs.results(values), results, evaluator)
            for setting in spared:
                setting.add(runs.again(values, setting.change, whole.change), results, evaluator)
            if progress is not None:
                progress(1)
    total = max(1, all_macs(module, plan))
    float_answers = {} if evaluator is None else exact.answers(outputs)

    def score(setting: _Setting) -> float | None:
        if evaluator is None:
            return None
        return evaluator(setting.answers(outputs), float_answers)

    findings = []
    for unit, one, other, remaining in zip(units, alone, spared, kept, strict=True):
        cost = cost_of(module, plan, remaining)
        share = cost.macs / total
        findings.append(
            Finding(unit, cost, share, one.noise(), other.noise(), score(one), score(other))
        )
    return Sensitivity(
        tuple(findings),
        whole.noise(),
        len(feeds),
        None if evaluator is None else evaluator.name,
        score(whole),
        score(exact),
    )


@dataclass(frozen=True)
class _Change:
    """How a run of the graph is set up.

    Attributes:
        edges: tensors that are quantized, by node name.
        constants: values of weights and biases, by node name.
        source: per constant, which of its values that is.
        dynamic: layers that quantize their input as they run, with what shares a scale.
    """

    edges: Mapping[str, Edge]
    constants: Mapping[str, torch.Tensor]
    source: Mapping[str, str]
    dynamic: Mapping[str, str]


class _Setting:
    """One way to quantize the model, and what it has answered so far."""

    def __init__(self, change: _Change) -> None:
        self.change = change
        self._noise: list[float] = []
        self._signal: list[float] = []
        self._answers: list[list[npt.NDArray[Any]]] = []

    def add(
        self, results: Sequence[torch.Tensor], exact: Sequence[torch.Tensor], keep: object
    ) -> None:
        """Takes the answers to one sample, and what the float model answers."""
        if not self._noise:
            self._noise, self._signal = [0.0] * len(exact), [0.0] * len(exact)
        for i, (result, wanted) in enumerate(zip(results, exact, strict=True)):
            self._noise[i] += float((result.double() - wanted.double()).square().sum())
            self._signal[i] += float(wanted.double().square().sum())
        if keep is not None:
            self._answers.append([r.numpy().copy() for r in results])

    def noise(self) -> float:
        """Noise over signal, the mean over the outputs."""
        ratios = [
            n / s if s else float(n > 0) for n, s in zip(self._noise, self._signal, strict=True)
        ]
        return sum(ratios) / len(ratios) if ratios else 0.0

    def answers(self, outputs: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """All answers, [n, *shape] by output name."""
        columns = zip(*self._answers, strict=True)
        return {name: np.stack(column) for name, column in zip(outputs, columns, strict=True)}


class _Runs:
    """Runs a graph node by node under one setting or another."""

    def __init__(self, module: fx.GraphModule, base: fx.GraphModule, plan: QuantPlan) -> None:
        self._edges = {e.node: e for e in plan.edges}
        self._dynamic = {layer.node: str(layer.per) for layer in plan.dynamic}
        self._nodes = [n for n in module.graph.nodes if n.op != "output"]
        results: Any = module.graph.output_node().args[0]
        self._outputs = list(results) if isinstance(results, list | tuple) else [results]
        held = {n.name: n for n in base.graph.nodes if n.op == "get_attr"}
        self._float: dict[str, torch.Tensor] = {}
        self._integer: dict[str, torch.Tensor] = {}
        for node in self._nodes:
            value = tensor_of(module, node)
            if value is None:
                continue
            exact = tensor_of(base, held[node.name])
            assert exact is not None
            self._float[node.name] = exact
            edge = self._edges.get(node.name)
            if edge is not None:
                stored = edge.dequantize(edge.quantize(value.numpy()))
                self._integer[node.name] = torch.from_numpy(stored)

    def of_units(self, units: Sequence[Unit]) -> _Change:
        """The float model with some units quantized."""
        edges = {name: self._edges[name] for unit in units for name in unit.edges}
        nodes = {name for unit in units for name in unit.nodes}
        return self._change(edges, {n: per for n, per in self._dynamic.items() if n in nodes})

    def of_plan(self, plan: QuantPlan) -> _Change:
        """A plan; its constants are integers where it has an edge for them."""
        dynamic = {layer.node: str(layer.per) for layer in plan.dynamic}
        return self._change({e.node: e for e in plan.edges}, dynamic)

    def _change(self, edges: Mapping[str, Edge], dynamic: Mapping[str, str]) -> _Change:
        source = {n: "integer" if n in edges else "float" for n in self._float}
        values = {
            n: (self._integer if kind == "integer" else self._float)[n]
            for n, kind in source.items()
        }
        acts = {n: e for n, e in edges.items() if e.kind == "activation"}
        return _Change(acts, values, source, dynamic)

    def all_values(self, feed: tuple[torch.Tensor, ...], change: _Change) -> dict[fx.Node, Any]:
        """The values of all nodes for one sample."""
        given = iter(feed)
        values: dict[fx.Node, Any] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                values[node] = _edged(next(given), change.edges.get(node.name))
            else:
                values[node] = self._compute(node, values, change)
        self._feed = feed
        return values

    def again(
        self, values: Mapping[fx.Node, Any], change: _Change, before: _Change
    ) -> list[torch.Tensor]:
        """The results under ``change``, given all values under ``before``."""
        fresh: dict[fx.Node, Any] = {}
        given = iter(self._feed)
        for node in self._nodes:
            edge = change.edges.get(node.name)
            same = edge is before.edges.get(node.name)
            same &= change.dynamic.get(node.name) == before.dynamic.get(node.name)
            if node.op == "placeholder":
                value = next(given)
                if not same:
                    fresh[node] = _edged(value, edge)
            elif node.op == "get_attr":
                if change.source.get(node.name) != before.source.get(node.name):
                    fresh[node] = change.constants[node.name]
            elif not same or any(n in fresh for n in node.all_input_nodes):
                fresh[node] = self._compute(node, _Over(fresh, values), change)
        return [fresh.get(node, values[node]) for node in self._outputs]

    def results(self, values: Mapping[fx.Node, Any]) -> list[torch.Tensor]:
        """What the model answers, given all values."""
        return [values[node] for node in self._outputs]

    def _compute(self, node: fx.Node, values: Any, change: _Change) -> Any:
        if node.op == "get_attr":
            return change.constants[node.name]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
        if (per := change.dynamic.get(node.name)) is not None:
            source: Any = args[0]
            args = (fake_dynamic(source, per), *args[1:])
        return _edged(node.target(*args, **kwargs), change.edges.get(node.name))  # type: ignore[operator]


class _Over:
    """Some values over others."""

    def __init__(self, fresh: Mapping[fx.Node, Any], values: Mapping[fx.Node, Any]) -> None:
        self._fresh, self._values = fresh, values

    def __getitem__(self, node: fx.Node) -> Any:
        return self._fresh[node] if node in self._fresh else self._values[node]


def _edged(value: Any, edge: Edge | None) -> Any:
    """A value as the plan's integers hold it."""
    if edge is None:
        return value
    return fake_quantize(value, edge.scale[0], edge.zero_point[0], edge.quant_min, edge.quant_max)
