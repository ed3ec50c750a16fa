"""Proof of an artifact: its answers in its runtime, held against what its plan makes."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Artifact, Store, fingerprint
from edgekit.compress.plan import plan_name
from edgekit.export.keys import code, isa, versions
from edgekit.export.planning import Planned
from edgekit.export.reference import Referenced, load_arrays, rounding_floors
from edgekit.export.request import Listener
from edgekit.model import Model
from edgekit.parity import TOLERANCES
from edgekit.runtime.session import unavailable
from edgekit.targets import find, installed, worker

if TYPE_CHECKING:
    from edgekit.verify import Verdict

__all__ = ["Proof", "prove"]

_TRACING = threading.Lock()
"""Targets are proven in threads, and torch keeps what it traces and exports in globals of its own
(`torch.fx.traceback`): two at a time fail with ``KeyError: 'custom'`` now and then."""


@dataclass(frozen=True)
class Proof:
    """The store entry of one artifact's verification: ``verify.json`` and ``outputs.npz``.

    ``emulated`` says that something else than the artifact's own runtime gave the answers.
    """

    document: Mapping[str, Any]
    reason: str | None
    runtime: str
    path: Path
    emulated: bool = False


def prove(
    target: str,
    artifact: Artifact,
    planned: Planned,
    reference: Referenced,
    model: Model,
    feeds_file: Callable[[], Path],
    store: Store,
    listener: Listener,
) -> Proof:
    """Runs an artifact in its real runtime, or in the target's emulation where this system has
    none, and judges its answers.

    Raises:
        WorkerCrashed: the runtime died over it.
        EdgekitError: the runtime refused it.
    """
    key = fingerprint(
        stage="verify",
        artifact=artifact.digest,
        reference=reference.key,
        code=code("parity", "verify.py", "layerwise.py", "runtime"),
        versions={**installed(find(target)), **versions("numpy")},
        isa=isa(),
        **_emulation(target),
    )

    def fill(folder: Path) -> None:
        how = "in its runtime" if unavailable(target) is None else "in an emulation of its runtime"
        listener.note(f"{target}: running {artifact.scheme} {how}")
        scheme = artifact.scheme
        result, kernels = worker.run(
            target,
            [
                {
                    "op": "infer",
                    "artifact": str(artifact.path),
                    "signature": model.signature.to_json(),
                    "feeds": str(feeds_file()),
                    "outputs": str(folder / "outputs.npz"),
                    "repeats": TOLERANCES[scheme].repeats,
                },
                {"op": "unrounded", "artifact": str(artifact.path)},
            ],
        )
        for answer in (result, kernels):
            if "error" in answer:
                raise answer["error"]
        with _TRACING:
            _judge(
                folder,
                result,
                kernels["unrounded"],
                target,
                artifact,
                planned,
                reference,
                model,
                feeds_file(),
            )

    path = store.make(key, fill, what=f"verify {artifact.id}")
    saved = json.loads((path / "verify.json").read_text())
    return Proof(saved["document"], saved["reason"], saved["runtime"], path, saved["emulated"])


def _emulation(target: str) -> dict[str, Any]:
    """What an emulated proof depends on as well: the emulation, and what it computes with."""
    if unavailable(target) is None:
        return {}
    return {"emulation": code("targets"), "emulation_versions": versions("torch")}


def _judge(
    folder: Path,
    result: Mapping[str, Any],
    unrounded: Mapping[str, Any],
    target: str,
    artifact: Artifact,
    planned: Planned,
    reference: Referenced,
    model: Model,
    feeds_file: Path,
) -> None:
    import torch

    from edgekit import verify
    from edgekit.compress.dynamic import as_computed
    from edgekit.compress.evaluate import evaluate
    from edgekit.compress.graph import graph_module
    from edgekit.compress.plan import QuantPlan
    from edgekit.compress.render import render
    from edgekit.compress.unrounded import Unrounded

    scheme, name = artifact.scheme, plan_name(target, artifact.scheme, artifact.variant)
    if not planned.plan(name).exists():
        _judge_without_plan(folder, result, artifact, reference, model, feeds_file)
        return
    program = torch.export.load(planned.program(name))
    made = QuantPlan.from_json(json.loads(planned.plan(name).read_text()))
    made = dataclasses.replace(made, variant=artifact.variant)
    plan = as_computed(graph_module(program), made, find(target))
    facts = reference.facts()[name]
    feeds = load_arrays(feeds_file)
    outputs = load_arrays(reference.path / f"outputs-{name}.npz")
    against = "plan"
    left_out = Unrounded.from_json(unrounded)
    computed = left_out.without(program, plan)
    carried = left_out.not_stored().without(program, plan)
    if len(computed.edges) < len(plan.edges):
        # The runtime's kernels round less often than the plan: so must what they are held against.
        inputs = [s.name for s in model.signature.inputs]
        results = [s.name for s in model.signature.outputs]
        module = render(program, computed, "fake")
        outputs = evaluate(module, feeds, inputs, results)
        if verify.output_steps(program, computed, results) != facts["steps"]:
            # A result that is not rounded is still held to the steps that it has in the plan.
            n = len(feeds[inputs[0]]) - reference.probes
            steps = facts["steps"]
            floors = rounding_floors(model.signature, module, feeds, outputs, steps, n, scheme)
            facts = {**facts, **floors}
        against = f"plan, without the rounding of {left_out.words(program, plan)}"
    elif plan != made:
        inputs = [s.name for s in model.signature.inputs]
        results = [s.name for s in model.signature.outputs]
        module = render(program, plan, "fake")
        outputs = evaluate(module, feeds, inputs, results)
        n = len(feeds[inputs[0]]) - reference.probes
        if plan.rounds:
            steps = facts["steps"]
            floors = rounding_floors(model.signature, module, feeds, outputs, steps, n, scheme)
            facts = {**facts, **floors}
        against = "plan, with the runtime's own scales of inputs that it quantizes as it runs"
    held = verify.Reference(
        scheme=scheme,
        feeds=feeds,
        outputs=outputs,
        steps=facts["steps"],
        probes=reference.probes,
        floor=facts["floor"],
        probe_floor=facts["probe_floor"],
        ranges=verify.input_ranges(program, plan, [s.name for s in model.signature.inputs]),
    )
    stored = json.loads((artifact.path.parent / "convert.json").read_text())["stored"]
    verdict = verify.judge(
        held,
        model.signature,
        load_arrays(folder / "outputs.npz"),
        result["order"],
        result["distinct"],
        stored_faults=verify.compare_stored(program, carried, stored) if plan.edges else None,
        runtime=result["runtime"],
        against=against,
    )
    verdict = verify.look_closer(verdict, target, program, plan, model.signature, feeds)
    _save(folder, verdict, artifact, result["emulated"])


def _judge_without_plan(
    folder: Path,
    result: Mapping[str, Any],
    artifact: Artifact,
    reference: Referenced,
    model: Model,
    feeds_file: Path,
) -> None:
    from edgekit import verify

    held = verify.Reference(
        scheme=artifact.scheme,
        feeds=load_arrays(feeds_file),
        outputs=load_arrays(reference.path / "outputs-fp32.npz"),
        steps={spec.name: None for spec in model.signature.outputs},
        probes=reference.probes,
    )
    answers = load_arrays(folder / "outputs.npz")
    verdict = verify.judge_without_plan(
        held,
        model.signature,
        answers,
        result["order"],
        result["distinct"],
        runtime=result["runtime"],
    )
    _save(folder, verdict, artifact, result["emulated"])


def _save(folder: Path, verdict: Verdict, artifact: Artifact, emulated: bool) -> None:
    saved = {
        "document": verdict.document(artifact.id),
        "summary": verdict.report.summary(),
        "reason": verdict.reason,
        "runtime": verdict.runtime,
        "emulated": emulated,
    }
    (folder / "verify.json").write_text(json.dumps(saved))
