"""Ingest: OTLP/HTTP requests, written before they are acknowledged.

Bodies that come while one transaction is written wait for the next one together: a commit costs a
disk's flush however much is in it. What waits is bounded in bytes, also of bodies that are still to
come; beyond that clients are told to come again (503, which OTLP has them do).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from edgekit.errors import BadData, EdgekitError, UsageError
from edgekit.runtime import otlp
from edgekit.runtime.drift_reference import DriftReference
from edgekit.serve.call import Call, Reply, json_reply, refused
from edgekit.serve.refusal import Refusal
from edgekit.serve.security import Keys, Rates, network
from edgekit.telemetry.cohorts import DEFAULT_K
from edgekit.telemetry.question import Question
from edgekit.telemetry.reading import Request, read_logs, read_metrics
from edgekit.telemetry.store import Store

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


@dataclass
class _Waiting:
    path: str
    body: bytes | memoryview
    as_json: bool
    answer: asyncio.Future[Reply] = field(default_factory=asyncio.Future)


class Ingest:
    """Answers OTLP/HTTP.

    Args:
        store: is used by this alone, from a thread of its own.
        keys: who may send; anyone where there are none.
        rates: how often.
        max_body: bytes of one body, decompressed.
        max_held: bytes of all bodies that are read or wait.
        k: devices that a report is of, at least; a question may ask for more.
        references: of bundles, which reports tell drift against.

    Attributes:
        draining: the receiver ends: no more is taken.
        statuses: requests by status.
        counted: points and events by what became of them: ``written``, ``rejected``; and
            ``duplicates``, records that came again.
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
        self._k = k
        self._references = references
        self._held = 0
        self._waiting: list[_Waiting] = []
        self._writer = ThreadPoolExecutor(1, "edgekit-telemetry-store")
        self._writing: asyncio.Task[None] | None = None
        self.draining = False
        self.statuses: Counter[int] = Counter()
        self.counted: Counter[str] = Counter()

    @property
    def current(self) -> int:
        """Requests that are not answered yet."""
        return len(self._waiting) + (self._held > 0)

    async def handle(self, call: Call) -> Reply:
        """Answers one request; never raises but for cancellation."""
        try:
            reply = await self._answer(call)
        except Refusal as refusal:
            reply = refused(refusal)
        except asyncio.CancelledError:
            self.statuses[499] += 1
            raise
        except Exception:
            log.exception("a request failed", extra={"path": call.path[:200]})
            # OTLP has clients drop what 500 answers; the fault is here, and may pass.
            reply = refused(Refusal(503, "internal error", _AGAIN))
        self.statuses[reply.status] += 1
        return reply

    async def _answer(self, call: Call) -> Reply:
        if call.path in _READERS:
            if call.method != "POST":
                raise Refusal(405, f"{call.path} takes POST", {"Allow": "POST"})
            return await self._take(call)
        if call.path not in ("/health/live", "/health/ready", "/v1/report"):
            raise Refusal(
                404, "there are /v1/metrics, /v1/logs, /v1/report, /health/live and /health/ready"
            )
        if call.method not in ("GET", "HEAD"):
            raise Refusal(405, f"{call.path} takes GET", {"Allow": "GET, HEAD"})
        if call.path == "/v1/report":
            return await self._report(call)
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
            # It may have been compressed, or have come in chunks of any size.
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

    async def _report(self, call: Call) -> Reply:
        """A report, for callers who may administer: what devices send is not for those who send."""
        caller = self.keys.caller(call.headers)
        if self.keys.callers and not caller.admin:
            raise Refusal(403, "the key may send, not read; an admin's may")
        self._rates.take(caller.name or network(call.address))
        asked = Question.parsed(call.query, self._k)
        loop = asyncio.get_running_loop()
        try:
            document = await loop.run_in_executor(
                self._writer, asked.answer, self.store, self._references
            )
        except UsageError as error:
            raise Refusal(400, str(error)) from error
        return json_reply(document)

    def _room(self, call: Call) -> int:
        stated = call.headers.get("content-length", "")
        plain = call.headers.get("content-encoding", "identity").strip().lower() == "identity"
        return min(int(stated), self._max_body) if plain and stated.isdigit() else self._max_body

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
        try:
            done = self.store.write([d for request in taken for d in request.deliveries])
        except Exception as error:
            # Nothing of it is written: it is to be sent again.
            level = logging.ERROR if isinstance(error, EdgekitError) else logging.CRITICAL
            log.log(level, "nothing can be written", exc_info=not isinstance(error, EdgekitError),
                    extra={"reason": str(error)})  # fmt: skip
            again = refused(Refusal(503, "the store cannot be written now", _AGAIN))
            return [again if isinstance(r, Request) else r for r in requests]
        refused_ids = {id(delivery) for delivery in done.refused}
        self.counted["duplicates"] += done.duplicates
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
                self.counted["written"] += size
        count = request.rejected.total()
        self.counted["rejected"] += count
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
        self.store.close()

    async def tidy(self, keep_days: int) -> None:
        """The store's upkeep, between two writes.

        Raises:
            StorageError: nothing was changed.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self.store.tidy, keep_days)
