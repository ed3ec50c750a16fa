"""Making and proving: one target after the other, beside the answers that they are held against."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, Final

from edgekit import cores, engines
from edgekit.artifact import Artifact, Store
from edgekit.data import Samples
from edgekit.device import Job
from edgekit.errors import EdgekitError, WorkerCrashed
from edgekit.export import converting, proving
from edgekit.export.beside import Aside, beside
from edgekit.export.document import Row
from edgekit.export.line import in_line
from edgekit.export.planning import Planned
from edgekit.export.proving import Proof
from edgekit.export.reference import Referenced, refer
from edgekit.export.request import ExportRequest
from edgekit.export.sides import Given, Side, bordered
from edgekit.names import FLOAT_IO, NO_VNNI, OVERRIDES
from edgekit.runtime.cpu import lacks_vnni
from edgekit.targets import worker

__all__ = ["make"]

FLOAT: Final[converting.Wanted] = ("fp32", None)
"""The float twin. Latency is compared with it, and parameters are counted in it; where nobody asks
for these, an artifact that is smaller than the float model's numbers needs none."""

_Converted = dict[converting.Wanted, Artifact | EdgekitError]
"""What was made of one target and one io, or the errors with which it refused."""


def make(
    jobs: Sequence[Job],
    given: Mapping[str, Given],
    planned: Planned,
    plans: Sequence[str],
    store: Store,
    request: ExportRequest,
    calib: Samples | None,
) -> tuple[dict[str, Side], list[Row]]:
    """Converts and proves every job.

    Args:
        jobs: what to make.
        given: by io, what artifacts are made for.
        planned: the plans of the model's own tensors.
        plans: names of those that are wanted.
        store: where everything is kept.
        request: of the export.
        calib: for engines.

    Returns:
        The sides by io, their answers known, and a row for every job, in order.
    """
    model = given[FLOAT_IO].model
    its = {
        io: planned if io == FLOAT_IO else bordered(model, planned, plans, store, io)
        for io in given
    }

    def answer(aside: Aside) -> Mapping[str, Referenced]:
        return {
            io: refer(one.model, its[io], one.samples, plans, store, aside, tick=aside.tick)
            for io, one in given.items()
        }

    # Converting needs the plan alone, and happens in other processes.
    with cores.shared(_at_a_time(jobs) + 1), beside(answer, request.listener) as answers:
        sides = {io: Side(io, one.model, its[io], answers, one.feeds) for io, one in given.items()}
        rows = _each_target(jobs, sides, store, request, calib)
    return sides, rows


def _each_target(
    jobs: Sequence[Job],
    sides: Mapping[str, Side],
    store: Store,
    request: ExportRequest,
    calib: Samples | None,
) -> list[Row]:
    """Converts and proves, target by target; several at a time where there are cores."""
    targets = list(dict.fromkeys(j.through for j in jobs))
    about = {io: converting.about_of(sides[FLOAT_IO].model, io) for io in sides}
    mine = {t: [j for j in jobs if j.through == t] for t in targets}

    def convert(target: str) -> dict[str, _Converted]:
        ios = dict.fromkeys(j.io for j in mine[target])
        return {
            io: _convert_jobs(
                [j for j in mine[target] if j.io == io],
                sides[io],
                store,
                request,
                calib,
                about[io],
            )
            for io in ios
        }

    def prove(target: str, made: dict[str, _Converted]) -> list[Row]:
        rows: dict[str, Row] = {}
        for io, some in made.items():
            asked = [j for j in mine[target] if j.io == io]
            done = _prove_jobs(asked, some, sides[io], store, request, about[io])
            rows |= {r.id: r for r in done}
        return [rows[j.id] for j in mine[target]]

    at_a_time = _at_a_time(jobs)
    with (
        request.listener.progress("converting and proving", len(targets)) as advance,
        ThreadPoolExecutor(max_workers=at_a_time) as pool,
    ):
        rows = in_line(
            targets,
            convert,
            prove,
            sides[FLOAT_IO].answers,
            pool=pool,
            at_a_time=at_a_time,
            abandon=_abandon,
            done=lambda: advance(1),
        )
    return [row for target in targets for row in rows[target]]


def _at_a_time(jobs: Sequence[Job]) -> int:
    """How many targets are converted and proven at a time."""
    return min(len({j.through for j in jobs}), cores.usable(), 3)


