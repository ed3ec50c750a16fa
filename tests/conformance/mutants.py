"""Converters with one planted fault each: targets that wrap a real one and spoil its work.

A fault is planted where such faults arise: in the program or the plan before they are converted, in
the file that the converter wrote, or between the caller and the runtime. Everything else is the
real target's own. A worker addresses them as ``mutants:FAULT@TARGET``, and as ``mutants:@TARGET`` a
target whose fault is named by the folder that the artifact lies in, so that one process can go
through many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit.compress.graph import layer_of, program_digest
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.unrounded import Unrounded
from edgekit.runtime.session import open_session
from edgekit.signature import Signature
from edgekit.targets import find

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], dict[str, Array]]

HONEST = "honest"
CONV, ACT, BLOCK, LINEAR = "blocks.1.conv", "blocks.1.act", "blocks.1", "2"
"""The layers that faults are planted in: of `mutant_models.Pictures`, and of the perceptron."""

CHANNEL = 5
"""The one channel that is spoiled where one is."""


class Patient:
    """A program and its plan, to be spoiled in place before a real converter gets them."""

    def __init__(self, program: torch.export.ExportedProgram, plan: QuantPlan) -> None:
        self.program, self.plan = program, plan

    def tensor(self, layer: str, kind: str) -> torch.Tensor:
        """The weight or bias of a layer; writing to it changes the program."""
        folded = f"{layer.replace('.', '_')}_weight_folded_bias"
        names = [f"{layer}.{kind}", *([folded] if kind == "bias" else [])]
        return next(self.program.state_dict[n] for n in names if n in self.program.state_dict).data

    def edge(self, name: str) -> Edge | None:
        """The plan's edge of a constant by its path, or of an activation by its layer."""
        found = (e for e in self.plan.edges if e.edge == name or e.edge.startswith(f"{name}/"))
        return next(found, None)

    def replace_edge(self, old: Edge, **changes: Any) -> Edge:
        """Changes one edge of the plan."""
        new = dataclasses.replace(old, **changes)
        edges = tuple(new if e is old else e for e in self.plan.edges)
        self.plan = dataclasses.replace(self.plan, edges=edges)
        return new

    def node(self, layer: str, kind: str) -> torch.fx.Node:
        """The operator of a layer."""
        nodes = [n for n in self.program.graph.nodes if n.op == "call_function"]
        return next(n for n in nodes if layer_of(n) == layer and kind in str(n.target))

    def finish(self) -> tuple[torch.export.ExportedProgram, QuantPlan]:
        """The program and a plan that takes it for its own."""
        self.program.graph_module.recompile()
        digest = program_digest(self.program)
        return self.program, dataclasses.replace(self.plan, program_digest=digest)


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        spoil: changes program and plan before the conversion.
        rename: gives the signature that the real converter names the outputs by.
        rewrite: changes the file after the conversion, given the plan.
        wrap: gives another ``run`` in place of a session's own.
    """

    spoil: Callable[[Patient], None] | None = None
    rename: Callable[[Signature], Signature] | None = None
    rewrite: Callable[[Path, QuantPlan], None] | None = None
    wrap: Callable[[Run], Run] | None = None


class _Session:
    """A real session behind another ``run``."""

    def __init__(self, real: Any, run: Run) -> None:
        self._real, self.run = real, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Mutant:
    """A real target with a fault; see `edgekit.targets.Target`."""

    def __init__(self, base: str, fault: str) -> None:
        self._base, self._fault = find(base), fault
        for name in ("id", "suffix", "extra", "packages", "schemes", "delegates"):
            setattr(self, name, getattr(self._base, name))

    def convert(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        signature: Signature,
        out: Path,
    ) -> list[Path]:
        """The real conversion, spoiled."""
        fault = self._of(out)
        true_plan = plan
        if fault.spoil is not None:
            patient = Patient(program, plan)
            with torch.no_grad():
                fault.spoil(patient)
            program, plan = patient.finish()
        if fault.rename is not None:
            signature = fault.rename(signature)
        files = self._base.convert(program, plan, signature, out)
        if fault.rewrite is not None:
            fault.rewrite(out, true_plan)
        return files

    def inspect(self, path: Path) -> Any:
        """The real target's."""
        return self._base.inspect(path)

    def stored(self, path: Path) -> Any:
        """The real target's."""
        return self._base.stored(path)

    def unrounded(self, path: Path) -> Unrounded:
        """The real target's."""
        ask = getattr(self._base, "unrounded", None)
        found: Unrounded = Unrounded() if ask is None else ask(path)
        return found

    def open_session(self, path: Path, signature: Signature, threads: int) -> Any:
        """A real session, spoiled."""
        session = open_session(self._base.id, path, signature, threads=threads)
        wrap = self._of(path).wrap
        return session if wrap is None else _Session(session, wrap(session.run))

    def _of(self, path: Path) -> Fault:
        return FAULTS[self._fault or path.parent.name]


