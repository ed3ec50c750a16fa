"""The engine: one artifact in its worker processes, behind a bounded queue.

It knows nothing of HTTP. A request that was let in always ends: with tensors, or with a `Refusal`
when its deadline passes, its worker dies, or the engine closes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.runtime.bundle import BundleArtifact
from edgekit.serve.layout import (
    BAD,
    CANCELLED,
    EXPIRED,
    MAX_ITEMS,
    OK,
    Answer,
    Group,
    Item,
    Layout,
    row_signature,
)
from edgekit.serve.policy import Admission, GroupLimit, ServiceTime
from edgekit.serve.process import Found, WorkerProcess
from edgekit.serve.refusal import Refusal
from edgekit.serve.work import Outcome, Work
from edgekit.signature import Signature

__all__ = ["Engine", "EngineSettings"]

log = logging.getLogger("edgekit.serve")

_SLOTS = 2
_SLOT_BYTES = 64 * 2**20
_PREFETCH_US = 1_000
_BACK_OFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_LOOP_DEATHS = 4
"""So many deaths in a row without an answer between them are a crash loop."""


@dataclass(frozen=True)
class EngineSettings:
    """How an artifact is served. The defaults follow the load; a number fixes one of them.

    Attributes:
        workers: processes.
        threads: of each worker.
        wide: threads of the session that runs a lone request; `threads` for none.
        batch: the largest batch; None to find out.
        delay_ms: how long a lone request may wait for others; 0 never waits.
        queue: the queue's high mark in rows; None follows the rate of answers.
        objective_ms: what an answer may take.
        load_s: how long loading may take.
        hang_s: a worker that gives no answer for so long is killed.
        raw_bytes: the largest raw body.
    """

    workers: int = 1
    threads: int = 1
    wide: int = 1
    batch: int | None = None
    delay_ms: float = 0.0
    queue: int | None = None
    objective_ms: float = 100.0
    load_s: float = 300.0
    hang_s: float = 60.0
    raw_bytes: int = 16 * 2**20

    @property
    def rows(self) -> int:
        """The most rows that go to a worker at once, if its memory allows."""
        return self.batch or 32


@dataclass
class _Flight:
    """A group that a worker has."""

    works: list[Work]
    number: int
    rows: int
    sent_ns: int


@dataclass
class _Hand:
    """A worker, and what it has in its slots."""

    process: WorkerProcess
    scout: bool
    flights: dict[int, _Flight] = field(default_factory=dict)
    freed_ns: int = 0

    @property
    def rows(self) -> int:
        return sum(flight.rows for flight in self.flights.values())


class Engine:
    """One artifact of one bundle, being served.

    Attributes:
        signature: the artifact's.
        by_rows: whether requests of several samples are served.
        max_rows: samples in one request.
        executions: calls of the runtime so far.
        found: what the warm-up found.
    """

    def __init__(
        self, path: Path, digest: str, artifact: BundleArtifact, settings: EngineSettings
    ) -> None:
        self.signature: Signature = artifact.signature
        self.by_rows = row_signature(self.signature)
        self._settings = settings
        self._path, self._digest, self._artifact = path, digest, artifact
        self.max_rows = self._rows_that_fit() if self.by_rows else 1
        self._layout = Layout(self.signature, self.max_rows, settings.raw_bytes, _SLOTS)
        self._hands: list[_Hand] = []
        self._queue: deque[Work] = deque()
        self._queued = 0
        self._deaths = 0
        self._closed = False
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._wait: asyncio.TimerHandle | None = None
        self.executions = 0
        self.found: Found = Found((), False, 1000.0, "", ())
        self._admission = Admission(settings.objective_ms, settings.queue, settings.workers)
        self._service = ServiceTime(1000.0)
        self._limit = GroupLimit(settings.objective_ms, self.max_rows, 1)

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the workers: one that finds out how the artifact is best run, then the others.

        Raises:
            EdgekitError: the artifact does not load here, or its warm-up gives wrong answers.
        """
        try:
            scout = await self._hire(scout=True, known=None)
            best = max(self.found.batches, default=1)
            row_us = self.found.row_us
            self._service = ServiceTime(row_us)
            self._admission.row_us = row_us
            self._limit = GroupLimit(self._settings.objective_ms, self.max_rows, best)
            self._hands.append(scout)
            known = (self.found.batches, False)
            others = [
                self._hire(scout=False, known=known) for _ in range(self._settings.workers - 1)
            ]
            self._hands += await asyncio.gather(*others)
        except BaseException:
            await self.close()
            raise
        self._spawn(self._watch())

    async def close(self) -> None:
        """Ends the workers; what is not answered yet is refused with 503."""
        self._closed = True
        works = [work for hand in self._hands for f in hand.flights.values() for work in f.works]
        for work in [*works, *self._queue]:
            work.refuse(503, "the server is ending")
        self._queue.clear()
        self._queued = 0
        for task in self._tasks:
            task.cancel()
        for hand in self._hands:
            hand.process.end(kill=bool(hand.flights))
        self._hands.clear()

    @property
    def alive(self) -> int:
        """Workers that can take requests."""
        return len(self._hands)

    @property
    def looping(self) -> bool:
        """Whether workers die again and again."""
        return self._deaths >= _LOOP_DEATHS

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return self._queued

    @property
    def running(self) -> int:
        """Rows that workers have."""
        return sum(hand.rows for hand in self._hands)

    @property
    def raw_bytes(self) -> int:
        """The largest raw body that is preprocessed."""
        return self._settings.raw_bytes

    @property
    def pids(self) -> list[int]:
        """The worker processes."""
        return [hand.process.pid for hand in self._hands]

    def describe(self) -> dict[str, Any]:
        """How the artifact is run, for who asks."""
        return {
            "artifact": self._artifact.id,
            "runtime": self.found.runtime,
            "workers": self._settings.workers,
            "threads": self._settings.threads,
            "lone_threads": self._settings.wide if self.found.wide else self._settings.threads,
            "batches": list(self.found.batches),
            "max_rows": self.max_rows,
            "row_us": round(self.found.row_us, 1),
            "notes": list(self.found.notes),
        }

    # -- requests ---------------------------------------------------------------------------------

    def sheds(self, rows: int = 1) -> int | None:
        """Seconds after which to come again, where a request of ``rows`` is not let in now."""
        if self._admission.admits(self._queued, rows):
            return None
        return self._admission.retry_after_s(self._queued)

    async def run(self, work: Work) -> Outcome:
        """Executes a request that was let in.

        Raises:
            Refusal: 400 for an input that the model does not take, 500 where it failed, 503
                where no worker is left, 504 where its deadline passed.
        """
        if self._closed or not self._hands:
            raise Refusal(503, "the model is not ready", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        left = (work.deadline_ns - time.monotonic_ns()) / 1e9
        if left <= 0:
            raise Refusal(504, "the deadline had passed when the request came")
        work.timer = loop.call_later(left, work.refuse, 504, "the deadline passed")
        self._queue.append(work)
        self._queued += work.rows
        self._dispatch()
        try:
            return await work.future
        except asyncio.CancelledError:
            work.give_up()
            raise
        finally:
            work.timer.cancel()
            if not work.sent_ns:
                self._forget(work)

    def _forget(self, work: Work) -> None:
        """Takes out of the queue what ended there."""
        try:
            self._queue.remove(work)
        except ValueError:
            return
        self._queued -= work.rows

    # -- dispatch ---------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while self._queue:
            hand = self._pick()
            if hand is None:
                return
            if self._waits_for_more(hand):
                return
            works, rows = self._take()
            if not works:
                continue
            self._send(hand, works, rows)

    def _pick(self) -> _Hand | None:
        """The worker with least to do that may have more: one that is idle, or soon will be."""
        best = min(self._hands, key=lambda hand: hand.rows, default=None)
        if best is None or not best.flights:
            return best
        if len(best.flights) >= _SLOTS:
            return None
        soon = best.rows * self._service.row_us < _PREFETCH_US
        return best if soon or self._queued >= 2 * len(self._hands) else None

    def _waits_for_more(self, hand: _Hand) -> bool:
        """Whether a group that is not full is held back, as ``delay_ms`` asks for."""
        delay_ns = int(self._settings.delay_ms * 1e6)
        if not delay_ns or self._queued >= self._settings.rows:
            return False
        left = self._queue[0].arrived_ns + delay_ns - time.monotonic_ns()
        if left <= 0:
            return False
        if self._wait is not None:
            self._wait.cancel()
        self._wait = asyncio.get_running_loop().call_later(left / 1e9, self._dispatch)
        return True

    def _take(self) -> tuple[list[Work], int]:
        """The next group: a fair share of what waits, within the limit."""
        most = self._limit.rows(self._service.row_us)
        if self._settings.batch is not None:
            most = self._settings.batch
        elif self._hands:
            most = min(most, math.ceil(self._queued / len(self._hands)))
        works: list[Work] = []
        rows = raw = 0
        while self._queue and len(works) < MAX_ITEMS:
            work = self._queue[0]
            if not work.over:
                full = rows + work.rows > (self.max_rows if not works else min(most, self.max_rows))
                if full or raw + len(work.raw) > self._settings.raw_bytes:
                    break
                works.append(work)
                rows += work.rows
                raw += len(work.raw)
            self._queue.popleft()
            self._queued -= work.rows
        return works, rows

    def _send(self, hand: _Hand, works: list[Work], rows: int) -> None:
        index = next(i for i in range(_SLOTS) if i not in hand.flights)
        slot, now = hand.process.slots[index], time.monotonic_ns()
        lone = rows == 1 and not self._queue and not any(h.flights for h in self._hands)
        items, row, raw_at = [], 0, 0
        for i, work in enumerate(works):
            slot.given_up[i] = 0
            work.place, work.sent_ns = (slot.given_up, i), now
            for into, value in zip(slot.inputs, work.inputs, strict=False):
                into[row : row + work.rows] = value.reshape((work.rows, *into.shape[1:]))
            size = len(work.raw)
            slot.raw[raw_at : raw_at + size] = work.raw
            items.append(Item(row, work.rows, raw_at, size, work.deadline_ns))
            row, raw_at = row + work.rows, raw_at + size
            work.inputs, work.raw = (), b""
        self._number = (self._number + 1) % 2**32
        hand.flights[index] = _Flight(works, self._number, rows, now)
        wide = lone and hand.scout and self.found.wide
        if not hand.process.send(Group(index, wide, self._number, tuple(items))):
            hand.process.end(kill=True)
            self._died(hand.process)

    def _answered(
        self,
        process: WorkerProcess,
        index: int,
        number: int,
        answers: list[Answer],
        executions: int,
        last: bool,
    ) -> None:
        hand = next((h for h in self._hands if h.process is process), None)
        if hand is None or index not in hand.flights or hand.flights[index].number != number:
            return
        flight = hand.flights[index]
        self.executions += executions
        rows_before = [0]
        for work in flight.works:
            rows_before.append(rows_before[-1] + work.rows)
        for answer in answers:
            work = flight.works[answer.item]
            self._settle(hand, index, work, rows_before[answer.item], answer)
        if not last:
            return
        del hand.flights[index]
        now = time.monotonic_ns()
        if executions and flight.rows:
            self._deaths = 0
            us = (now - max(flight.sent_ns, hand.freed_ns)) / 1000
            self._service.observe(us, flight.rows)
            self._limit.observe((now - flight.sent_ns) / 1000, flight.rows)
            self._admission.row_us = self._service.row_us
        hand.freed_ns = now
        self._dispatch()

    def _settle(self, hand: _Hand, index: int, work: Work, row: int, answer: Answer) -> None:
        # The slot will hold others: a client that leaves from now on must not give those up.
        work.place = None
        if work.over:
            return
        if answer.status == OK:
            outputs = []
            for values in hand.process.slots[index].outputs:
                chosen = values[row : row + work.rows]
                shape = (work.rows, *chosen.shape[2:]) if self.by_rows else chosen.shape[1:]
                outputs.append(chosen.reshape(shape).copy())
            queue_us = (work.sent_ns - work.arrived_ns) // 1000
            work.future.set_result(Outcome(tuple(outputs), queue_us, answer.exec_us))
        elif answer.status == BAD:
            work.refuse(400, answer.text)
        elif answer.status == EXPIRED:
            work.refuse(504, "the deadline passed")
        elif answer.status == CANCELLED:
            work.refuse(499, "the client left")
        else:
            log.warning("an inference failed", extra={"reason": answer.text})
            work.refuse(500, "the runtime could not run the model on this input")

    # -- death and return -------------------------------------------------------------------------

    def _died(self, process: WorkerProcess) -> None:
        hand = next((h for h in self._hands if h.process is process), None)
        if hand is None:
            return
        self._hands.remove(hand)
        self._deaths += 1
        self._admission.workers = max(1, len(self._hands))
        log.error("a worker process died", extra={"pid": process.pid, "deaths": self._deaths})
        for flight in hand.flights.values():
            for work in flight.works:
                work.refuse(500, "the process that ran the model died")
        if not self._closed:
            self._spawn(self._replace(hand.scout))
        if not self._hands and self.looping:
            self._refuse_queue()
        self._dispatch()

    def _refuse_queue(self) -> None:
        for work in self._queue:
            work.refuse(503, "the model is not ready")
        self._queue.clear()
        self._queued = 0

    async def _replace(self, scout: bool) -> None:
        """Starts a worker in a dead one's place, each time later."""
        while not self._closed:
            await asyncio.sleep(_BACK_OFF_S[min(self._deaths, len(_BACK_OFF_S)) - 1])
            try:
                hand = await self._hire(scout=scout, known=(self.found.batches, self.found.wide))
            except EdgekitError as error:
                self._deaths += 1
                log.error("a worker does not start again", extra={"reason": error.message})
                if not self._hands and self.looping:
                    self._refuse_queue()
                continue
            self._hands.append(hand)
            self._admission.workers = len(self._hands)
            self._dispatch()
            return

    async def _hire(self, *, scout: bool, known: tuple[tuple[int, ...], bool] | None) -> _Hand:
        process = WorkerProcess(self._layout, self._answered, self._died)
        found = await process.start(self._order(scout, known), self._settings.load_s)
        if known is None:
            self.found = found
        if self._closed:
            process.end(kill=True)
            raise asyncio.CancelledError
        return _Hand(process, scout)

    def _order(
        self, scout: bool, known: tuple[tuple[int, ...], bool] | None
    ) -> Mapping[str, Any]:
        settings = self._settings
        return {
            "bundle": str(self._path),
            "digest": self._digest,
            "artifact": self._artifact.id,
            "threads": settings.threads,
            "wide": settings.wide if scout else settings.threads,
            "largest": self.max_rows if settings.batch is None else settings.batch,
            "forced": settings.batch is not None,
            "known": known,
            "rows": self.max_rows,
            "raw_bytes": settings.raw_bytes,
            "slots": _SLOTS,
        }

    async def _watch(self) -> None:
        """Kills workers that hang."""
        while True:
            await asyncio.sleep(min(1.0, self._settings.hang_s / 4))
            now = time.monotonic_ns()
            for hand in self._hands:
                oldest = min((f.sent_ns for f in hand.flights.values()), default=now)
                if (now - max(oldest, hand.freed_ns)) / 1e9 > self._settings.hang_s:
                    log.error("a worker process hangs", extra={"pid": hand.process.pid})
                    hand.process.kill()

    def _spawn(self, job: Any) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _rows_that_fit(self) -> int:
        sizes = Layout(self.signature, 1, 0, 1).size
        return max(1, min(self._settings.rows, _SLOT_BYTES // sizes))
