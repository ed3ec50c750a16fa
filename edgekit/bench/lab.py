"""The device lab: runs a matrix, every device by itself, and keeps what each cell gave.

Devices work at the same time, and each does one thing at a time. What is measured on this machine
waits until the others are done, because talking to them takes its cores. A finished cell is in the
store before the next begins, so that a run that was ended goes on where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.bench import measure, subjects
from edgekit.bench.devices import budget_gates, open_worker
from edgekit.bench.matrix import Cell, Matrix
from edgekit.bench.measure import Settings
from edgekit.bench.process import Cancel, Cancelled
from edgekit.bench.runners import device_identity
from edgekit.bench.store import Store
from edgekit.bench.vendor import Tool
from edgekit.device import Device
from edgekit.errors import DeviceUnreachable, EdgekitError

__all__ = [
    "SCHEMA",
    "Outcome",
    "bench_on",
    "run_matrix",
    "short",
]

SCHEMA: Final = "edgekit.bench-matrix/1"
_HERE: Final = "local"
_GIVE_UP: Final = 2  # cells in a row for which a device did not answer, after which it isn't asked


@dataclass(frozen=True)
class Outcome:
    """How a cell went.

    Attributes:
        cell: which.
        status: ``ok``, ``failed``, or ``skipped``: its device did not answer before.
        reason: why not.
        exit_code: of the error, 0 if there was none.
        attempts: how often the whole of it was tried.
        resumed: whether it was measured in an earlier run of the same matrix.
        measurement: its number in the store, None if skipped.
        document: what was measured, None if it failed.
    """

    cell: Cell
    status: str
    reason: str | None = None
    exit_code: int = 0
    attempts: int = 0
    resumed: bool = False
    measurement: int | None = None
    document: Mapping[str, Any] | None = None


def bench_on(
    url: str,
    subject: Path,
    ids: tuple[str, ...] = (),
    *,
    settings: Settings,
    device: Device | None = None,
    tools: Sequence[Tool] = (),
    wait: float = 0.0,
    force: bool = False,
    cancel: Cancel | None = None,
    waiting: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measures a bundle's artifacts, or one, on a device.

    Args:
        url: the device's (`edgekit.bench.runners`).
        subject: path of the bundle or artifact.
        ids: which artifacts of the bundle; if empty all of them, or with a ``device`` those that
            it runs.
        settings: how.
        device: its profile, whose budgets the document then holds as gates.
        tools: vendors' programs that measure in place of the worker.
        wait: seconds to wait while another job has the device.
        force: compare what was measured under unlike conditions, too.
        cancel: ends it early.
        waiting: called with who has the device, before waiting.
        progress: called with blocks done and to do.

    Returns:
        A document ``edgekit.bench/1``.

    Raises:
        EdgekitError: see `edgekit.bench.devices.open_worker` and `edgekit.bench.measure.bench`.
    """
    ids, targets = subjects.chosen(subject, ids, device)
    with ExitStack() as stack:
        opened = open_worker(
            url,
            tools,
            targets=targets,
            device=device,
            wait=wait,
            cancel=cancel,
            waiting=waiting,
        )
        worker = stack.enter_context(opened)
        requests = stack.enter_context(subjects.open_requests(subject, ids, worker))
        blocks, done = len(requests) * settings.rounds, 0

        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            progress(done, blocks)

        document = measure.bench(
            requests, worker=worker, force=force, progress=advance, **_fields(settings)
        )
    if device is not None:
        document |= {"device": device.id, "gates": budget_gates(document, device)}
    return document