def __getattr__(name: str) -> Mutant:
    fault, at, base = name.partition("@")
    if not at or (fault and fault not in FAULTS):
        raise AttributeError(name)
    return Mutant(base, fault)


# Faults in a layer. Those of constants keep dtype and shape, as the real ones did.


def _storage_order(patient: Patient) -> None:
    """litert-torch 1238: a constant that isn't contiguous, written as it lies in memory."""
    weight = patient.tensor(CONV, "weight")
    weight.copy_(weight.permute(0, 2, 3, 1).contiguous().reshape(weight.shape))


def _swapped_height_and_width(patient: Patient) -> None:
    weight = patient.tensor(CONV, "weight")
    weight.copy_(weight.transpose(2, 3).clone())


def _transposed_matrix(patient: Patient) -> None:
    weight = patient.tensor(LINEAR, "weight")
    weight.copy_(weight.t().clone())


def _restored(patient: Patient, **changes: Any) -> None:
    """The plan's integers with other scales: what a converter that mixes scales up writes."""
    edge, weight = patient.edge(f"{CONV}.weight"), patient.tensor(CONV, "weight")
    assert edge is not None
    stored = edge.quantize(weight.numpy())
    weight.copy_(torch.from_numpy(patient.replace_edge(edge, **changes).dequantize(stored)))


def _rolled_scales(patient: Patient) -> None:
    edge = patient.edge(f"{CONV}.weight")
    assert edge is not None
    _restored(patient, scale=(*edge.scale[1:], edge.scale[0]))


def _scales_along_the_other_axis(patient: Patient) -> None:
    _restored(patient, axis=1)


def _doubled_weight_scale(patient: Patient) -> None:
    edge = patient.edge(f"{CONV}.weight")
    assert edge is not None
    _restored(patient, scale=tuple(2 * s for s in edge.scale))


def _one_scale_a_tenth_off(patient: Patient) -> None:
    edge = patient.edge(f"{CONV}.weight")
    assert edge is not None
    scales = [1.1 * s if i == CHANNEL else s for i, s in enumerate(edge.scale)]
    _restored(patient, scale=tuple(float(np.float32(s)) for s in scales))


def _doubled_activation_scale(patient: Patient) -> None:
    """On both sides, so that only the resolution suffers: no answer is far off."""
    edge = patient.edge(ACT)
    assert edge is not None
    patient.replace_edge(edge, scale=(2 * edge.scale[0],))


def _dropped_bias(patient: Patient) -> None:
    patient.tensor(CONV, "bias").zero_()


def _step(patient: Patient) -> float:
    edge = patient.edge(ACT)
    return edge.scale[0] if edge is not None else 0.05


def _one_bias_off(patient: Patient) -> None:
    patient.tensor(CONV, "bias")[CHANNEL] += 2 * _step(patient)


def _rounding_down(patient: Patient) -> None:
    """floor(x) is round(x - 1/2): a requantization that cuts off instead of rounding."""
    patient.tensor(CONV, "bias").sub_(_step(patient) / 2)


def _dead_channel(patient: Patient) -> None:
    patient.tensor(CONV, "weight")[-1] = 0
    patient.tensor(CONV, "bias")[-1] = 0


def _nan_weight(patient: Patient) -> None:
    patient.tensor(CONV, "weight")[CHANNEL, 0, 1, 1] = float("nan")


def _relu_for_relu6(patient: Patient) -> None:
    node = patient.node(ACT, "hardtanh")
    node.target, node.args = torch.ops.aten.relu.default, node.args[:1]


def _doubled_branch(patient: Patient) -> None:
    """A residual that adds the branch to itself: the skip is lost."""
    node = patient.node(BLOCK, "add")
    node.args = (node.args[1], node.args[1])


