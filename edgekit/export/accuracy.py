"""Accuracy-aware export: layers stay in float where int8 loses more than was allowed.

Which layers come first is decided on calibration samples, without labels: by how much less noise
the outputs have with a layer in float, over what that costs (`edgekit.compress.sensitivity`). How
many are needed is decided on the evaluation data, by the plan's own evaluation in torch and, where
a runtime loses more than that, by its answers. So a figure on the same data flatters the result a
little, the more the closer it was to the limit.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Store, fingerprint
from edgekit.compress.plan import plan_name
from edgekit.data import Samples
from edgekit.errors import GateFailed
from edgekit.export.document import Row
from edgekit.export.evaluators import TaskMetric, labels_of
from edgekit.export.planning import Planned, tensors
from edgekit.export.reference import Arrays, Referenced, gather, load_arrays, refer
from edgekit.export.request import ExportRequest, Listener
from edgekit.keys import code, versions
from edgekit.metrics import top1_correct
from edgekit.model import Model

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan
    from edgekit.compress.precision import Unit
    from edgekit.compress.sensitivity import Finding, Sensitivity

__all__ = ["about", "load_plan", "measured", "steer", "until_held"]

ROUNDS = 3
"""How often a plan is made anew at most: runtimes may lose more than the plan's own evaluation."""

_ABOUT = "accuracy.json"


def about(planned: Planned) -> dict[str, Any]:
    """What `steer` did to a plan, for the export's document: nothing, or ``kept_for_accuracy``."""
    file = planned.path / _ABOUT
    return {"kept_for_accuracy": json.loads(file.read_text())} if file.exists() else {}


def until_held(
    model: Model,
    planned: Planned,
    calib: Samples | None,
    evaluation: Samples | None,
    schemes: Sequence[str],
    request: ExportRequest,
    store: Store,
    prove: Callable[[Planned], tuple[Referenced, list[Row]]],
) -> tuple[Planned, Referenced, list[Row]]:
    """Plans for which the artifacts hold ``request.max_drop``, if there are any, and their proof.

    Where a runtime loses more than the plan does in torch, the plan has to lose less by as much.

    Args:
        prove: converts and runs all artifacts of some plans, and gives their reference and rows.
    """
    steered = steer(model, planned, calib, evaluation, schemes, request, store)
    reference, rows = prove(steered)
    limit = request.max_drop
    for _ in range(1, ROUNDS):
        limit = _tighter(model, limit, reference, rows, request)
        if limit is None:
            break
        again = steer(model, planned, calib, evaluation, schemes, request, store, limit=limit)
        if again.key in (planned.key, steered.key):
            break
        steered = again
        reference, rows = prove(steered)
    return steered, reference, rows


def _tighter(
    model: Model,
    limit: float | None,
    reference: Referenced,
    rows: Sequence[Row],
    request: ExportRequest,
) -> float | None:
    """What a plan may lose for all artifacts to hold the limit; None if that can't help."""
    labels = reference.labels()
    lost = {
        r.id: (r.drop, plan_name(r.job.target, r.job.scheme, r.job.variant))
        for r in rows
        if r.drop is not None
    }
    if limit is None or request.max_drop is None or request.engine is not None or not lost:
        return None
    worst = max(lost, key=lambda id: lost[id][0])
    drop, scheme = lost[worst]
    if drop <= request.max_drop or scheme == "fp32" or labels is None:
        return None
    judge = _Judge(model, labels, load_arrays(reference.path / "outputs-fp32.npz"))
    own = judge.drop(load_arrays(reference.path / f"outputs-{scheme}.npz"))
    wanted = max(0.0, request.max_drop - (drop - own))
    if wanted >= min(limit, own):
        return None
    request.listener.note(
        f"{worst} loses {drop:.2f} points in its runtime, {own:.2f} in torch: down to {wanted:.2f}"
    )
    return wanted


