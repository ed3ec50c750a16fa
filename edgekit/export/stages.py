"""The stages of an export, each kept in the store under everything that its result depends on."""

from __future__ import annotations

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
    from edgekit.verify import Verdict

Arrays = dict[str, npt.NDArray[Any]]

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
]


@dataclass(frozen=True)
class Referenced:
    """The store entry of reference answers, and the samples that they answer.

    Attributes:
        key: of the entry.
        path: holds ``outputs-float.npz``, ``outputs-<scheme>.npz`` and ``facts.json``.
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
        """Output steps and rounding floor by scheme."""
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
    schemes: Sequence[str],
    store: Store,
    listener: Listener,
) -> Referenced:
    """Answers of the float model and of every plan, on the samples and on extreme inputs."""
    key = fingerprint(
        stage="reference",
        plan=planned.key,
        samples=None if samples is None else [samples.digest, len(samples)],
        schemes=sorted(schemes),
        code=code("compress", "parity", "verify.py"),
        versions=versions("torch", "numpy"),
        isa=isa(),
    )
    n = GOLDEN_SAMPLES if samples is None else len(samples)

    def fill(folder: Path) -> None:
        import torch

        from edgekit.compress.evaluate import evaluate, with_rounding_noise
        from edgekit.compress.plan import QuantPlan
        from edgekit.compress.render import render
        from edgekit.verify import output_steps, rounding_floor

        feeds, _ = gather(model, samples)
        names = [s.name for s in model.signature.inputs]
        outs = [s.name for s in model.signature.outputs]
        facts: dict[str, Any] = {}
        total = len(feeds[names[0]])
        for scheme in dict.fromkeys(["fp32", *schemes]):
            file = planned.plan(scheme)
            program = torch.export.load(planned.program(scheme))
            plan = (
                QuantPlan.from_json(json.loads(file.read_text()))
                if file.exists()
                else QuantPlan("fp32", _digest_of(program))
            )
            module = render(program, plan, "fake")
            with listener.progress(f"evaluating {scheme} in torch", total) as advance:
                answers = evaluate(module, feeds, names, outs, progress=advance)
            _check_finite(answers, scheme)
            np.savez(folder / f"outputs-{scheme}.npz", **answers)  # type: ignore[arg-type]
            steps = output_steps(program, plan, outs)
            floors: dict[str, Any] = {"floor": None, "probe_floor": None}
            if plan.edges:
                parts = {
                    "floor": (slice(0, min(FLOOR_SAMPLES, n)), 1),
                    "probe_floor": (slice(n, total), PROBE_DRAWS),
                }
                for kind, (part, draws) in parts.items():
                    few = {k: v[part] for k, v in feeds.items()}
                    right = {k: v[part] for k, v in answers.items()}
                    found = []
                    for draw in range(draws):
                        disturbed = evaluate(
                            with_rounding_noise(module, draw=draw), few, names, outs
                        )
                        found.append(rounding_floor(model.signature, right, disturbed, steps))
                    floors[kind] = _lowest(found)
            facts[scheme] = {"steps": steps, **floors}
        (folder / "facts.json").write_text(json.dumps(facts))

    path = store.make(key, fill, what="reference")
    probes = len(_probes(model, None))
    return Referenced(key, path, samples, n, probes)


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
    schemes: Sequence[str],
    planned: Planned,
    signature: Signature,
    store: Store,
    listener: Listener,
) -> dict[str, Artifact | EdgekitError]:
    """Converts for one target, in one worker process for all schemes that are not in the store.

    Returns:
        By scheme, the artifact, or the error with which the target refused it.

    Raises:
        WorkerCrashed: the converter died.
    """
    made = find(target)
    keys = {s: _convert_key(made, target, s, planned, signature) for s in schemes}
    missing = [s for s in schemes if store.get(keys[s]) is None]
    refused: dict[str, EdgekitError] = {}
    with tempfile.TemporaryDirectory(prefix="edgekit-convert-") as scratch:
        if missing:
            listener.note(f"{target}: converting {', '.join(missing)}")
            refused = _run_conversions(made, target, missing, planned, signature, Path(scratch))
        result: dict[str, Artifact | EdgekitError] = {}
        for scheme in schemes:
            if scheme in refused:
                result[scheme] = refused[scheme]
                continue
            source = Path(scratch) / scheme
            entry = store.make(
                keys[scheme],
                lambda folder, source=source: _copy(source, folder),  # type: ignore[misc]
                what=f"convert {target} {scheme}",
            )
            result[scheme] = _artifact(entry, made, scheme)
    return result


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
                {"op": "absorbed", "artifact": str(artifact.path)},
            ],
        )
        for answer in (result, kernels):
            if "error" in answer:
                raise answer["error"]
        absorbed = kernels["convolutions"]
        _judge(folder, result, absorbed, target, artifact, planned, reference, model, feeds_file())

    path = store.make(key, fill, what=f"verify {target} {artifact.scheme}")
    saved = json.loads((path / "verify.json").read_text())
    return Proof(saved["document"], saved["reason"], saved["runtime"], path)


def _judge(
    folder: Path,
    result: Mapping[str, Any],
    absorbed: Sequence[int],
    target: str,
    artifact: Artifact,
    planned: Planned,
    reference: Referenced,
    model: Model,
    feeds_file: Path,
) -> None:
    import torch

    from edgekit import verify
    from edgekit.compress.evaluate import evaluate
    from edgekit.compress.plan import QuantPlan
    from edgekit.compress.render import GATES, RESULTS, render, without_convolutions

    scheme = artifact.scheme
    if not planned.plan(scheme).exists():
        _judge_without_plan(folder, result, artifact, reference, model, feeds_file)
        return
    program = torch.export.load(planned.program(scheme))
    plan = QuantPlan.from_json(json.loads(planned.plan(scheme).read_text()))
    facts = reference.facts()[scheme]
    feeds = load_arrays(feeds_file)
    outputs = load_arrays(reference.path / f"outputs-{scheme}.npz")
    against = "plan"
    computed = without_convolutions(program, plan, absorbed)
    unstored = [i for i in absorbed if i in (GATES, RESULTS)]
    carried = without_convolutions(program, plan, unstored)
    if len(computed.edges) < len(plan.edges):
        # The runtime's kernels round less often than the plan: so must what they are held against.
        inputs = [s.name for s in model.signature.inputs]
        module = render(program, computed, "fake")
        outputs = evaluate(module, feeds, inputs, [s.name for s in model.signature.outputs])
        against = f"plan, without the rounding of {_left_out(program, plan, absorbed)}"
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


def _left_out(program: Any, plan: Any, absorbed: Sequence[int]) -> str:
    """What a runtime does not round, in words."""
    from edgekit.compress.render import GATES, RESULTS, without_convolutions

    def fewer(ordinals: Sequence[int]) -> int:
        return len(plan.edges) - len(without_convolutions(program, plan, ordinals).edges)

    sums = [i for i in absorbed if i not in (GATES, RESULTS)]
    parts = [
        f"{fewer(sums)} convolutions that are added at once" if sums else "",
        "what is inside of SiLUs" if GATES in absorbed and fewer([GATES]) else "",
        "linear layers that floating point follows" if RESULTS in absorbed else "",
    ]
    if RESULTS in absorbed and not fewer([RESULTS]):
        parts.pop()
    return " and of ".join(p for p in parts if p)


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
    schemes: Sequence[str],
    planned: Planned,
    signature: Signature,
    scratch: Path,
) -> dict[str, EdgekitError]:
    tasks: list[worker.Task] = []
    for scheme in schemes:
        folder = scratch / scheme
        folder.mkdir()
        out = folder / f"model{made.suffix}"
        tasks.append(
            {
                "op": "convert",
                "program": str(planned.program(scheme)),
                "plan": str(planned.plan(scheme)),
                "signature": signature.to_json(),
                "out": str(out),
            }
        )
        tasks.append({"op": "inspect", "artifact": str(out)})
        tasks.append({"op": "stored", "artifact": str(out)})
    results = worker.run(target, tasks)
    refused: dict[str, EdgekitError] = {}
    for scheme, (done, seen, stored) in zip(
        schemes, zip(results[0::3], results[1::3], results[2::3], strict=True), strict=True
    ):
        failed = next((r["error"] for r in (done, seen, stored) if "error" in r), None)
        if failed is not None:
            refused[scheme] = failed
            continue
        facts = {
            "files": [Path(f).name for f in done["files"]],
            "placement": seen["placement"],
            "stored": stored["stored"],
        }
        (scratch / scheme / "convert.json").write_text(json.dumps(facts))
    return refused


def _convert_key(
    made: Target, target: str, scheme: str, planned: Planned, signature: Signature
) -> str:
    return fingerprint(
        stage="convert",
        target=target,
        scheme=scheme,
        plan=sha256_of(planned.plan(scheme)),
        program=planned.key,
        signature=signature.to_json(),
        code=code("compress", "targets"),
        versions={**installed(made), **versions("torch", "torchao", "edgekit")},
    )


def _artifact(entry: Path, made: Target, scheme: str) -> Artifact:
    names = json.loads((entry / "convert.json").read_text())["files"]
    return Artifact.from_files(
        [entry / name for name in names],
        target=made.id,
        delegate=made.delegates[0],
        scheme=scheme,
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