def _off_by_one(path: Path, plan: QuantPlan, reader: bool) -> None:
    """The zero point of one side of an activation, the writing or the reading one, off by one."""
    import onnx
    from onnx import numpy_helper

    edge = next((e for e in plan.edges if e.edge.startswith(f"{ACT}/")), None)
    assert edge is not None
    model = onnx.load(str(path))
    values = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    kind = "DequantizeLinear" if reader else "QuantizeLinear"
    for node in model.graph.node:
        ours = node.op_type == kind and node.input[0] not in values
        if ours and float(values[node.input[1]]) == np.float32(edge.scale[0]):
            moved = values[node.input[2]] + np.array(1, values[node.input[2]].dtype)
            model.graph.initializer.append(numpy_helper.from_array(moved, "moved_zero_point"))
            node.input[2] = "moved_zero_point"
    path.write_bytes(model.SerializeToString())


# Faults between the caller and the runtime.


def _on_inputs(change: Callable[[Array], Array]) -> Callable[[Run], Run]:
    def wrap(run: Run) -> Run:
        return lambda feeds: run({k: np.ascontiguousarray(change(v)) for k, v in feeds.items()})

    return wrap


def _on_outputs(change: Callable[[dict[str, Array]], dict[str, Array]]) -> Callable[[Run], Run]:
    return lambda run: lambda feeds: change(run(feeds))


def _on(name: str, change: Callable[[Array], Array]) -> Callable[[Run], Run]:
    """Changes one output where it is there: a tapped program has others."""
    return _on_outputs(lambda o: {k: change(v) if k == name else v for k, v in o.items()})


def _only_if(trigger: Callable[[Array], bool]) -> Callable[[Run], Run]:
    """All outputs upside down, but only for inputs that ``trigger`` holds for."""

    def wrap(run: Run) -> Run:
        def faulty(feeds: Arrays) -> dict[str, Array]:
            hit = any(trigger(v) for v in feeds.values())
            return {k: -v if hit else v for k, v in run(feeds).items()}

        return faulty

    return wrap


def one_run_in_five(seed: int) -> Callable[[Run], Run]:
    """executorch 22327: a band of rows is wrong in a fifth of the runs, by chance."""

    def wrap(run: Run) -> Run:
        rng = np.random.default_rng(seed)

        def faulty(feeds: Arrays) -> dict[str, Array]:
            outputs = run(feeds)
            if rng.random() < 0.2 and "features" in outputs:
                outputs["features"][:, :, 2:4] += 0.5
            return outputs

        return faulty

    return wrap


def _stale() -> Callable[[Run], Run]:
    """A buffer that isn't cleared: a tenth of the last answer stays in the next."""

    def wrap(run: Run) -> Run:
        last: dict[str, Array] = {}

        def faulty(feeds: Arrays) -> dict[str, Array]:
            outputs = {k: v + 0.1 * last.get(k, 0) for k, v in run(feeds).items()}
            last.update(outputs)
            return {k: v.astype(np.float32) for k, v in outputs.items()}

        return faulty

    return wrap


def _only_call(number: int) -> Callable[[Run], Run]:
    """One call, counted from the start, has one of its features far off: no mean can see it."""

    def wrap(run: Run) -> Run:
        calls: Iterator[int] = iter(range(10**9))

        def faulty(feeds: Arrays) -> dict[str, Array]:
            outputs = run(feeds)
            if next(calls) == number and "features" in outputs:
                outputs["features"][0, CHANNEL, 3, 3] += 0.5
            return outputs

        return faulty

    return wrap


def _nhwc_as_nchw(x: Array) -> Array:
    return x.transpose(0, 2, 3, 1).reshape(x.shape) if x.ndim == 4 else x


def _normalised_again(x: Array) -> Array:
    return ((x - np.float32(0.3)) / np.float32(0.8)).astype(x.dtype)