def steer(
    model: Model,
    planned: Planned,
    calib: Samples | None,
    evaluation: Samples | None,
    schemes: Sequence[str],
    request: ExportRequest,
    store: Store,
    *,
    limit: float | None = None,
    strict: bool = False,
) -> Planned:
    """Plans that lose no more than ``request.max_drop``, with layers in float where they must be.

    ``limit`` is taken instead, where it is given.

    Where the plans hold it as they are, or nothing can be judged (no limit, no labels, no
    calibration samples to measure layers on), they are given back as they are. A limit that only a
    model without integers holds, or not even that, leaves the plans as they are too, for the gate
    to judge.

    Raises:
        GateFailed: the same, where ``strict``.
    """
    limit, listener = request.max_drop if limit is None else limit, request.listener
    if limit is None or calib is None or evaluation is None or request.engine is not None:
        return planned
    labels = labels_of(evaluation, range(len(evaluation)))
    if labels is None:
        return planned
    reference = refer(model, planned, evaluation, schemes, store, listener)
    judge = _Judge(model, labels, load_arrays(reference.path / "outputs-fp32.npz"))
    drops = {
        scheme: judge.drop(load_arrays(reference.path / f"outputs-{scheme}.npz"))
        for scheme in schemes
        if load_plan(planned, scheme).edges
    }
    over = {scheme: drop for scheme, drop in drops.items() if not drop <= limit}
    if not over:
        return planned
    key = fingerprint(
        stage="accuracy",
        plan=planned.key,
        calib=[calib.digest, len(calib)],
        evaluation=[evaluation.digest, len(evaluation)],
        limit=limit,
        schemes=sorted(over),
        code=code("compress", "export/accuracy.py", "export/evaluators.py"),
        versions=versions("torch", "torchao"),
    )

    def fill(folder: Path) -> None:
        _copy(planned, folder)
        feeds, probes = gather(model, evaluation)
        feeds = {name: value[: len(value) - probes] for name, value in feeds.items()}
        told = []
        for scheme, drop in over.items():
            listener.note(f"{scheme} loses {drop:.2f} points, over {limit:g}: which layers?")
            search = _Search(model, planned, scheme, calib, judge, feeds, listener)
            told.append(search.keep(limit, drop, folder))
        (folder / _ABOUT).write_text(json.dumps(told))

    try:
        return Planned(key, store.make(key, fill, what="accuracy"))
    except GateFailed as error:
        if strict:
            raise
        listener.note(error.message)
        return planned


def measured(
    model: Model, planned: Planned, scheme: str, calib: Samples, store: Store, listener: Listener
) -> Planned:
    """The same plans, that of ``scheme`` with its sensitivity."""
    if load_plan(planned, scheme).sensitivity or not load_plan(planned, scheme).edges:
        return planned
    key = fingerprint(
        stage="sensitivity",
        plan=planned.key,
        scheme=scheme,
        calib=[calib.digest, len(calib)],
        code=code("compress", "export/accuracy.py", "export/evaluators.py"),
        versions=versions("torch", "torchao"),
    )

    def fill(folder: Path) -> None:
        _copy(planned, folder)
        plan = load_plan(planned, scheme)
        found, _ = _sensitivity(model, planned, scheme, calib, listener)
        plan = dataclasses.replace(plan, sensitivity=found.to_json())
        (folder / f"plan-{scheme}.json").write_text(json.dumps(plan.to_json()))

    return Planned(key, store.make(key, fill, what="sensitivity"))


class _Judge:
    """How many points of top-1 some answers lose against the float model's."""

    def __init__(self, model: Model, labels: npt.NDArray[np.int64], exact: Arrays) -> None:
        self._name, self.labels = model.signature.outputs[0].name, labels
        self._right = self._correct(exact)

    def _correct(self, answers: Arrays) -> npt.NDArray[np.bool_]:
        rows = answers[self._name][: len(self.labels)]
        return top1_correct(rows.reshape(len(rows), -1), self.labels)

    def drop(self, answers: Arrays) -> float:
        """Percentage points; those of probes behind the samples do not count."""
        lost = int(self._right.sum()) - int(self._correct(answers).sum())
        return 100 * lost / len(self.labels)


