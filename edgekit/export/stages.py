"""The stages of an export, each kept in the store under everything that its result depends on."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit import engines
from edgekit.artifact import Artifact, Store, fingerprint, sha256_of
from edgekit.compress.plan import plan_name
from edgekit.data import Samples
from edgekit.engines import Engine
from edgekit.engines._task import TASK
from edgekit.errors import BadData, EdgekitError, WorkerCrashed
from edgekit.export.keys import code, isa, versions
from edgekit.export.planning import Planned
from edgekit.export.request import Listener
from edgekit.model import Model
from edgekit.parity import TOLERANCES, extreme_probes
from edgekit.signature import Signature
from edgekit.targets import Target, find, installed, worker

if TYPE_CHECKING:
    from torch import fx

    from edgekit.verify import Verdict

Arrays = dict[str, npt.NDArray[Any]]
Wanted = tuple[str, str | None]
"""A scheme, and the variant of its plan or None."""

FLOOR_SAMPLES = 128
PROBE_DRAWS = 8
"""Probes are a handful: whether a rounding tips on one of them, one draw of noise does not tell."""
GOLDEN_SAMPLES = 8

__all__ = [
    "Proof",
    "Referenced",
    "convert",
    "convert_by_engine",
    "load_arrays",
    "prove",
    "refer",
    "rounding_floors",
]


@dataclass(frozen=True)
class Referenced:
    """The store entry of reference answers, and the samples that they answer.

    Attributes:
        key: of the entry.
        path: holds ``outputs-<name>.npz`` for every plan (``fp32`` is the float model) and
            ``facts.json``.
        samples: the samples; None where there are only made-up inputs.
        n: samples without the probes.
        probes: how many probes follow them.
    """

    key: str
    path: Path
    samples: Samples | None
    n: int
    probes: int

    def facts(self) -> dict[str, Any]:
        """Output steps and rounding floor by the plan's name."""
        loaded: dict[str, Any] = json.loads((self.path / "facts.json").read_text())
        return loaded

    def labels(self) -> npt.NDArray[np.int64] | None:
        """Class indices [n], or None where a sample has none."""
        if self.samples is None:
            return None
        found = [self.samples.label(i) for i in range(self.n)]
        if any(label is None for label in found):
            return None
        return np.asarray(found, np.int64)


@dataclass(frozen=True)
class Proof:
    """The store entry of one artifact's verification: ``verify.json`` and ``outputs.npz``."""

    document: Mapping[str, Any]
    reason: str | None
    runtime: str
    path: Path


def refer(
    model: Model,
    planned: Planned,
    samples: Samples | None,
    names: Sequence[str],
    store: Store,
    listener: Listener,
) -> Referenced:
    """Answers of the float model and of every plan, on the samples and on extreme inputs.

    ``names`` are those of plans (`edgekit.compress.plan.plan_name`).
    """
    key = fingerprint(
        stage="reference",
        plan=planned.key,
        samples=None if samples is None else [samples.digest, len(samples)],
        schemes=sorted(names),
        code=code("compress", "parity", "verify.py"),
        versions=versions("torch", "numpy"),
        isa=isa(),
    )
    n = GOLDEN_SAMPLES if samples is None else len(samples)

    def fill(folder: Path) -> None:
        import torch

        from edgekit.compress.evaluate import evaluate
        from edgekit.compress.plan import QuantPlan
        from edgekit.compress.render import render
        from edgekit.verify import output_steps

        feeds, _ = gather(model, samples)
        ins = [s.name for s in model.signature.inputs]
        outs = [s.name for s in model.signature.outputs]
        facts: dict[str, Any] = {}
        total = len(feeds[ins[0]])
        for name in dict.fromkeys(["fp32", *names]):
            file = planned.plan(name)
            program = torch.export.load(planned.program(name))
            plan = (
                QuantPlan.from_json(json.loads(file.read_text()))
                if file.exists()
                else QuantPlan("fp32", _digest_of(program))
            )
            module = render(program, plan, "fake")
            with listener.progress(f"evaluating {name} in torch", total) as advance:
                answers = evaluate(module, feeds, ins, outs, progress=advance)
            _check_finite(answers, name)
            np.savez(folder / f"outputs-{name}.npz", **answers)  # type: ignore[arg-type]
            steps = output_steps(program, plan, outs)
            floors: dict[str, Any] = {"floor": None, "probe_floor": None}
            if plan.rounds:
                floors = rounding_floors(model.signature, module, feeds, answers, steps, n)
            facts[name] = {"steps": steps, **floors}
        (folder / "facts.json").write_text(json.dumps(facts))

    path = store.make(key, fill, what="reference")
    probes = len(_probes(model, None))
    return Referenced(key, path, samples, n, probes)


