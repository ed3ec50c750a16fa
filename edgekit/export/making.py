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
    model = sides[FLOAT_IO].model

    def one(target: str) -> list[Row]:
        rows: dict[str, Row] = {}
        mine = [j for j in jobs if j.through == target]
        for io in dict.fromkeys(j.io for j in mine):
            some = [j for j in mine if j.io == io]
            about = converting.about_of(model, io)
            done = _make_target(some, sides[io], store, request, calib, about)
            rows |= {r.id: r for r in done}
        return [rows[j.id] for j in mine]

    made: list[Row] = []
    with (
        request.listener.progress("converting and proving", len(targets)) as advance,
        ThreadPoolExecutor(max_workers=_at_a_time(jobs)) as pool,
    ):
        running = [pool.submit(one, target) for target in targets]
        try:
            # Where the model's own answers are no good, that comes first.
            sides[FLOAT_IO].answers.result()
            for future in running:
                made.extend(future.result())
                advance(1)
        except BaseException:
            _abandon(running)
            raise
    return made


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


def _make_target(
    jobs: Sequence[Job],
    side: Side,
    store: Store,
    request: ExportRequest,
    calib: Samples | None,
    about: converting.About | None,
) -> list[Row]:
    """The artifacts of one target and one io."""
    asked = list(dict.fromkeys((j.scheme, j.variant) for j in jobs))
    try:
        made = _convert(jobs[0].through, asked, side, store, request, calib, about)
    except WorkerCrashed as error:
        if not request.keep_going:
            raise
        made = dict.fromkeys(asked, error)
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
        row = replace(row, least_float=side.reference.least_bytes())
        rows.append(_prove(row, artifact, side, store, request))
    return rows


def _convert(
    target: str,
    asked: Sequence[converting.Wanted],
    side: Side,
    store: Store,
    request: ExportRequest,
    calib: Samples | None,
    about: converting.About | None,
) -> dict[converting.Wanted, Artifact | EdgekitError]:
    """What was asked of one target, or the errors with which it refuses, and the float twin.

    Raises:
        EdgekitError: it refuses one, without ``keep_going``.
        WorkerCrashed: the converter or the engine died.
    """
    planned, signature, listener = side.planned, side.model.signature, request.listener

    def convert(
        some: Sequence[converting.Wanted],
    ) -> dict[converting.Wanted, Artifact | EdgekitError]:
        return converting.convert(
            target, some, planned, signature, store, listener, io=side.io, about=about
        )

    beside = request.bench or request.pruned_from is not None
    wanted = list(dict.fromkeys([*asked, FLOAT])) if beside else list(asked)
    ours = [w for w in wanted if request.engine is None or w == FLOAT]
    made = convert(ours) if ours else {}
    if request.engine is not None and calib is not None:
        engine = engines.find(request.engine)
        for one in (w for w in wanted if w not in ours):
            made[one] = converting.convert_by_engine(
                engine, target, one[0], planned, calib, signature, store, listener, about=about
            )
    results = [made[w] for w in asked]
    refused = next((r for r in results if isinstance(r, EdgekitError)), None)
    if refused is not None and not request.keep_going:
        raise refused
    sizes = [r.bytes for r in results if isinstance(r, Artifact)]
    if FLOAT not in made and any(size >= side.reference.least_bytes() for size in sizes):
        made |= convert([FLOAT])
    return made


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
