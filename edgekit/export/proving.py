"""Proof of an artifact: its answers in its runtime, held against what its plan makes."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgekit.artifact import Artifact, Store, fingerprint
from edgekit.compress.plan import plan_name
from edgekit.export.planning import Planned
from edgekit.export.reference import Arrays, Referenced, load_arrays, rounding_floors
from edgekit.export.request import Listener
from edgekit.keys import code, isa, versions
from edgekit.model import Model
from edgekit.parity import TOLERANCES
from edgekit.runtime.session import unavailable
from edgekit.structure import AGAINST, checks_of, only_by_structure
from edgekit.targets import find, installed, worker

if TYPE_CHECKING:
    import torch
    from torch import fx

    from edgekit import verify
    from edgekit.compress.plan import QuantPlan
    from edgekit.signature import Signature
    from edgekit.verify import Verdict

__all__ = ["Proof", "prove"]

_TRACING = threading.Lock()
"""Targets are proven in threads, and torch keeps what it traces and exports in globals of its own
(`torch.fx.traceback`): two at a time fail with ``KeyError: 'custom'`` now and then."""


_RARE_TIMES: Final = 8
"""As many times more noise, where the question is how rare a rare event is."""

_SAMPLE_DRAWS: Final = 64
"""Draws of noise on a single sample, where the question is what noise can do to it."""


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

    @property
    def structural(self) -> bool:
        """Whether the file was read and nothing ran it."""
        return bool(self.document["against"] == AGAINST)


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
    none, and judges its answers. Where there is neither, its structure alone is checked.

    ``target`` has the artifact's delegate where that is not the usual one.

    Raises:
        WorkerCrashed: the runtime died over it.
        EdgekitError: the runtime refused it.
    """
    looked: dict[str, Any] | None = None
    absent = only_by_structure(target)
    if absent is not None:
        path = _look(target, artifact, model, store, listener)
        looked = json.loads((path / "verify.json").read_text())
        document, without = looked["document"], looked["unemulated"]
        if without is not None or not document["passed"]:
            why = "; ".join(filter(None, (absent, without)))
            listener.note(f"{target}: {artifact.scheme} by its structure alone: {why}")
            return Proof(document, looked["reason"], looked["runtime"], path)
    key = fingerprint(
        stage="verify",
        artifact=artifact.digest,
        reference=reference.key,
        code=code("parity", "verify.py", "floors.py", "layerwise.py", "runtime"),
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
        ran = _Ran(folder, artifact, result, kernels["unrounded"])
        with _TRACING:
            if planned.plan(plan_name(target, scheme, artifact.variant)).exists():
                verdict = _judge(ran, target, planned, reference, model, feeds_file(), store)
            else:
                verdict = _judge_without_plan(ran, reference, model, feeds_file())
        _save(folder, verdict, artifact, result["emulated"])

    path = store.make(key, fill, what=f"verify {artifact.id}")
    saved = json.loads((path / "verify.json").read_text())
    document = saved["document"]
    if looked is not None:
        document["checks"] = [*looked["document"]["checks"][:-1], *document["checks"]]
    return Proof(document, saved["reason"], saved["runtime"], path, saved["emulated"])


def _look(target: str, artifact: Artifact, model: Model, store: Store, listener: Listener) -> Path:
    """The store entry of what the structure of an artifact shows that no runtime here can run."""
    key = fingerprint(
        stage="structure",
        artifact=artifact.digest,
        signature=model.signature.to_json(),
        code=code("structure.py", "targets"),
        versions=installed(find(target)),
    )

    def fill(folder: Path) -> None:
        listener.note(f"{target}: checking the structure of {artifact.scheme}")
        task = {
            "op": "structure",
            "artifact": str(artifact.path),
            "signature": model.signature.to_json(),
            "scheme": artifact.scheme,
        }
        (found,) = worker.run(target, [task])
        if "error" in found:
            raise found["error"]
        checks = checks_of(found["findings"], found["mutant"])
        failed = next((c for c in checks if c.passed is False), None)
        document = {
            "schema": "edgekit.verify/1",
            "artifact": artifact.id,
            "against": AGAINST,
            "checks": [c.to_json() for c in checks],
            "outputs": [],
            "first_bad_layer": None,
            "self_test": {c.name: c.passed for c in checks if c.name == "self-test"},
            "passed": failed is None,
        }
        reason = None if failed is None else f"{failed.name}: {failed.detail}"
        told = {key: found[key] for key in ("runtime", "unemulated")}
        (folder / "verify.json").write_text(
            json.dumps({"document": document, "reason": reason, **told})
        )

    return store.make(key, fill, what=f"structure {artifact.id}")


def _emulation(target: str) -> dict[str, Any]:
    """What an emulated proof depends on as well: the emulation, and what it computes with."""
    if unavailable(target) is None:
        return {}
    return {"emulation": code("targets"), "emulation_versions": versions("torch")}


@dataclass(frozen=True)
class _Ran:
    """An artifact's answers, ``outputs.npz`` in ``folder``, and what its worker told of them."""

    folder: Path
    artifact: Artifact
    result: Mapping[str, Any]
    unrounded: Mapping[str, Any]

    def outputs(self) -> Arrays:
        return load_arrays(self.folder / "outputs.npz")

    def judge(
        self,
        held: verify.Reference,
        signature: Signature,
        faults: Sequence[str] | None,
        against: str,
    ) -> Verdict:
        """See `edgekit.verify.judge`; ``faults`` are its ``stored_faults``."""
        from edgekit import verify

        return verify.judge(
            held,
            signature,
            self.outputs(),
            self.result["order"],
            self.result["distinct"],
            stored_faults=faults,
            runtime=self.result["runtime"],
            against=against,
        )


def _judge(
    ran: _Ran,
    target: str,
    planned: Planned,
    reference: Referenced,
    model: Model,
    feeds_file: Path,
    store: Store,
) -> Verdict:
    import torch

    from edgekit import verify
    from edgekit.compress.dynamic import as_computed
    from edgekit.compress.graph import graph_module
    from edgekit.compress.plan import QuantPlan
    from edgekit.compress.unrounded import Unrounded

    artifact, left_out = ran.artifact, Unrounded.from_json(ran.unrounded)
    name = plan_name(target, artifact.scheme, artifact.variant)
    program = torch.export.load(planned.program(name))
    made = QuantPlan.from_json(json.loads(planned.plan(name).read_text()))
    made = dataclasses.replace(made, variant=artifact.variant)
    plan = as_computed(graph_module(program), made, find(target))
    computed = left_out.without(program, plan)
    facts, feeds = reference.facts()[name], load_arrays(feeds_file)
    against = "plan"
    if computed != plan:
        against = f"plan, without the rounding of {left_out.words(program, plan)}"
    elif plan != made:
        against = "plan, with the runtime's own scales of inputs that it quantizes as it runs"
    other = _Otherwise(name, program, computed, facts["steps"], planned, reference, model)
    if computed == made:
        outputs = load_arrays(reference.path / f"outputs-{name}.npz")
    else:
        outputs = other.outputs(feeds, store)
    held = verify.Reference(
        scheme=artifact.scheme,
        feeds=feeds,
        outputs=outputs,
        steps=facts["steps"],
        probes=reference.probes,
        floor=facts["floor"],
        probe_floor=facts["probe_floor"],
        ranges=verify.input_ranges(program, plan, [s.name for s in model.signature.inputs]),
    )
    stored = json.loads((artifact.path.parent / "convert.json").read_text())["stored"]
    carried = left_out.not_stored().without(program, plan)
    faults = verify.compare_stored(program, carried, stored) if plan.edges else None
    judge = functools.partial(ran.judge, signature=model.signature, faults=faults, against=against)
    if not other.has_own_floors(plan, made):
        verdict = judge(held)
    else:
        # The floors of what was computed take long. What keeps within the scheme's own figures
        # needs none, where the plan's floors leave these as they are.
        verdict = judge(dataclasses.replace(held, floor=None, probe_floor=None))
        floors = (held.floor, held.probe_floor)
        if not verdict.passed or any(verify.lowers(held.scheme, floor) for floor in floors):
            verdict = judge(dataclasses.replace(held, **other.floors(feeds, store)))
    verdict = verify.excuse_rare(
        verdict,
        lambda: judge(dataclasses.replace(held, **other.floors(feeds, store, times=_RARE_TIMES))),
        functools.partial(other.moved, feeds),
    )
    return verify.look_closer(verdict, target, program, plan, model.signature, feeds)


@dataclass(frozen=True)
class _Otherwise:
    """Answers of a plan as a runtime computes it: with fewer roundings, or with scales of its own.

    They are kept in the store, as several runtimes may compute the same.

    Attributes:
        name: of the plan.
        program: that it belongs to.
        plan: as the runtime computes it.
        steps: of the outputs in the plan: a result that is not rounded is still held to them.
        planned: the plans.
        reference: the plan's own answers.
        model: gives the signature.
    """

    name: str
    program: torch.export.ExportedProgram
    plan: QuantPlan
    steps: Mapping[str, float | None]
    planned: Planned
    reference: Referenced
    model: Model

    def has_own_floors(self, plan: QuantPlan, made: QuantPlan) -> bool:
        """Whether rounding noise moves these answers by another measure than the plan's.

        Args:
            plan: the plan with the runtime's scales, and all roundings.
            made: as it was made.
        """
        from edgekit.verify import output_steps

        if len(self.plan.edges) == len(plan.edges):
            return plan != made and plan.rounds
        return output_steps(self.program, self.plan, self._sides()[1]) != self.steps

    def outputs(self, feeds: Arrays, store: Store) -> Arrays:
        """The answers to ``feeds``, by output name."""

        def fill(folder: Path) -> None:
            from edgekit.compress.evaluate import evaluate

            np.savez(folder / "outputs.npz", **evaluate(self._module(), feeds, *self._sides()))  # type: ignore[arg-type]

        path = store.make(self._key("answers"), fill, what=f"answers {self.name}")
        return load_arrays(path / "outputs.npz")

    def floors(self, feeds: Arrays, store: Store, *, times: int = 1) -> dict[str, Any]:
        """``floor`` and ``probe_floor``, see `edgekit.export.reference.rounding_floors`."""
        outputs = self.outputs(feeds, store)
        signature, scheme = self.model.signature, self.plan.scheme
        n = len(feeds[self._sides()[0][0]]) - self.reference.probes

        def fill(folder: Path) -> None:
            made = rounding_floors(
                signature, self._module(), feeds, outputs, self.steps, n, scheme, times=times
            )
            (folder / "floors.json").write_text(json.dumps(made))

        key = self._key("floors" if times == 1 else f"floors of {times}")
        path = store.make(key, fill, what=f"floors {self.name}")
        loaded: dict[str, Any] = json.loads((path / "floors.json").read_text())
        return loaded

    def moved(self, feeds: Arrays, samples: Sequence[int]) -> Arrays:
        """How far noise takes the answers to some samples, see `edgekit.verify.excuse_rare`."""
        from edgekit.compress.evaluate import evaluate, with_rounding_noise

        module, (names, outs) = self._module(), self._sides()
        few = {name: feeds[name][list(samples)] for name in names}
        right = evaluate(module, few, names, outs, together=False)
        most = {name: np.zeros(len(samples)) for name in outs}
        for draw in range(_SAMPLE_DRAWS):
            noisy = with_rounding_noise(module, draw=draw)
            found = evaluate(noisy, few, names, outs, together=False)
            for name in outs:
                off = (found[name].astype(np.float64) - right[name]).reshape(len(samples), -1)
                most[name] = np.maximum(most[name], np.sqrt((off * off).sum(axis=1)))
        return most

    def _module(self) -> fx.GraphModule:
        from edgekit.compress.render import render

        return render(self.program, self.plan, "fake")

    def _sides(self) -> tuple[list[str], list[str]]:
        signature = self.model.signature
        return [s.name for s in signature.inputs], [s.name for s in signature.outputs]

    def _key(self, stage: str) -> str:
        return fingerprint(
            stage=stage,
            reference=self.reference.key,
            name=self.name,
            plan=self.plan.to_json(),
            code=code("compress", "parity", "floors.py", "export/reference.py"),
            versions=versions("torch", "numpy"),
            isa=isa(),
        )


def _judge_without_plan(
    ran: _Ran, reference: Referenced, model: Model, feeds_file: Path
) -> Verdict:
    from edgekit import verify

    held = verify.Reference(
        scheme=ran.artifact.scheme,
        feeds=load_arrays(feeds_file),
        outputs=load_arrays(reference.path / "outputs-fp32.npz"),
        steps={spec.name: None for spec in model.signature.outputs},
        probes=reference.probes,
    )
    return verify.judge_without_plan(
        held,
        model.signature,
        ran.outputs(),
        ran.result["order"],
        ran.result["distinct"],
        runtime=ran.result["runtime"],
    )


def _save(folder: Path, verdict: Verdict, artifact: Artifact, emulated: bool) -> None:
    saved = {
        "document": verdict.document(artifact.id),
        "reason": verdict.reason,
        "runtime": verdict.runtime,
        "emulated": emulated,
    }
    (folder / "verify.json").write_text(json.dumps(saved))