def _abandon(running: Sequence[Future[Any]]) -> None:
    """Ends what is not wanted any more; else leaving the pool would wait for whole conversions."""
    for future in running:
        future.cancel()
    # A thread between two workers starts the next one: until all threads are through. A second
    # Ctrl-C changes nothing, as leaving here would wait for the conversions after all.
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            worker.stop()
            if not wait(running, timeout=0.1).not_done:
                return


def _convert_jobs(
    jobs: Sequence[Job],
    side: Side,
    store: Store,
    request: ExportRequest,
    calib: Samples | None,
    about: converting.About | None,
) -> _Converted:
    """The artifacts of one target and one io, and their float twin where it is asked for.

    Raises:
        EdgekitError: the target refuses one, without ``keep_going``.
        WorkerCrashed: the converter or the engine died, without ``keep_going``.
    """
    asked = list(dict.fromkeys((j.scheme, j.variant) for j in jobs))
    target, planned, signature = jobs[0].through, side.planned, side.model.signature
    beside = request.bench or request.pruned_from is not None
    wanted = list(dict.fromkeys([*asked, FLOAT])) if beside else list(asked)
    ours = [w for w in wanted if request.engine is None or w == FLOAT]
    try:
        made = _ours(target, ours, side, store, request, about) if ours else {}
        if request.engine is not None and calib is not None:
            engine = engines.find(request.engine)
            for one in (w for w in wanted if w not in ours):
                made[one] = converting.convert_by_engine(
                    engine,
                    target,
                    one[0],
                    planned,
                    calib,
                    signature,
                    store,
                    request.listener,
                    about=about,
                )
    except WorkerCrashed as error:
        if not request.keep_going:
            raise
        made = dict.fromkeys(asked, error)
    results = [made[w] for w in asked]
    refused = next((r for r in results if isinstance(r, EdgekitError)), None)
    if refused is not None and not request.keep_going:
        raise refused
    return made


def _ours(
    target: str,
    some: Sequence[converting.Wanted],
    side: Side,
    store: Store,
    request: ExportRequest,
    about: converting.About | None,
) -> _Converted:
    signature, listener = side.model.signature, request.listener
    return converting.convert(
        target, some, side.planned, signature, store, listener, io=side.io, about=about
    )


def _prove_jobs(
    jobs: Sequence[Job],
    made: _Converted,
    side: Side,
    store: Store,
    request: ExportRequest,
    about: converting.About | None,
) -> list[Row]:
    """A row for every job: its artifact, and its proof."""
    least = side.reference.least_bytes()
    sizes = [a.bytes for j in jobs if isinstance(a := made[j.scheme, j.variant], Artifact)]
    if FLOAT not in made and any(size >= least for size in sizes):
        try:
            made = made | _ours(jobs[0].through, [FLOAT], side, store, request, about)
        except WorkerCrashed as error:
            if not request.keep_going:
                raise
            made = dict.fromkeys(made, error)
    twin = made.get(FLOAT)
    rows = []
    for job in jobs:
        artifact = made[job.scheme, job.variant]
        row = Row(
            job=job,
            artifact=artifact if isinstance(artifact, Artifact) else None,
            twin=twin if isinstance(twin, Artifact) else None,
        )
        if isinstance(artifact, EdgekitError):
            rows.append(replace(row, status="failed", reason=artifact.message))
            continue
        row = replace(row, least_float=least)
        rows.append(_prove(row, artifact, side, store, request))
    return rows


def _prove(
    row: Row,
    artifact: Artifact,
    side: Side,
    store: Store,
    request: ExportRequest,
) -> Row:
    row = replace(row, placement=converting.placement(artifact))
    try:
        proof: Proof = proving.prove(
            row.job.through,
            artifact,
            side.planned,
            side.reference,
            side.model,
            side.feeds.file,
            store,
            request.listener,
        )
    except EdgekitError as error:
        if not request.keep_going and not isinstance(error, WorkerCrashed):
            raise
        return replace(row, status="failed", reason=error.message)
    row = replace(row, proof=proof)
    if not proof.document["passed"]:
        return replace(row, status="failed", reason=_with_cause(row, proof.reason))
    return row


def _with_cause(row: Row, reason: str | None) -> str | None:
    """Says where this machine itself is why an artifact for others gives wrong answers."""
    job = row.job
    needs = job.target in OVERRIDES[NO_VNNI] and job.scheme == "w8a8" and job.variant is None
    if not (needs and lacks_vnni()):
        return reason
    return f"{reason}; this machine has no VNNI and can't prove an artifact that needs it"
