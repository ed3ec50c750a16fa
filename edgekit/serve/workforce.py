"""The worker processes of one artifact: hired, replaced when they die, killed when they hang."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgekit.errors import EdgekitError
from edgekit.runtime.bundle import BundleArtifact
from edgekit.serve.layout import Answer, Layout, row_signature
from edgekit.serve.process import Found, WorkerProcess, no_process
from edgekit.serve.work import Work

__all__ = ["EngineSettings", "Flight", "Hand", "Workforce", "back_off_s"]

log = logging.getLogger("edgekit.serve")

SLOTS = 2
_SLOT_BYTES = 64 * 2**20
_LARGEST_FOUND = 16
"""The largest batch that is tried where none is given: each size is compiled, and kept, apart."""
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
class Flight:
    """A group that a worker has.

    Attributes:
        works: in their order.
        number: of the group.
        rows: of all of them.
        sent_ns: when it went, by the monotonic clock.
    """

    works: list[Work]
    number: int
    rows: int
    sent_ns: int


@dataclass
class Hand:
    """A worker, and what it has in its slots.

    Attributes:
        process: itself.
        scout: whether it has the session for lone requests.
        flights: by slot.
        freed_ns: when it last ended a group.
    """

    process: WorkerProcess
    scout: bool
    flights: dict[int, Flight] = field(default_factory=dict)
    freed_ns: int = 0

    @property
    def rows(self) -> int:
        """How many it has."""
        return sum(flight.rows for flight in self.flights.values())


class Employer(Protocol):
    """What is told of its workers."""

    def answered(self, hand: Hand, index: int, answers: list[Answer], last: bool) -> None:
        """Some of a group's answers have come; it is still among the worker's flights."""
        ...

    def lost(self, hand: Hand) -> None:
        """A worker died, with the flights that it had."""
        ...

    def gained(self) -> None:
        """A worker began."""
        ...

    def stranded(self) -> None:
        """No worker is left, and those that are started die again and again."""
        ...


def back_off_s(deaths: int) -> float:
    """Seconds before a worker is started again; others may have answered since, so that ``deaths``
    is 0."""
    return _BACK_OFF_S[min(max(deaths, 1), len(_BACK_OFF_S)) - 1]


class Workforce:
    """The workers of one artifact.

    Args:
        path, digest, artifact: of a bundle that nobody changes.
        settings: how.
        employer: is told what happens.

    Attributes:
        hands: those that can take groups.
        found: what the first one found out.
        max_rows: rows of a slot.
        executions: calls of the runtime so far.
        closed: whether it has ended.
    """

    def __init__(
        self,
        path: Path,
        digest: str,
        artifact: BundleArtifact,
        settings: EngineSettings,
        employer: Employer,
    ) -> None:
        self._path, self._digest, self._artifact = path, digest, artifact
        self._settings, self._employer = settings, employer
        signature = artifact.signature
        self.max_rows = 1
        if row_signature(signature):
            one = Layout(signature, 1, 0, 1).size
            self.max_rows = max(1, min(settings.rows, _SLOT_BYTES // one))
        self._layout = Layout(signature, self.max_rows, settings.raw_bytes, SLOTS)
        self.hands: list[Hand] = []
        self.found = Found((), False, 1000.0, "", ())
        self.executions = 0
        self.closed = False
        self._deaths = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def looping(self) -> bool:
        """Whether workers die again and again."""
        return self._deaths >= _LOOP_DEATHS

    async def start(self) -> None:
        """Starts the workers: one that finds out how the artifact is best run, then the others.

        Raises:
            EdgekitError: the artifact does not load here, or its warm-up gives wrong answers.
        """
        self.hands.append(await self._hire(scout=True, known=None))
        others = (self._add() for _ in range(self._settings.workers - 1))
        # All of them are waited for, so that one that fails leaves none behind that nobody ends.
        for failure in await asyncio.gather(*others, return_exceptions=True):
            if failure is not None:
                raise failure
        self._spawn(self._watch())

    async def _add(self) -> None:
        self.hands.append(await self._hire(scout=False, known=(self.found.batches, False)))

    def close(self) -> None:
        """Ends them: those that have nothing to do in peace."""
        self.closed = True
        for task in self._tasks:
            task.cancel()
        for hand in self.hands:
            hand.process.end(kill=bool(hand.flights))
        self.hands.clear()

    def failed(self, hand: Hand) -> None:
        """A worker did not take a group."""
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
        hand = self._hand(process)
        flight = None if hand is None else hand.flights.get(index)
        if hand is None or flight is None or flight.number != number:
            return
        self.executions += executions
        if executions:
            self._deaths = 0
        self._employer.answered(hand, index, answers, last)

    def _hand(self, process: WorkerProcess) -> Hand | None:
        return next((hand for hand in self.hands if hand.process is process), None)

    def _died(self, process: WorkerProcess) -> None:
        hand = self._hand(process)
        if hand is None:
            return
        self.hands.remove(hand)
        self._deaths += 1
        log.error("a worker process died", extra={"pid": process.pid, "deaths": self._deaths})
        if not self.closed:
            self._spawn(self._replace(hand.scout))
        self._employer.lost(hand)
        self._check_stranded()

    def _check_stranded(self) -> None:
        if not self.hands and self.looping:
            self._employer.stranded()

    async def _replace(self, scout: bool) -> None:
        """Starts a worker in a dead one's place, each time later."""
        while not self.closed:
            await asyncio.sleep(back_off_s(self._deaths))
            try:
                hand = await self._hire(scout=scout, known=(self.found.batches, self.found.wide))
            except EdgekitError as error:
                self._deaths += 1
                log.error("a worker does not start again", extra={"reason": error.message})
                self._check_stranded()
                continue
            self.hands.append(hand)
            self._employer.gained()
            return

    async def _hire(self, *, scout: bool, known: tuple[tuple[int, ...], bool] | None) -> Hand:
        try:
            process = WorkerProcess(self._layout, self._answered, self._died)
        except OSError as error:
            raise no_process(error) from error
        try:
            found = await process.start(self._order(scout, known), self._settings.load_s)
        except BaseException:
            process.end(kill=True)
            raise
        if known is None:
            self.found = found
        return Hand(process, scout)

    def _order(self, scout: bool, known: tuple[tuple[int, ...], bool] | None) -> Mapping[str, Any]:
        settings = self._settings
        return {
            "bundle": str(self._path),
            "digest": self._digest,
            "artifact": self._artifact.id,
            "threads": settings.threads,
            "wide": settings.wide if scout else settings.threads,
            "largest": min(self.max_rows, settings.batch or _LARGEST_FOUND),
            "forced": settings.batch is not None,
            "known": known,
            "rows": self.max_rows,
            "raw_bytes": settings.raw_bytes,
            "slots": SLOTS,
        }

    async def _watch(self) -> None:
        """Kills workers that hang."""
        while True:
            await asyncio.sleep(min(1.0, self._settings.hang_s / 4))
            now = time.monotonic_ns()
            for hand in self.hands:
                oldest = min((f.sent_ns for f in hand.flights.values()), default=now)
                if (now - max(oldest, hand.freed_ns)) / 1e9 > self._settings.hang_s:
                    log.error("a worker process hangs", extra={"pid": hand.process.pid})
                    hand.process.kill()

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