def _nan_once(x: Array) -> Array:
    out = x.copy()
    out.reshape(-1)[x.size // 2] = np.nan
    return out


def _nearly_half_wrong(x: Array) -> Array:
    out = x.copy()
    flat = out.reshape(-1)
    flat[: int(0.49 * flat.size)] += 1
    return out


def _last_channel_zeroed(x: Array) -> Array:
    out = x.copy()
    out[:, -1] = 0
    return out


def _swapped_names(signature: Signature) -> Signature:
    """The heads under each other's names; a tapped program has neither."""
    places = {spec.name: i for i, spec in enumerate(signature.outputs)}
    outputs = list(signature.outputs)
    if {"digit", "other"} <= set(places):
        i, j = places["digit"], places["other"]
        outputs[i], outputs[j] = outputs[j], outputs[i]
    return Signature(signature.inputs, tuple(outputs))


IN_A_LAYER: dict[str, Fault] = {
    "storage-order": Fault(_storage_order),
    "swapped-height-and-width": Fault(_swapped_height_and_width),
    "rolled-scales": Fault(_rolled_scales),
    "scales-along-the-other-axis": Fault(_scales_along_the_other_axis),
    "doubled-weight-scale": Fault(_doubled_weight_scale),
    "one-scale-a-tenth-off": Fault(_one_scale_a_tenth_off),
    "doubled-activation-scale": Fault(_doubled_activation_scale),
    "zero-point-read-off-by-one": Fault(rewrite=lambda p, q: _off_by_one(p, q, reader=True)),
    "zero-point-written-off-by-one": Fault(rewrite=lambda p, q: _off_by_one(p, q, reader=False)),
    "dropped-bias": Fault(_dropped_bias),
    "one-bias-off": Fault(_one_bias_off),
    "rounding-down": Fault(_rounding_down),
    "dead-channel": Fault(_dead_channel),
    "nan-weight": Fault(_nan_weight),
    "relu-for-relu6": Fault(_relu_for_relu6),
    "lost-skip": Fault(_doubled_branch),
    "transposed-matrix": Fault(_transposed_matrix),
}

AT_THE_INPUT: dict[str, Fault] = {
    "nhwc-as-nchw": Fault(wrap=_on_inputs(_nhwc_as_nchw)),
    "rgb-as-bgr": Fault(wrap=_on_inputs(lambda x: x[:, ::-1] if x.ndim == 4 else x)),
    "normalised-twice": Fault(wrap=_on_inputs(_normalised_again)),
}

AT_THE_OUTPUT: dict[str, Fault] = {
    "swapped-outputs": Fault(rename=_swapped_names),
    "reordered-outputs": Fault(wrap=_on_outputs(lambda o: dict(reversed(o.items())))),
    "missing-output": Fault(wrap=_on_outputs(lambda o: {k: o[k] for k in list(o)[:-1]})),
    "half-precision-output": Fault(wrap=_on("digit", lambda x: x.astype(np.float16))),
    "transposed-output": Fault(
        wrap=_on("features", lambda x: np.ascontiguousarray(x.transpose(0, 1, 3, 2)))
    ),
    "zeroed-output": Fault(wrap=_on("other", np.zeros_like)),
    "last-channel-zeroed": Fault(wrap=_on("features", _last_channel_zeroed)),
    "nan-once": Fault(wrap=_on("features", _nan_once)),
    "all-nan": Fault(wrap=_on("digit", lambda x: np.full_like(x, np.nan))),
    "nearly-half-wrong": Fault(wrap=_on("features", _nearly_half_wrong)),
}

NOW_AND_THEN: dict[str, Fault] = {
    "only-if-all-equal": Fault(wrap=_only_if(lambda x: bool((x == x.flat[0]).all()))),
    "only-if-one-dominates": Fault(wrap=_only_if(lambda x: np.count_nonzero(x) == 1)),
    "only-if-negative-zero": Fault(wrap=_only_if(lambda x: bool((np.signbit(x) & (x == 0)).any()))),
    "only-if-denormal": Fault(
        wrap=_only_if(lambda x: bool(((x != 0) & (np.abs(x) < 1e-38)).any()))
    ),
    "only-if-tiny": Fault(
        wrap=_only_if(lambda x: bool((np.abs(x) < 6e-5).all() and (np.abs(x) > 1e-38).any()))
    ),
    "only-if-large": Fault(wrap=_only_if(lambda x: bool((x > 6e4).any()))),
    "one-call-of-many": Fault(wrap=_only_call(37)),
    "one-run-in-five": Fault(wrap=one_run_in_five(0)),
    "stale-buffer": Fault(wrap=_stale()),
}

FAULTS: dict[str, Fault] = {
    HONEST: Fault(),
    **IN_A_LAYER,
    **AT_THE_INPUT,
    **AT_THE_OUTPUT,
    **NOW_AND_THEN,
}