def rounding_floors(
    signature: Signature,
    module: fx.GraphModule,
    feeds: Arrays,
    answers: Arrays,
    steps: Mapping[str, float | None],
    n: int,
) -> dict[str, Any]:
    """How far a plan's evaluation moves under rounding noise, on samples and on the probes.

    Args:
        signature: of the model.
        module: the plan's ``fake`` rendering.
        feeds: the samples, then the probes.
        answers: of ``module`` to them.
        steps: quantization steps of its outputs.
        n: how many of ``feeds`` are samples.
    """
    from edgekit.compress.evaluate import evaluate, with_rounding_noise
    from edgekit.verify import rounding_floor

    names, outs = ([s.name for s in side] for side in (signature.inputs, signature.outputs))
    total = len(feeds[names[0]])
    floors = {}
    for kind, part, draws in (
        ("floor", slice(0, min(FLOOR_SAMPLES, n)), 1),
        ("probe_floor", slice(n, total), PROBE_DRAWS),
    ):
        few = {k: v[part] for k, v in feeds.items()}
        right = {k: v[part] for k, v in answers.items()}
        found = []
        for draw in range(draws):
            noisy = with_rounding_noise(module, draw=draw)
            disturbed = evaluate(noisy, few, names, outs)
            found.append(rounding_floor(signature, right, disturbed, steps))
        floors[kind] = _lowest(found)
    return floors


