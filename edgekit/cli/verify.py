"""`edgekit verify`: a bundle's artifacts, run by their real runtimes on the golden vectors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli._found import Found, document_of, failed, text_of
from edgekit.cli._libraries import subdued
from edgekit.cli._metadata import metadata_check, metadata_tasks
from edgekit.cli._output import emit, json_option, progress, verbosity_options
from edgekit.cli._pictures import border_check, from_sources_check
from edgekit.cli._structure import SETTLED, look, through
from edgekit.errors import (
    BadData,
    EdgekitError,
    MissingDependency,
    UnsupportedError,
    UsageError,
)
from edgekit.scratch import scratch

if TYPE_CHECKING:
    from edgekit.parity import Check, ParityReport
    from edgekit.runtime.bundle import Bundle, BundleArtifact
    from edgekit.runtime.session import Array

__all__ = ["command"]

_FEW = 3
"""So many elements may be off by more than the allowed steps, however few there are in all."""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--artifact",
    "ids",
    multiple=True,
    metavar="ID",
    help="Verify this artifact; may be repeated. Without it: all of them.",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Verify the others where a runtime is missing; the exit code is then 1.",
)
@json_option
@verbosity_options
def command(bundle: Path, ids: tuple[str, ...], keep_going: bool, as_json: bool) -> int:
    """Run a bundle's artifacts in their runtimes against the plan.

    Every file is checked against the manifest. Then each artifact is loaded by its own runtime, in
    a process of its own, and has to answer the bundle's golden vectors as the plan does, within
    the limits of its scheme, and alike in 20 runs. Where this system has no such runtime (Core ML
    off the Mac), the target's emulation takes its place, and the artifact counts as "emulated".
    Where there is neither (ExecuTorch's Vulkan delegate), its file alone is checked, and it counts
    as "structural".

    \b
    Exit codes: 0 nothing failed, 1 an artifact gives other answers, 3 a runtime is missing, 6 the
    bundle is not what its manifest says.

    \b
    edgekit verify mobilenet.zip
    edgekit verify mobilenet --artifact tflite-w8a8 --json
    """
    from edgekit.names import unknown
    from edgekit.runtime.bundle import Bundle

    with Bundle.open(bundle) as opened, scratch("verify") as folder:
        known = [artifact.id for artifact in opened.artifacts]
        for wrong in (id for id in ids if id not in known):
            raise UsageError(unknown(f"artifact of bundle {opened.name!r}", wrong, known))
        chosen = [a for a in opened.artifacts if not ids or a.id in ids]
        if not chosen:
            raise BadData(f"bundle {opened.name!r} holds no artifact")
        absent = _absent(chosen, keep_going)
        found = []
        with subdued(), progress(f"verifying {len(chosen)} artifacts", len(chosen)) as advance:
            for artifact in chosen:
                if artifact.id in absent:
                    found.append(failed(artifact, "installed", absent[artifact.id]))
                else:
                    found.append(_verify(opened, artifact, folder, keep_going))
                advance(1)
    document = document_of(bundle, found)
    emit(document, as_json, lambda: text_of(document))
    return 0 if document["passed"] else 1


def _absent(artifacts: Sequence[BundleArtifact], keep_going: bool) -> dict[str, EdgekitError]:
    """By artifact, why its runtime is not here.

    Raises:
        MissingDependency, UnsupportedError: the same for the first one, unless ``keep_going``.
    """
    from edgekit.targets import available, find, require_installed

    absent: dict[str, EdgekitError] = {}
    for artifact in artifacts:
        try:
            if artifact.target not in available():
                raise UnsupportedError(
                    f"artifact {artifact.id!r} is for {artifact.target}, which this edgekit does "
                    "not know",
                    hint="update edgekit, or choose others with --artifact",
                )
            require_installed(find(through(artifact)))
        except (MissingDependency, UnsupportedError) as error:
            if not keep_going:
                raise
            absent[artifact.id] = error
    return absent


def _verify(bundle: Bundle, artifact: BundleArtifact, folder: Path, keep_going: bool) -> Found:
    """Runs one artifact and judges it; what its runtime has against it is a failed check."""
    import numpy as np

    from edgekit.parity import TOLERANCES
    from edgekit.structure import only_by_structure
    from edgekit.targets import worker

    looked: tuple[Check, ...] = ()
    if only_by_structure(through(artifact)) is not None:
        found, unemulated = look(bundle, artifact, keep_going)
        if unemulated is not None or not found.passed:
            return found
        looked = found.checks[:-1]
    feeds, wanted, against = _golden(bundle, artifact)
    feeds, read = from_sources_check(bundle, artifact, feeds)
    try:
        path = bundle.place(artifact)
    except UnsupportedError as error:  # a runtime older than the artifact requires
        if not keep_going:
            raise
        return failed(artifact, "installed", error)
    np.savez(folder / "feeds.npz", allow_pickle=False, **feeds)
    task = {
        "op": "infer",
        "artifact": str(path.absolute()),
        "signature": artifact.signature.to_json(),
        "feeds": str(folder / "feeds.npz"),
        "outputs": str(folder / "outputs.npz"),
        "repeats": TOLERANCES[artifact.scheme].repeats,
    }
    tasks = [task, *metadata_tasks(bundle, artifact, path)]
    try:
        result, *told = worker.run(through(artifact), tasks)
        for answer in (result, *told):
            if "error" in answer:
                raise answer["error"]
    except SETTLED:
        raise
    except MissingDependency as error:  # installed, but it does not load
        if not keep_going:
            raise
        return failed(artifact, "installed", error)
    except EdgekitError as error:
        return failed(artifact, "runs", error)
    with np.load(folder / "outputs.npz", allow_pickle=False) as data:
        outputs = {name: data[name] for name in data.files}
    if against == "float":
        found = _judge_float(artifact, outputs, wanted, result)
    else:
        found = _judge(artifact, feeds, outputs, wanted, result, against)
    own = tuple(metadata_check(answer["faults"]) for answer in told)
    own += border_check(bundle, artifact)
    return dataclasses.replace(found, checks=(*looked, *read, *own, *found.checks))


def _golden(
    bundle: Bundle, artifact: BundleArtifact
) -> tuple[dict[str, Array], dict[str, Array], str]:
    """Feeds and right answers, arrays [n, *shape in the signature], and whose answers they are."""
    from edgekit.compress.plan import plan_name
    from edgekit.runtime.golden import unpack_golden

    listed = {entry["path"] for entry in bundle.manifest["files"]}
    plan = plan_name(artifact.target, artifact.scheme, artifact.variant)
    suffix = "" if artifact.border is None else f"-{artifact.io}"
    own, shared = f"golden-{artifact.id}.npz", f"golden-{plan}{suffix}.npz"
    if own in listed:
        (feeds, outputs), against = unpack_golden(bundle.read(own)), "itself when it was proven"
    elif shared in listed:
        (feeds, outputs), against = unpack_golden(bundle.read(shared)), "plan"
    else:
        # The float model is what a plan of fp32 says; of other schemes it tells only the gist.
        feeds, outputs = bundle.golden(artifact.io)
        against = "plan" if artifact.scheme == "fp32" else "float"
    signature = artifact.signature
    try:
        feeds = {s.name: feeds[s.name].reshape(-1, *s.shape) for s in signature.inputs}
        outputs = {s.name: outputs[s.name].reshape(-1, *s.shape) for s in signature.outputs}
    except (KeyError, ValueError) as error:
        raise BadData(f"the golden vectors do not fit the bundle's signature: {error}") from error
    counts = {len(array) for array in (*feeds.values(), *outputs.values())}
    if len(counts) != 1:
        raise BadData("the golden vectors do not fit the bundle's signature: their counts differ")
    return feeds, outputs, against


def _judge(
    artifact: BundleArtifact,
    feeds: Mapping[str, Array],
    outputs: Mapping[str, Array],
    wanted: Mapping[str, Array],
    result: Mapping[str, Any],
    against: str,
) -> Found:
    """Parity by the limits that the artifact was proven by."""
    from edgekit import verify

    steps = _figures(artifact.evidence.get("steps"))
    reference = verify.Reference(
        scheme=artifact.scheme,
        feeds=feeds,
        outputs=wanted,
        steps={spec.name: steps.get(spec.name) for spec in artifact.signature.outputs},
        floor=_figures(artifact.evidence.get("floor")),
    )
    verdict = verify.judge(
        reference,
        artifact.signature,
        outputs,
        result["order"],
        result["distinct"],
        stored_faults=None,
        runtime=result["runtime"],
        against=against,
    )
    return Found(
        artifact=artifact,
        checks=tuple(_of_few(check, verdict.report) for check in verdict.checks),
        against=against,
        runtime=verdict.runtime,
        n=verdict.report.samples,
        report=verdict.report,
        outputs=tuple(verdict.document(artifact.id)["outputs"]),
        emulated=result["emulated"],
    )


def _figures(stated: object) -> dict[str, float]:
    """The positive numbers that a manifest states there, by name: it may hold anything."""
    if not isinstance(stated, Mapping):
        return {}
    return {
        str(name): float(value)
        for name, value in stated.items()
        if isinstance(value, int | float) and 0 < value < math.inf
    }


def _of_few(check: Check, report: ParityReport) -> Check:
    """A share of one in a thousand says nothing of a hundred elements: `_FEW` may then be off."""
    name, _, output = check.name.partition(":")
    if name != "within-steps" or check.value is None or check.limit is None:
        return check
    elements = next(s.elements for s in report.outputs if s.name == output)
    limit = 1 - _FEW / elements if elements else check.limit
    if limit >= check.limit:
        return check
    return dataclasses.replace(check, passed=check.value >= limit, limit=limit)


def _judge_float(
    artifact: BundleArtifact,
    outputs: Mapping[str, Array],
    wanted: Mapping[str, Array],
    result: Mapping[str, Any],
) -> Found:
    """The check that a device makes, where the bundle does not say what the plan answers."""
    from edgekit.metrics import passes, sqnr_db
    from edgekit.parity import Check
    from edgekit.runtime.golden import GOLDEN_SQNR_DB

    limit = GOLDEN_SQNR_DB.get(artifact.scheme, 15.0)
    checks = []
    for name, right in wanted.items():
        ratio = sqnr_db(right, outputs[name], atol=1e-4)
        detail = "dB against the float model; the bundle has no answers of the plan"
        checks.append(Check(f"golden:{name}", passes(ratio, limit), ratio, limit, detail))
    distinct = result["distinct"]
    checks.append(
        Check("repeatable", distinct == 1, distinct, 1, "distinct outputs in 20 runs of one input")
    )
    count = len(next(iter(wanted.values())))
    runtime, emulated = result["runtime"], result["emulated"]
    return Found(artifact, tuple(checks), "float", runtime, count, emulated=emulated)
