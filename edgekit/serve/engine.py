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
from pathlib import Path
from typing import Any

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
    row_signature,
)
from edgekit.serve.policy import Admission, GroupLimit, ServiceTime
from edgekit.serve.process import Found
from edgekit.serve.refusal import Refusal
from edgekit.serve.work import Outcome, Work
from edgekit.serve.workforce import SLOTS, EngineSettings, Flight, Hand, Workforce
from edgekit.signature import Signature

__all__ = ["Engine", "EngineSettings"]

log = logging.getLogger("edgekit.serve")

_PREFETCH_US = 1_000


class Engine:
    """One artifact of one bundle, being served.

    Attributes:
        signature: the artifact's.
        by_rows: whether requests of several samples are served.
        max_rows: samples in one request.
    """

    def __init__(
        self, path: Path, digest: str, artifact: BundleArtifact, settings: EngineSettings
    ) -> None:
        self.signature: Signature = artifact.signature
        self.by_rows = row_signature(self.signature)
        self._settings, self._artifact = settings, artifact
        self._force = Workforce(path, digest, artifact, settings, self)
        self.max_rows = self._force.max_rows
        self._queue: deque[Work] = deque()
        self._queued = 0
        self._number = 0
        self._wait: asyncio.TimerHandle | None = None
        self._admission = Admission(settings.objective_ms, settings.queue, settings.workers)
        self._service = ServiceTime(1000.0)
        self._limit = GroupLimit(settings.objective_ms, self.max_rows, 1)

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the workers; see `Workforce.start`.

        Raises:
            EdgekitError: the artifact does not load here, or its warm-up gives wrong answers.
        """
        try:
            await self._force.start()
        except BaseException:
            await self.close()
            raise
        found = self.found
        self._service = ServiceTime(found.row_us)
        self._admission.row_us = found.row_us
        best = max(found.batches, default=1)
        self._limit = GroupLimit(self._settings.objective_ms, self.max_rows, best)

    async def close(self) -> None:
        """Ends the workers; what is not answered yet is refused with 503."""
        if self._wait is not None:
            self._wait.cancel()
        for hand in self._force.hands:
            for flight in hand.flights.values():
                for work in flight.works:
                    work.refuse(503, "the server is ending")
        self._refuse_queue("the server is ending")
        self._force.close()

    @property
    def found(self) -> Found:
        """What the warm-up found."""
        return self._force.found

    @property
    def executions(self) -> int:
        """Calls of the runtime so far."""
        return self._force.executions

    @property
    def alive(self) -> int:
        """Workers that can take requests."""
        return len(self._force.hands)

    @property
    def looping(self) -> bool:
        """Whether workers die again and again."""
        return self._force.looping

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return self._queued

    @property
    def running(self) -> int:
        """Rows that workers have."""
        return sum(hand.rows for hand in self._force.hands)

    @property
    def raw_bytes(self) -> int:
        """The largest raw body that is preprocessed."""
        return self._settings.raw_bytes

    @property
    def pids(self) -> list[int]:
        """The worker processes."""
        return [hand.process.pid for hand in self._force.hands]

    def describe(self) -> dict[str, Any]:
        """How the artifact is run, for who asks."""
        settings, found = self._settings, self.found
        return {
            "artifact": self._artifact.id,
            "runtime": found.runtime,
            "workers": settings.workers,
            "threads": settings.threads,
            "lone_threads": settings.wide if found.wide else settings.threads,
            "batches": list(found.batches),
            "max_rows": self.max_rows,
            "row_us": round(found.row_us, 1),
            "notes": list(found.notes),
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
        if self._force.closed or not self._force.hands:
            raise Refusal(503, "the model is not ready", {"Retry-After": "1"})
        left = (work.deadline_ns - time.monotonic_ns()) / 1e9
        if left <= 0:
            raise Refusal(504, "the deadline had passed when the request came")
        timer = asyncio.get_running_loop().call_later(left, work.refuse, 504, "the deadline passed")
        self._queue.append(work)
        self._queued += work.rows
        self._dispatch()
        try:
            return await work.future
        except asyncio.CancelledError:
            work.give_up()
            raise
        finally:
            timer.cancel()
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
            if hand is None or self._waits_for_more():
                return
            works, rows = self._take()
            if works:
                self._send(hand, works, rows)

    def _pick(self) -> Hand | None:
        """The worker with least to do that may have more: one that is idle, or soon will be."""
        hands = self._force.hands
        best = min(hands, key=lambda hand: hand.rows, default=None)
        if best is None or not best.flights:
            return best
        if len(best.flights) >= SLOTS:
            return None
        soon = best.rows * self._service.row_us < _PREFETCH_US
        return best if soon or self._queued >= 2 * len(hands) else None

    def _waits_for_more(self) -> bool:
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
        if self._settings.batch is not None:
            most = self._settings.batch
        else:
            share = math.ceil(self._queued / len(self._force.hands))
            most = min(share, self._limit.rows(self._service.row_us))
        works: list[Work] = []
        rows = raw = 0
        while self._queue and len(works) < MAX_ITEMS:
            work = self._queue[0]
            if not work.over:
                full = works and rows + work.rows > min(most, self.max_rows)
                if full or raw + work.raw_size > self._settings.raw_bytes:
                    break
                works.append(work)
                rows += work.rows
                raw += work.raw_size
            self._queue.popleft()
            self._queued -= work.rows
        return works, rows

    def _send(self, hand: Hand, works: list[Work], rows: int) -> None:
        index = next(i for i in range(SLOTS) if i not in hand.flights)
        slot, now = hand.process.slots[index], time.monotonic_ns()
        lone = rows == 1 and not self._queue and not self.running
        items, row, raw_at = [], 0, 0
        for i, work in enumerate(works):
            slot.given_up[i] = 0
            work.place, work.sent_ns = (slot.given_up, i), now
            size = work.raw_size
            slot.raw[raw_at : raw_at + size] = work.raw
            for into, value in zip(slot.inputs, work.inputs, strict=size == 0):
                into[row : row + work.rows] = value.reshape((work.rows, *into.shape[1:]))
            items.append(Item(row, work.rows, raw_at, size, work.deadline_ns))
            row, raw_at = row + work.rows, raw_at + size
            work.inputs, work.raw = (), b""
        self._number = (self._number + 1) % 2**32
        hand.flights[index] = Flight(works, self._number, rows, now)
        wide = lone and hand.scout and self.found.wide
        if not hand.process.send(Group(index, wide, self._number, tuple(items))):
            # It died before: these were not begun, and wait again.
            self._take_back(hand, index, hand.flights.pop(index))
            self._force.failed(hand)

    # -- what workers tell ------------------------------------------------------------------------

    def answered(self, hand: Hand, index: int, answers: list[Answer], last: bool) -> None:
        """See `edgekit.serve.workforce.Employer`."""
        flight = hand.flights[index]
        rows_before = [0]
        for work in flight.works:
            rows_before.append(rows_before[-1] + work.rows)
        for answer in answers:
            self._settle(hand, index, flight.works[answer.item], rows_before[answer.item], answer)
        if not last:
            return
        del hand.flights[index]
        now = time.monotonic_ns()
        # From when the worker had nothing before it.
        us = (now - max(flight.sent_ns, hand.freed_ns)) / 1000
        self._service.observe(us, flight.rows)
        self._limit.observe(us, flight.rows)
        self._admission.row_us = self._service.row_us
        hand.freed_ns = now
        self._dispatch()

    def _settle(self, hand: Hand, index: int, work: Work, row: int, answer: Answer) -> None:
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
            self._admission.observe((time.monotonic_ns() - work.arrived_ns) / 1000)
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

    def gained(self) -> None:
        """See `edgekit.serve.workforce.Employer`."""
        self._admission.workers = max(1, self.alive)
        self._dispatch()

    def lost(self, hand: Hand) -> None:
        """Of a dead worker's groups, the one that it was at fails; what it had not begun waits
        again, in front."""
        flights = sorted(hand.flights.items(), key=lambda item: item[1].sent_ns)
        for work in flights[0][1].works if flights else ():
            work.refuse(500, "the process that ran the model died")
        for index, flight in reversed(flights[1:]):
            self._take_back(hand, index, flight)
        self._admission.workers = max(1, self.alive)
        self._dispatch()

    def stranded(self) -> None:
        """See `edgekit.serve.workforce.Employer`."""
        self._refuse_queue("the model is not ready")

    def _take_back(self, hand: Hand, index: int, flight: Flight) -> None:
        slot, row, raw_at = hand.process.slots[index], 0, 0
        for work in flight.works:
            if work.raw_size:
                work.raw = bytes(slot.raw[raw_at : raw_at + work.raw_size])
                raw_at += work.raw_size
            else:
                work.inputs = [rows[row : row + work.rows].copy() for rows in slot.inputs]
            row += work.rows
            work.place, work.sent_ns = None, 0
        self._queue.extendleft(reversed(flight.works))
        self._queued += flight.rows

    def _refuse_queue(self, why: str) -> None:
        for work in self._queue:
            work.refuse(503, why)
        self._queue.clear()
        self._queued = 0