def _lowest(floors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The lowest of every figure; None where no draw moved anything."""
    return {
        name: min((f[name] for f in floors if f[name] is not None), default=None)
        for name in floors[0]
    }


def gather(model: Model, samples: Samples | None) -> tuple[Arrays, int]:
    """Feeds [n + probes, *shape] by input name, and the number of probes.

    Without samples, the model's own example inputs under several seeds stand in for them.
    """
    if samples is None:
        rows = [
            {
                s.name: t.numpy()
                for s, t in zip(model.signature.inputs, model.example_inputs(seed), strict=True)
            }
            for seed in range(GOLDEN_SAMPLES)
        ]
    else:
        rows = [samples.feed(i) for i in range(len(samples))]
    ranges = {
        s.name: (
            min(float(r[s.name].min()) for r in rows),
            max(float(r[s.name].max()) for r in rows),
        )
        for s in model.signature.inputs
        if s.dtype.startswith("float")
    }
    extra = _probes(model, ranges)
    rows.extend(extra)
    feeds = {s.name: np.stack([r[s.name] for r in rows]) for s in model.signature.inputs}
    return feeds, len(extra)


def convert(
    target: str,
    wanted: Sequence[Wanted],
    planned: Planned,
    signature: Signature,
    store: Store,
    listener: Listener,
) -> dict[Wanted, Artifact | EdgekitError]:
    """Converts for one target, in one worker process for all that is not in the store.

    Args:
        target: a target id.
        wanted: pairs of a scheme and a variant of its plan, which may be None.
        planned: the plans.
        signature: of the model.
        store: where artifacts are kept.
        listener: hears of progress.

    Returns:
        By pair, the artifact, or the error with which the target refused it.

    Raises:
        WorkerCrashed: the converter died.
    """
    made = find(target)
    keys = {w: _convert_key(made, target, w, planned, signature) for w in wanted}
    missing = [w for w in wanted if store.get(keys[w]) is None]
    refused: dict[Wanted, EdgekitError] = {}
    with tempfile.TemporaryDirectory(prefix="edgekit-convert-") as scratch:
        if missing:
            listener.note(f"{target}: converting {', '.join(map(_shown, missing))}")
            refused = _run_conversions(made, target, missing, planned, signature, Path(scratch))
        result: dict[Wanted, Artifact | EdgekitError] = {}
        for one in wanted:
            if one in refused:
                result[one] = refused[one]
                continue
            source = Path(scratch) / _shown(one)
            entry = store.make(
                keys[one],
                lambda folder, source=source: _copy(source, folder),  # type: ignore[misc]
                what=f"convert {target} {_shown(one)}",
            )
            result[one] = _artifact(entry, made, *one)
    return result


def _shown(wanted: Wanted) -> str:
    """``w8a8``, or ``w8a8@x86-no-vnni`` for a variant."""
    return "@".join(filter(None, wanted))


def convert_by_engine(
    engine: Engine,
    target: str,
    scheme: str,
    planned: Planned,
    calib: Samples,
    signature: Signature,
    store: Store,
    listener: Listener,
) -> Artifact | EdgekitError:
    """What an engine quantizes for one target, in the target's worker process.

    Returns:
        The artifact, or the error with which the engine refused the model.

    Raises:
        WorkerCrashed: the engine or the converter died.
    """
    made = find(target)
    key = fingerprint(
        stage="engine",
        engine=engine.id,
        settings=dict(engine.defaults),
        target=target,
        scheme=scheme,
        program=planned.key,
        calib=[calib.digest, len(calib)],
        signature=signature.to_json(),
        code=code("compress", "engines", "targets"),
        versions={
            **installed(made),
            **engines.installed(engine),
            **versions("torch", "torchao", "edgekit"),
        },
    )
    if store.get(key) is None:
        listener.note(f"{target}: {engine.id} quantizes, {scheme}")
    with tempfile.TemporaryDirectory(prefix="edgekit-engine-") as scratch:
        folder = Path(scratch) / "made"

        def fill(entry: Path) -> None:
            folder.mkdir()
            out, feeds = folder / f"model{made.suffix}", Path(scratch) / "calib.npz"
            rows = [calib.feed(i) for i in range(len(calib))]
            arrays = {s.name: np.stack([row[s.name] for row in rows]) for s in signature.inputs}
            np.savez(feeds, **arrays)  # type: ignore[arg-type]
            task = {
                "op": TASK,
                "engine": engine.id,
                "settings": dict(engine.defaults),
                "program": str(planned.program("fp32")),
                "calib": str(feeds),
                "signature": signature.to_json(),
                "out": str(out),
            }
            done, seen = worker.run(target, [task, {"op": "inspect", "artifact": str(out)}])
            for answer in (done, seen):
                if "error" in answer:
                    raise answer["error"]
            files = [Path(f).name for f in done["files"]]
            facts = {"files": files, "placement": seen["placement"], "stored": []}
            (folder / "convert.json").write_text(json.dumps(facts))
            _copy(folder, entry)

        try:
            entry = store.make(key, fill, what=f"convert {target} {scheme} by {engine.id}")
        except WorkerCrashed:
            raise
        except EdgekitError as error:
            return error
    return _artifact(entry, made, scheme)


def placement(artifact: Artifact) -> dict[str, Any]:
    """What the target's `inspect` found when the artifact was made."""
    loaded: dict[str, Any] = json.loads((artifact.path.parent / "convert.json").read_text())
    found: dict[str, Any] = loaded["placement"]
    return found


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
    """Runs an artifact in its real runtime and judges its answers.

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
    )

    def fill(folder: Path) -> None:
        listener.note(f"{target}: running {artifact.scheme} in its runtime")
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

    path = store.make(
        key, fill, what=f"verify {target} {_shown((artifact.scheme, artifact.variant))}"
    )
    saved = json.loads((path / "verify.json").read_text())
    return Proof(saved["document"], saved["reason"], saved["runtime"], path)


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
        steps = verify.output_steps(program, computed, results)
        if steps != facts["steps"]:
            n = len(feeds[inputs[0]]) - reference.probes
            floors = rounding_floors(model.signature, module, feeds, outputs, steps, n)
            facts = {"steps": steps, **floors}
        against = f"plan, without the rounding of {left_out.words(program, plan)}"
    elif plan != made:
        inputs = [s.name for s in model.signature.inputs]
        results = [s.name for s in model.signature.outputs]
        module = render(program, plan, "fake")
        outputs = evaluate(module, feeds, inputs, results)
        n = len(feeds[inputs[0]]) - reference.probes
        if plan.rounds:
            floors = rounding_floors(model.signature, module, feeds, outputs, facts["steps"], n)
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
    _save(folder, verdict, artifact)


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
    _save(folder, verdict, artifact)


def _save(folder: Path, verdict: Verdict, artifact: Artifact) -> None:
    saved = {
        "document": verdict.document(artifact.id),
        "summary": verdict.report.summary(),
        "reason": verdict.reason,
        "runtime": verdict.runtime,
    }
    (folder / "verify.json").write_text(json.dumps(saved))


def load_arrays(path: Path) -> Arrays:
    """The arrays of an ``.npz`` of our own."""
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def _run_conversions(
    made: Target,
    target: str,
    wanted: Sequence[Wanted],
    planned: Planned,
    signature: Signature,
    scratch: Path,
) -> dict[Wanted, EdgekitError]:
    tasks: list[worker.Task] = []
    for one in wanted:
        name = plan_name(target, *one)
        folder = scratch / _shown(one)
        folder.mkdir()
        out = folder / f"model{made.suffix}"
        tasks.append(
            {
                "op": "convert",
                "program": str(planned.program(name)),
                "plan": str(planned.plan(name)),
                "variant": one[1],
                "signature": signature.to_json(),
                "out": str(out),
            }
        )
        tasks.append({"op": "inspect", "artifact": str(out)})
        tasks.append({"op": "stored", "artifact": str(out)})
    results = worker.run(target, tasks)
    refused: dict[Wanted, EdgekitError] = {}
    for one, (done, seen, stored) in zip(
        wanted, zip(results[0::3], results[1::3], results[2::3], strict=True), strict=True
    ):
        failed = next((r["error"] for r in (done, seen, stored) if "error" in r), None)
        if failed is not None:
            refused[one] = failed
            continue
        facts = {
            "files": [Path(f).name for f in done["files"]],
            "placement": seen["placement"],
            "stored": stored["stored"],
        }
        (scratch / _shown(one) / "convert.json").write_text(json.dumps(facts))
    return refused


def _convert_key(
    made: Target, target: str, wanted: Wanted, planned: Planned, signature: Signature
) -> str:
    return fingerprint(
        stage="convert",
        target=target,
        scheme=_shown(wanted),
        plan=sha256_of(planned.plan(plan_name(target, *wanted))),
        program=planned.key,
        signature=signature.to_json(),
        code=code("compress", "targets"),
        versions={**installed(made), **versions("torch", "torchao", "edgekit")},
    )


def _artifact(entry: Path, made: Target, scheme: str, variant: str | None = None) -> Artifact:
    names = json.loads((entry / "convert.json").read_text())["files"]
    return Artifact.from_files(
        [entry / name for name in names],
        target=made.id,
        delegate=made.delegates[0],
        scheme=scheme,
        variant=variant,
    )


def _copy(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)


def _probes(model: Model, ranges: Mapping[str, tuple[float, float]] | None) -> list[Arrays]:
    return [dict(p.feeds) for p in extreme_probes(model.signature, ranges=ranges)]


def _check_finite(answers: Arrays, scheme: str) -> None:
    for name, value in answers.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            bad = int(np.argwhere(~np.isfinite(value))[0][0])
            raise BadData(
                f"the model's own output {name!r} is NaN or infinite at sample {bad} ({scheme})",
                hint="check the weights and the data's scale",
            )


def _digest_of(program: Any) -> str:
    from edgekit.compress.graph import program_digest

    return program_digest(program)