def _fields(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def run_matrix(
    matrix: Matrix,
    store: Store,
    *,
    again: bool = False,
    report: Callable[[Outcome], None] = lambda _: None,
    waiting: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures every cell that its last, unfinished run has not measured yet.

    Args:
        matrix: what and how.
        store: where results are appended.
        again: begin anew even if the last run was not finished.
        report: called with each outcome, from several threads but never two at a time.
        waiting: called where a device is in use by another job.

    Returns:
        A document ``edgekit.bench-matrix/1``.

    Raises:
        KeyboardInterrupt: the run was ended; its devices are as they were, its lease given back.
    """
    session = store.session(matrix.digest, again=again)
    lab = _Lab(matrix, store, session, report, waiting)
    lab.run()
    outcomes = [lab.outcomes[cell.key] for cell in matrix.cells]
    complete = all(outcome.status == "ok" for outcome in outcomes)
    if complete:
        store.finish(session)
    cells = [_cell_json(outcome) for outcome in outcomes]
    gates = [
        {"cell": number, **gate}
        for number, outcome in enumerate(outcomes)
        for gate in (outcome.document or {}).get("gates", [])
    ]
    return {
        "schema": SCHEMA,
        "session": session,
        "store": str(store.path),
        "complete": complete,
        "cells": cells,
        "gates": gates,
    }


class _Lab:
    """One run of a matrix: a thread per device, and what they share."""

    def __init__(
        self,
        matrix: Matrix,
        store: Store,
        session: int,
        report: Callable[[Outcome], None],
        waiting: Callable[[str], None],
    ) -> None:
        self._matrix, self._store, self._session = matrix, store, session
        self._report, self._waiting = report, waiting
        self._lock, self._cancel = threading.Lock(), Cancel()
        self._bug: BaseException | None = None
        self.outcomes: dict[str, Outcome] = {}

    def run(self) -> None:
        queues: dict[str, list[Cell]] = {}
        try:
            done = {m.cell: m for m in self._store.measurements(session=self._session)}
            for cell in self._matrix.cells:
                found = done.get(cell.key)
                if found is not None and found.status == "ok":
                    self._tell(
                        Outcome(
                            cell,
                            "ok",
                            attempts=found.attempts,
                            resumed=True,
                            measurement=found.id,
                            document=found.document,
                        )
                    )
                else:
                    queues.setdefault(device_identity(cell.url), []).append(cell)
            here = queues.pop(_HERE, [])
            self._together(list(queues.values()))
            self._together([here] if here else [])
        finally:
            self._cancel.close()

    def _together(self, queues: Sequence[Sequence[Cell]]) -> None:
        threads = [threading.Thread(target=self._device, args=(queue,)) for queue in queues]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._cancel.ask()
            for thread in threads:
                thread.join()
            raise
        if self._bug is not None:
            raise self._bug

    def _device(self, cells: Sequence[Cell]) -> None:
        """The cells of one device, one after the other."""
        silent = 0
        try:
            for cell in cells:
                if silent >= _GIVE_UP:
                    reason = f"{cell.url} did not answer {silent} times in a row"
                    self._tell(Outcome(cell, "skipped", reason, DeviceUnreachable.exit_code))
                    continue
                outcome = self._measure(cell)
                gone = outcome.exit_code == DeviceUnreachable.exit_code
                silent = silent + 1 if gone else 0
                self._tell(outcome)
        except Cancelled:
            return
        except BaseException as error:  # a bug here must not look like a finished matrix
            self._bug = error
            self._cancel.ask()

    def _measure(self, cell: Cell) -> Outcome:
        attempts = 0
        while True:
            attempts += 1
            try:
                document = bench_on(
                    cell.url,
                    cell.subject,
                    cell.artifacts,
                    settings=cell.settings,
                    device=cell.device,
                    tools=cell.tools,
                    wait=self._matrix.wait,
                    cancel=self._cancel,
                    waiting=self._waiting,
                )
            except DeviceUnreachable as error:
                if attempts <= self._matrix.retries:
                    continue  # the whole run anew: half of one is no measurement
                return self._failed(cell, error, attempts)
            except EdgekitError as error:
                return self._failed(cell, error, attempts)
            number = self._keep(cell, attempts, document, None)
            return Outcome(cell, "ok", None, 0, attempts, False, number, document)

    def _failed(self, cell: Cell, error: EdgekitError, attempts: int) -> Outcome:
        number = self._keep(cell, attempts, None, error.message)
        return Outcome(cell, "failed", error.message, error.exit_code, attempts, False, number)

    def _keep(
        self, cell: Cell, attempts: int, document: Mapping[str, Any] | None, reason: str | None
    ) -> int:
        return self._store.append(
            url=cell.url,
            device=None if cell.device is None else cell.device.id,
            subject=str(cell.subject),
            settings=cell.settings.to_json(),
            document=document,
            reason=reason,
            attempts=attempts,
            session=self._session,
            cell=cell.key,
        )

    def _tell(self, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes[outcome.cell.key] = outcome
            self._report(outcome)


def _cell_json(outcome: Outcome) -> dict[str, Any]:
    cell, document = outcome.cell, outcome.document
    return {
        "subject": str(cell.subject),
        "url": cell.url,
        "device": None if cell.device is None else cell.device.id,
        "settings": cell.settings.to_json(),
        "status": outcome.status,
        "reason": outcome.reason,
        "exit_code": outcome.exit_code,
        "attempts": outcome.attempts,
        "resumed": outcome.resumed,
        "measurement": outcome.measurement,
        "results": [] if document is None else [short(entry) for entry in document["results"]],
    }


def short(result: Mapping[str, Any]) -> dict[str, Any]:
    """An artifact's entry of ``edgekit.bench/1`` in a few figures."""
    latency = result["latency_ms"] or {}
    return {
        "artifact": result["artifact"],
        "p50_ms": latency.get("p50"),
        "p90_ms": latency.get("p90"),
        "peak_memory_mib": result["peak_memory_mib"],
        "insufficient": result["insufficient"],
    }
