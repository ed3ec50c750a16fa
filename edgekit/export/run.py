"""The road: request in, bundle and document out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit import device as devices_
from edgekit import engines
from edgekit.artifact import Store, fingerprint
from edgekit.compress.plan import plan_name
from edgekit.data import Samples, load, load_pair
from edgekit.device import Device, Job, plan_targets
from edgekit.errors import Locked, UnsupportedError, UsageError
from edgekit.export import accuracy
from edgekit.export.counting import count, placed, source_of
from edgekit.export.document import Row, broken, build, gates_of, judged
from edgekit.export.feeds import Feeds
from edgekit.export.gates import Context, truth
from edgekit.export.given import about_given, given_plans
from edgekit.export.making import make
from edgekit.export.measuring import measure
from edgekit.export.packing import pack_result
from edgekit.export.planning import Planned, make_plan
from edgekit.export.reference import Referenced
from edgekit.export.request import MIN_CALIB, ExportRequest
from edgekit.export.scoring import reference_score, scored
from edgekit.export.sides import Given, Side, bordered_samples, check_io, given_for, uneven
from edgekit.export.systems import check_systems
from edgekit.model import Model
from edgekit.names import (
    BORDERS,
    CALIBRATED,
    FLOAT_IO,
    NHWC_IO,
    WAIVABLE,
    unknown,
)
from edgekit.pack import check_destination
from edgekit.scratch import scratch
from edgekit.targets import find, require_installed, worker

__all__ = ["ExportResult", "export_bundle", "samples_of"]


@dataclass(frozen=True)
class ExportResult:
    """What an export did.

    Attributes:
        document: the ``edgekit.export/1`` document.
        failed: ids of artifacts that failed, or gates that did not hold; empty if all is well.
        conversions: how many artifacts were converted anew rather than taken from the store.
    """

    document: Mapping[str, Any]
    failed: tuple[str, ...]
    conversions: int

    @property
    def exit_code(self) -> int:
        """0, or 1 if anything failed."""
        return 1 if self.failed else 0


def export_bundle(
    model: Model, request: ExportRequest, *, store: Store | None = None
) -> ExportResult:
    """Makes, proves, measures and packs what ``request`` asks for.

    Without ``keep_going`` the first target that can't be made ends the export with its error, and
    an artifact or gate that fails leaves ``request.out`` as it was.

    Raises:
        UsageError: unknown device or target, or a destination that holds something else.
        UnsupportedError: a target refused the model.
        BadData: calibration or evaluation data do not fit.
        Locked: another export writes to the same place.
        StorageError: no space or no permission.
        MissingDependency: a target's packages are not installed.
    """
    start = time.perf_counter()
    store = store or Store()
    profiles = [devices_.load(d) for d in request.devices]
    for name in request.waive:
        if name not in WAIVABLE:
            raise UsageError(unknown("gate to waive", name, WAIVABLE))
    jobs = plan_targets(profiles, request.targets, request.schemes, request.ios)
    if request.engine is not None:
        jobs = _without_variants(jobs, request)
    for job in jobs:
        require_installed(find(job.through))
    check_systems(jobs, {d.id: d for d in profiles})
    if request.engine is not None:
        _check_engine(request.engine, jobs)
    check_io(model, request.ios, [j.through for j in jobs], request.engine)
    if NHWC_IO in request.ios and uneven(model.preprocess):
        request.listener.note(
            f"io {NHWC_IO!r}: mean or std differs from channel to channel; MediaPipe Tasks can't "
            "normalize so, and takes this model with io 'uint8'"
        )
    if request.destination is not None:
        check_destination(request.destination)
    try:
        with _lock(store, request.destination):
            return _export(model, request, jobs, profiles, store, start)
    except BaseException:
        worker.stop()
        raise


def _without_variants(jobs: Sequence[Job], request: ExportRequest) -> tuple[Job, ...]:
    """Engines have no overrides: one artifact for all devices, as the vendor makes it."""
    merged: dict[tuple[str, str, str], Job] = {}
    for job in jobs:
        if job.variant is not None:
            request.listener.note(
                f"{request.engine} makes no variant for {' '.join(job.devices)}, which lacks VNNI: "
                f"{job.target} may saturate there"
            )
        key = (job.target, job.scheme, job.delegate)
        other = merged.get(key)
        merged[key] = replace(
            job,
            variant=None,
            devices=job.devices if other is None else (*other.devices, *job.devices),
            threads=job.threads if other is None else min(other.threads, job.threads),
        )
    return tuple(merged.values())


def _check_engine(name: str, jobs: Sequence[Job]) -> None:
    """Refuses, before anything is made, what an engine can't make.

    Raises:
        UsageError, MissingDependency: there is no such engine, or it is not installed.
        UnsupportedError: a target or scheme that it does not serve.
    """
    engine = engines.find(name)
    engines.require_installed(engine)
    for job in jobs:
        if job.scheme == "fp32":
            continue
        if job.target not in engine.targets or job.scheme != "w8a8":
            raise UnsupportedError(
                f"engine {name!r} makes no {job.scheme} for {job.target}; "
                f"it makes w8a8 for {', '.join(engine.targets)}",
                hint="name these with --target, or leave --engine out",
            )


def _export(
    model: Model,
    request: ExportRequest,
    jobs: Sequence[Job],
    profiles: Sequence[Device],
    store: Store,
    start: float,
) -> ExportResult:
    listener = request.listener
    source = source_of(request.pruned_from, store)
    finished = given_plans(request, [j.scheme for j in jobs])
    calib, evaluation = samples_of(
        model, request, [j.scheme for j in jobs if j.scheme not in finished]
    )
    held = evaluation if evaluation is not None else calib
    borders = [io for io in BORDERS if any(job.io == io for job in jobs)]
    for io in borders:
        bordered_samples(model, held, io)  # refuses data without pictures before a plan is made
    # The float model is what accuracy and latency are compared with.
    schemes = list(dict.fromkeys([*(j.scheme for j in jobs), "fp32"]))
    # An engine needs no plan: what it makes is held against the float model.
    planned_for = schemes if request.engine is None else ["fp32"]
    names = [plan_name(j.target, j.scheme, j.variant) for j in jobs]
    own = [n for n in dict.fromkeys(names) if n not in schemes]
    planned = make_plan(
        model,
        calib,
        planned_for,
        store,
        listener,
        without=request.without,
        variants=[n.partition("@")[2] for n in own],
        given=finished,
    )
    plans = [*planned_for, *own]
    with scratch("feeds") as folder:
        given = {FLOAT_IO: Given(model, held, Feeds(model, held, folder / "feeds.npz"))}
        given |= {io: given_for(io, model, held, folder) for io in borders}
        sides: Mapping[str, Side] = {}

        def prove(planned: Planned) -> tuple[Referenced, list[Row]]:
            nonlocal sides
            sides, rows = make(jobs, given, planned, plans, store, request, calib)
            reference = sides[FLOAT_IO].reference
            return reference, scored(model, rows, reference, evaluation)

        planned, reference, rows = accuracy.until_held(
            model, planned, calib, evaluation, plans, request, store, prove
        )
        if request.bench:
            rows = measure(rows, sides, store, request)
    counted = count(rows, planned, store)
    rows = [replace(r, placement=placed(r, counted[r.id])) if r.placement else r for r in rows]
    parameters = sum(p.numel() for p in model.module.parameters())
    context = Context(request, {d.id: d for d in profiles}, counted, source, parameters)
    gates = [*gates_of(rows, request), *truth(rows, context)]
    rows = [judged(row, gates) for row in rows]
    failed = [r.id for r in rows if r.status != "ok"]
    failed += [f"{g['artifact']}: {g['name']}" for g in gates if broken(g)]
    conversions = sum(w.startswith("convert") for w in store.misses)
    packable = [r for r in rows if r.status == "ok" and r.artifact is not None]
    bundle = None
    out = request.destination
    if out is not None and packable and (not failed or request.keep_going):
        bundle = pack_result(request, packable, sides, evaluation, calib, held, out, source)
    score = reference_score(model, reference, evaluation)
    wall = time.perf_counter() - start
    document = build(model, request, rows, gates, bundle, score, wall)
    document |= accuracy.about(planned) | about_given(finished)
    return ExportResult(document, tuple(failed), conversions)


def samples_of(
    model: Model, request: ExportRequest, schemes: Sequence[str]
) -> tuple[Samples | None, Samples | None]:
    """Calibration and evaluation samples, none of them in both."""
    quantized = [s for s in schemes if s in CALIBRATED]
    if quantized and request.calib is None:
        raise UsageError(
            f"scheme {quantized[0]} needs calibration data",
            hint="give --calib DATA (a .npz, a folder of pictures, file.py:function), "
            "or --scheme fp32",
        )
    calib, evaluation = request.calib, request.evaluation
    if _is_samples(calib) or _is_samples(evaluation):
        return calib, evaluation  # type: ignore[return-value]
    if calib is None and evaluation is None:
        return None, None
    if calib is None:
        # Nothing is quantized, so nothing is kept back for calibration.
        whole = load(
            evaluation,  # type: ignore[arg-type]
            signature=model.signature,
            preprocess=model.preprocess,
            split="eval",
            limit=request.eval_limit,
            shared=False,
        )
        return None, whole
    # Calibration data may still be named where nothing is quantized; it then only gives inputs.
    return load_pair(
        calib,  # type: ignore[arg-type]
        evaluation,  # type: ignore[arg-type]
        signature=model.signature,
        preprocess=model.preprocess,
        limit_calib=request.calib_limit,
        limit_eval=request.eval_limit,
        min_calib=MIN_CALIB if quantized else 1,
    )


def _is_samples(value: object) -> bool:
    return value is not None and not isinstance(value, str | Path)


@contextmanager
def _lock(store: Store, out: Path | None) -> Iterator[None]:
    """One export at a time per destination; the kernel frees the lock of a process that died."""
    if out is None:
        yield
        return
    import fcntl

    from edgekit.artifact import storage_error

    place = store.root / "locks" / fingerprint(out=str(out.resolve()))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = place.open("w")
    except OSError as error:
        raise storage_error(store.root, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(
                f"another export is writing to {out}", hint="wait for it, or choose another -o"
            ) from None
        yield