class _Search:
    """Looks for the layers that one scheme's plan has to keep in float."""

    def __init__(
        self,
        model: Model,
        planned: Planned,
        scheme: str,
        calib: Samples,
        judge: _Judge,
        feeds: Arrays,
        listener: Listener,
    ) -> None:
        from edgekit.compress.graph import graph_module

        self._model, self._scheme, self._judge = model, scheme, judge
        self._feeds, self._listener = feeds, listener
        self._program, self._plan = _program(planned, scheme), load_plan(planned, scheme)
        self._module = graph_module(self._program)
        self._found, self._base = _sensitivity(model, planned, scheme, calib, listener)
        self._reason = ""
        self._drops: dict[tuple[str, ...], float] = {}

    def keep(self, limit: float, before: float, folder: Path) -> dict[str, Any]:
        """Writes the plan and its program into ``folder``, and tells what was done."""
        from edgekit.compress.graph import save_program
        from edgekit.compress.precision import cost_of, find_units
        from edgekit.compress.select import fewest

        self._reason = f"kept in float to lose at most {limit:g} points"
        chosen = fewest(
            self._found.ranked(),
            lambda some: self._drop(some) <= limit,
            cost=lambda finding: finding.cost.total,
        )
        if chosen is None:
            least = min(self._drops.values())
            raise self._failed(limit, before, f"{least:.2f} even with every layer in float")
        program, plan = self._made([f.unit for f in chosen])
        if not plan.edges:
            raise self._failed(limit, before, "holds it only with every layer in float")
        plan = dataclasses.replace(plan, sensitivity=self._found.to_json())
        save_program(program, folder / f"program-{self._scheme}.pt2")
        (folder / f"plan-{self._scheme}.json").write_text(json.dumps(plan.to_json()))
        cost = cost_of(self._module, self._plan, plan)
        after = self._drop(chosen)
        names = [f.unit.name for f in chosen]
        scheme, _, variant = self._scheme.partition("@")
        self._listener.note(
            f"{self._scheme}: {', '.join(names)} in float; loses {after:.2f} points"
        )
        return {
            "scheme": scheme,
            "variant": variant or None,
            "limit": limit,
            "n": len(self._judge.labels),
            "drop_before": before,
            "drop_after": after,
            "units": names,
            "of": len(find_units(self._module, self._plan)),
            "layers": _weights(self._plan) - _weights(plan),
            "macs_share": self._share(cost.macs),
            "bytes": cost.bytes,
            "evaluations": len(self._drops),
        }

    def _failed(self, limit: float, before: float, what: str) -> GateFailed:
        return GateFailed(
            f"--max-drop {limit:g}: {self._scheme} loses {before:.2f} points, and {what}",
            hint="allow more, or export fp32",
        )

    def _share(self, macs: int) -> float:
        from edgekit.compress.precision import all_macs

        return round(macs / max(1, all_macs(self._module, self._plan)), 6)

    def _made(self, units: Sequence[Unit]) -> tuple[torch.export.ExportedProgram, QuantPlan]:
        from edgekit.compress.graph import program_digest
        from edgekit.compress.precision import keep_float, with_float_constants
        from edgekit.compress.saturation import remaining

        kept = keep_float(self._module, self._plan, units, reason=self._reason)
        program = with_float_constants(self._program, self._module, self._plan, kept, self._base)
        kept = dataclasses.replace(kept, overrides=remaining(kept))
        return program, dataclasses.replace(
            kept,
            program_digest=program_digest(program),
            origin=kept.origin or kept.program_digest,
        )

    def _drop(self, chosen: Sequence[Finding]) -> float:
        from edgekit.compress.evaluate import evaluate
        from edgekit.compress.render import render

        key = tuple(f.unit.name for f in chosen)
        if key not in self._drops:
            module = render(*self._made([f.unit for f in chosen]), "fake")
            names, outs = (
                [s.name for s in specs]
                for specs in (self._model.signature.inputs, self._model.signature.outputs)
            )
            what = f"evaluating with {len(chosen)} of {len(self._found.findings)} in float"
            with self._listener.progress(what, len(self._judge.labels)) as advance:
                answers = evaluate(module, self._feeds, names, outs, progress=advance)
            self._drops[key] = self._judge.drop(answers)
        return self._drops[key]


def _sensitivity(
    model: Model, planned: Planned, scheme: str, calib: Samples, listener: Listener
) -> tuple[Sensitivity, torch.export.ExportedProgram]:
    """What was measured of a plan, and the program before its weights were rounded."""
    from edgekit.compress.ptq import Methods, scaled
    from edgekit.compress.sensitivity import SAMPLES, measure

    plan, program = load_plan(planned, scheme), _program(planned, scheme)
    samples = list(tensors(calib, model.signature))
    base = program
    if not _made_here(plan, calib):
        pass  # what its weights were before they were rounded or trained is not known
    elif not plan.activations():  # its weights may be rounded, and nothing else is changed
        base = _program(planned, "fp32")
    elif (methods := Methods(**plan.calibration["methods"])).rounding or methods.bias_correction:
        base, _ = scaled(_program(planned, "fp32"), samples, methods)
    # Evenly spread, as samples may be sorted by class.
    count = min(SAMPLES, len(samples))
    rows = [i * len(samples) // count for i in range(count)]
    with listener.progress("measuring layers", count) as advance:
        found = measure(
            program,
            plan,
            base,
            [samples[i] for i in rows],
            [s.name for s in model.signature.outputs],
            evaluator=TaskMetric(model.signature, labels_of(calib, rows)),
            progress=advance,
        )
    return found, base


def _made_here(plan: QuantPlan, calib: Samples) -> bool:
    """Whether post-training made a plan of these samples, so that it can be gone after."""
    known = plan.calibration
    same = (known.get("digest"), known.get("n")) == (calib.digest, len(calib))
    whole = "methods" in known or not plan.activations()
    return not plan.training and (not known or (same and whole))


def load_plan(planned: Planned, scheme: str) -> QuantPlan:
    """The plan of one scheme."""
    from edgekit.compress.plan import QuantPlan

    return QuantPlan.from_json(json.loads(planned.plan(scheme).read_text()))


def _program(planned: Planned, scheme: str) -> torch.export.ExportedProgram:
    import torch

    return torch.export.load(planned.program(scheme))


def _copy(planned: Planned, folder: Path) -> None:
    for file in (*planned.path.glob("*.pt2"), *planned.path.glob("plan-*.json")):
        shutil.copyfile(file, folder / file.name)


def _weights(plan: QuantPlan) -> int:
    return sum(edge.kind == "weight" for edge in plan.edges)
