"""Ingest: OTLP/HTTP requests, written before they are acknowledged.

Bodies that come while one transaction is written wait for the next one together: a commit costs a
disk's flush however much is in it. What waits is bounded in bytes, also of bodies that are still to
come; beyond that clients are told to come again (503, which OTLP has them do).

Reports are read beside that, from connections of their own: no write waits for one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from edgekit.errors import BadData, EdgekitError, StorageError, UsageError
from edgekit.runtime import otlp
from edgekit.runtime.drift_reference import DriftReference
from edgekit.serve.call import Call, Reply, json_reply, refused
from edgekit.serve.refusal import Refusal
from edgekit.serve.security import Keys, Rates, network
from edgekit.telemetry.checking import asked_rules, check
from edgekit.telemetry.cohorts import DEFAULT_K
from edgekit.telemetry.dashboard import page
from edgekit.telemetry.metrics import Measures, render
from edgekit.telemetry.question import Comparison, Question
from edgekit.telemetry.reading import Request, read_logs, read_metrics
from edgekit.telemetry.store import Reader, Store
from edgekit.telemetry.watch import DEFAULT_INTERVAL_S, Watch

__all__ = ["Ingest"]

log = logging.getLogger("edgekit.telemetry")

_READERS: Final = {"/v1/metrics": read_metrics, "/v1/logs": read_logs}
_RESPONSES: Final = {
    "/v1/metrics": ("ExportMetricsServiceResponse", "rejectedDataPoints"),
    "/v1/logs": ("ExportLogsServiceResponse", "rejectedLogRecords"),
}
_TYPES: Final = {"application/x-protobuf": False, "application/json": True}
_MOST_TOGETHER: Final = 8 * 2**20
_AGAIN: Final = {"Retry-After": "5"}
_QUESTIONS: Final[Mapping[str, type[Question] | type[Comparison]]] = {
    "/v1/report": Question,
    "/v1/canary": Comparison,
}
_READERS_MOST: Final = 2
_ASKING_MOST: Final = 16
_PATHS: Final = (
    "/",
    *_READERS,
    *_QUESTIONS,
    "/v1/alerts",
    "/v1/check",
    "/metrics",
    "/health/live",
    "/health/ready",
)
_NO_ALERTS: Final[dict[str, Any]] = {
    "schema": "edgekit.telemetry-alerts/1",
    "looked_s": None,
    "interval_s": None,
    "rules": [],
    "webhook": None,
}

_T = TypeVar("_T")


@dataclass
class _Waiting:
    path: str
    body: bytes | memoryview
    as_json: bool
    answer: asyncio.Future[Reply] = field(default_factory=asyncio.Future)


class Ingest:
    """Answers OTLP/HTTP.

    Args:
        store: is written by this alone, from a thread of its own.
        keys: who may send; anyone where there are none.
        rates: how often.
        max_body: bytes of one body, decompressed.
        max_held: bytes of all bodies that are read or wait.
        k: devices that a report is of, at least; a question may ask for more.
        references: of bundles, which reports tell drift against.

    Attributes:
        draining: the receiver ends: no more is taken.
        measures: what it has done.
        watch: what looks at the fleet; None: nothing does.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: Keys | None = None,
        rates: Rates | None = None,
        max_body: int = 8 * 2**20,
        max_held: int = 64 * 2**20,
        k: int = DEFAULT_K,
        references: Sequence[DriftReference] | None = None,
    ) -> None:
        self.store = store
        self.keys = keys or Keys()
        self._rates = rates or Rates(0)
        self._max_body, self._max_held = max_body, max(max_held, max_body)
        self._k, self._references = k, references
        self._held = 0
        self._waiting: list[_Waiting] = []
        self._asking = 0
        self._writer = ThreadPoolExecutor(1, "edgekit-telemetry-store")
        self._readers = ThreadPoolExecutor(_READERS_MOST, "edgekit-telemetry-report")
        self._writing: asyncio.Task[None] | None = None
        self.draining = False
        self.measures = Measures()
        self.watch: Watch | None = None

    @property
    def current(self) -> int:
        """Requests that are not answered yet."""
        return len(self._waiting) + (self._held > 0) + self._asking

    async def handle(self, call: Call) -> Reply:
        """Answers one request; never raises but for cancellation."""
        try:
            reply = await self._answer(call)
        except Refusal as refusal:
            reply = refused(refusal)
        except asyncio.CancelledError:
            self.measures.statuses[499] += 1
            raise
        except Exception:
            log.exception("a request failed", extra={"path": call.path[:200]})
            # OTLP has clients drop what 500 answers; the fault is here, and may pass.
            reply = refused(Refusal(503, "internal error", _AGAIN))
        self.measures.statuses[reply.status] += 1
        return reply

    async def _answer(self, call: Call) -> Reply:
        if call.path in _READERS:
            if call.method != "POST":
                raise Refusal(405, f"{call.path} takes POST", {"Allow": "POST"})
            return await self._take(call)
        if call.path == "/v1/check":
            if call.method != "POST":
                raise Refusal(405, f"{call.path} takes POST", {"Allow": "POST"})
            return await self._check(call)
        if call.path not in _PATHS:
            raise Refusal(404, f"there are {', '.join(_PATHS)}")
        if call.method not in ("GET", "HEAD"):
            raise Refusal(405, f"{call.path} takes GET", {"Allow": "GET, HEAD"})
        if call.path == "/":
            return page()
        if call.path in _QUESTIONS:
            return await self._ask(call)
        if call.path == "/v1/alerts":
            self._admit_reader(call)
            return json_reply(_NO_ALERTS if self.watch is None else self.watch.to_json())
        if call.path == "/metrics":
            self._admit_reader(call)
            return Reply(
                200, self._metrics().encode(), {"Content-Type": "text/plain; version=0.0.4"}
            )
        if call.path == "/health/ready" and self.draining:
            raise Refusal(503, "the receiver is ending")
        return json_reply({"ok": True})

    async def _take(self, call: Call) -> Reply:
        caller = self.keys.caller(call.headers)
        self._rates.take(caller.name or network(call.address))
        if self.draining:
            raise Refusal(503, "the receiver is ending", _AGAIN)
        kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _TYPES:
            raise Refusal(415, "a request is application/x-protobuf or application/json")
        room = self._room(call)
        if self._held + room > self._max_held:
            raise Refusal(503, "more comes than can be written", _AGAIN)
        self._held += room
        try:
            body = await call.body()
            # It may have been compressed, or have come in chunks of any size. Bodies are inflated
            # one at a time, so no more than one is ever beyond what there is room for.
            if self._held + len(body) - room > self._max_held:
                raise Refusal(503, "more comes than can be written", _AGAIN)
            self._held += len(body) - room
            room = len(body)
            waiting = _Waiting(call.path, body, _TYPES[kind])
            self._waiting.append(waiting)
            if self._writing is None:
                self._writing = asyncio.create_task(self._write())
            # A client that leaves doesn't take back what it has sent.
            return await asyncio.shield(waiting.answer)
        finally:
            self._held -= room

    async def _ask(self, call: Call) -> Reply:
        """A report, for callers who may administer: what devices send is not for those who send."""
        self._admit_reader(call)
        asked = _QUESTIONS[call.path].parsed(call.query, self._k)
        if isinstance(asked, Question):
            return await self._reported(partial(asked.answer, references=self._references))
        return await self._reported(asked.answer)

    async def _check(self, call: Call) -> Reply:
        """What rules of a request would find now."""
        self._admit_reader(call)
        rules = asked_rules(await call.body())
        interval_s = DEFAULT_INTERVAL_S if self.watch is None else self.watch.watched.interval_s
        asked = partial(
            check,
            rules=rules,
            now_s=time.time(),
            k=self._k,
            interval_s=interval_s,
            references=self._references or (),
        )
        return await self._reported(asked)

    async def _reported(self, function: Callable[[Reader], dict[str, Any]]) -> Reply:
        if self._asking >= _ASKING_MOST:
            raise Refusal(503, f"{_ASKING_MOST} reports are asked for already", _AGAIN)
        self._asking += 1
        try:
            return json_reply(await self.read(function))
        except UsageError as error:
            raise Refusal(400, str(error)) from error
        except StorageError as error:
            log.error("the store cannot be read", extra={"reason": str(error)})
            raise Refusal(503, "the store cannot be read now", _AGAIN) from error
        finally:
            self._asking -= 1

    def _metrics(self) -> str:
        now = {
            "held_bytes": self._held,
            "held_limit_bytes": self._max_held,
            "waiting_requests": len(self._waiting),
            "reports": self._asking,
            "store_bytes": self.store.size(),
        }
        return render(self.measures, now, self.watch)

    def _admit_reader(self, call: Call) -> None:
        caller = self.keys.caller(call.headers)
        if self.keys.callers and not caller.admin:
            raise Refusal(403, "the key may send, not read; an admin's may")
        self._rates.take(caller.name or network(call.address))

    async def read(self, function: Callable[[Reader], _T]) -> _T:
        """What a function finds in one state of the store, beside writes.

        Raises:
            StorageError: it cannot be read.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._read, function)

    def _read(self, function: Callable[[Reader], _T]) -> _T:
        """In a thread of its own."""
        with self.store.reading() as reader:
            return function(reader)

    def _room(self, call: Call) -> int:
        """Bytes that a body takes while it comes: slow devices are many, and what they send is
        small; what it is inflated is counted then."""
        stated = call.headers.get("content-length", "")
        return min(int(stated), self._max_body) if stated.isdigit() else self._max_body

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                together = self._next()
                replies = await loop.run_in_executor(self._writer, self._written, together)
                for waiting, reply in zip(together, replies, strict=True):
                    if not waiting.answer.done():
                        waiting.answer.set_result(reply)
        finally:
            self._writing = None

    def _next(self) -> list[_Waiting]:
        size = n = 0
        for waiting in self._waiting:
            size += len(waiting.body)
            if n and size > _MOST_TOGETHER:
                break
            n += 1
        together, self._waiting = self._waiting[:n], self._waiting[n:]
        return together

    # -- in the writer's thread -------------------------------------------------------------------

    def _written(self, together: Sequence[_Waiting]) -> list[Reply]:
        requests: list[Request | Reply] = []
        for waiting in together:
            try:
                requests.append(_READERS[waiting.path](waiting.body, waiting.as_json))
            except BadData as error:
                requests.append(refused(Refusal(400, str(error))))
            except Exception:
                log.exception("a body could not be read")
                requests.append(refused(Refusal(400, "the body cannot be read")))
        taken = [request for request in requests if isinstance(request, Request)]
        begun = time.perf_counter()
        try:
            done = self.store.write([d for request in taken for d in request.deliveries])
        except Exception as error:
            # Nothing of it is written: it is to be sent again.
            level = logging.ERROR if isinstance(error, EdgekitError) else logging.CRITICAL
            log.log(level, "nothing can be written", exc_info=not isinstance(error, EdgekitError),
                    extra={"reason": str(error)})  # fmt: skip
            again = refused(Refusal(503, "the store cannot be written now", _AGAIN))
            return [again if isinstance(r, Request) else r for r in requests]
        if taken:
            self.measures.wrote(time.perf_counter() - begun, time.time())
        refused_ids = {id(delivery) for delivery in done.refused}
        self.measures.counted["duplicates"] += done.duplicates
        return [
            self._accepted(waiting, request, refused_ids)
            if isinstance(request, Request)
            else request
            for waiting, request in zip(together, requests, strict=True)
        ]

    def _accepted(self, waiting: _Waiting, request: Request, no_room: set[int]) -> Reply:
        for delivery in request.deliveries:
            size = len(delivery.points) + len(delivery.events)
            if id(delivery) in no_room:
                request.rejected["the store has as many cohorts as there may be"] += size
            else:
                self.measures.counted["written"] += size
        count = request.rejected.total()
        self.measures.rejected.update(request.rejected)
        message = "; ".join(f"{n}: {why}" for why, n in request.rejected.most_common(5))
        name, key = _RESPONSES[waiting.path]
        if waiting.as_json:
            partial = {key: str(count), "errorMessage": message}
            return json_reply({"partialSuccess": partial} if count else {})
        found = {"partial_success": {"rejected": count, "error_message": message}} if count else {}
        return Reply(200, otlp.encode(name, found), {"Content-Type": "application/x-protobuf"})

    async def close(self) -> None:
        """Answers what waits, and closes the store."""
        self.draining = True
        if self._writing is not None:
            await asyncio.wait([self._writing])
        self._writer.shutdown()
        # What still reads now is ended: it was waited for as long as the receiver was told to.
        self._readers.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.store.close)

    async def tidy(self, keep_days: int) -> None:
        """The store's upkeep: each of its steps between two writes, so that none waits for more.

        Raises:
            StorageError: what was to be done last was not.
        """
        loop = asyncio.get_running_loop()
        steps = self.store.tidying(keep_days)
        while await loop.run_in_executor(self._writer, _one_more, steps):
            pass


def _one_more(steps: Iterator[None]) -> bool:
    return next(steps, steps) is None
