"""A load generator: open and closed loop, one thread, its own processor time told apart.

Open loop: requests are due at times that were drawn before (Poisson, seeded), whether or not
earlier ones are answered, and a latency counts from when its request was due, so that a server that
stalls cannot hide it (Open Versus Closed: A Cautionary Tale, NSDI 2006). What finds no free
connection waits, and that counts too. Closed loop: so many clients that each ask again as soon as
they are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
import numpy as np
import uvloop

__all__ = ["CONNECTIONS", "Address", "Loaded", "Plan", "run", "summary"]

CONNECTIONS = 512
GRACE_S = 40.0
"""How long answers are waited for after the last request was due."""

_AGAIN_S = 0.05


@dataclass(frozen=True)
class Address:
    """Where the server listens.

    Attributes:
        host, port: a name or an address, and its port.
        tls: a context for TLS, or None.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Plan:
    """What is sent.

    Attributes:
        seconds: for how long.
        rate: requests per second, open loop; None for a closed one.
        concurrency: clients of a closed loop, or the most connections of an open one.
        seed: of the times of an open loop.
    """

    seconds: float
    rate: float | None = None
    concurrency: int = CONNECTIONS
    seed: int = 0


@dataclass(frozen=True)
class Loaded:
    """What came back.

    Attributes:
        seconds: as planned.
        sent: requests that were due.
        latency_ms: by status, in the order of the answers; status 0 where a connection broke.
        last_ok_s: when the last 200 came, in seconds from the beginning.
        unanswered: requests for which nothing came.
        late_ms_p99: how late the generator itself was; 0 for a closed loop.
        client_cpu_s: processor time of the generator.
    """

    seconds: float
    sent: int
    latency_ms: dict[str, list[float]]
    last_ok_s: float
    unanswered: int
    late_ms_p99: float
    client_cpu_s: float


def run(address: Address, request: bytes, plan: Plan) -> Loaded:
    """Sends one request again and again.

    Args:
        address: of the server.
        request: the bytes of one HTTP/1.1 request.
        plan: how often.

    Raises:
        OSError: the server takes no connection at the beginning.
    """

    async def job() -> Loaded:
        load = _Load(address, request)
        await load.connect(plan.concurrency)
        # From here on: connections, over TLS in particular, take their time.
        begun, before = time.perf_counter(), _cpu_s()
        if plan.rate is None:
            await load.closed(plan.concurrency, plan.seconds)
        else:
            await load.opened(plan.rate, plan)
        by_status: dict[str, list[float]] = {}
        for status, seconds, _ in load.found:
            by_status.setdefault(str(status), []).append(round(seconds * 1e3, 4))
        ends = [at - begun for status, _, at in load.found if status == 200]
        return Loaded(
            plan.seconds,
            len(load.found) + load.open,
            by_status,
            max(ends, default=0.0),
            load.open,
            float(np.percentile(load.late, 99) * 1e3) if load.late else 0.0,
            _cpu_s() - before,
        )

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(job())


def summary(loaded: Loaded, objective_ms: float | None = None) -> dict[str, Any]:
    """Rates, statuses and percentiles.

    Args:
        loaded: what came back.
        objective_ms: only answers within it count as good; all of status 200 without.
    """
    ok = np.array(loaded.latency_ms.get("200", []))
    good = ok.size if objective_ms is None else int((ok <= objective_ms).sum())
    # What ends after the time is over is not part of the rate.
    took = max(loaded.seconds, loaded.last_ok_s)
    return {
        "seconds": loaded.seconds,
        "sent": loaded.sent,
        "offered_per_s": loaded.sent / loaded.seconds,
        "answered_per_s": float(ok.size / took),
        "good_per_s": float(good / took),
        "statuses": {status: len(found) for status, found in sorted(loaded.latency_ms.items())},
        "unanswered": loaded.unanswered,
        "latency_ms": {
            status: _percentiles(np.array(found))
            for status, found in sorted(loaded.latency_ms.items())
        },
        "generator": {"late_ms_p99": loaded.late_ms_p99, "cpu_s": loaded.client_cpu_s},
    }


def _percentiles(values: np.ndarray[Any, Any]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 99, 100)}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class _Link(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self, load: _Load) -> None:
        self.load = load
        self.due = 0.0
        self.busy = False
        self.ending = False
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, due: float) -> None:
        self.due, self.busy = due, True
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200:
            return
        self.busy = False
        self.ending = not self.parser.should_keep_alive()
        self.load.answered(self, status, time.perf_counter() - self.due)
        if self.ending:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self.load.answered(None, 0, time.perf_counter() - self.due)
        self.load.lost(self)


class _Load:
    """All connections, and what came back."""

    def __init__(self, address: Address, request: bytes) -> None:
        self.address, self.request = address, request
        self.free: deque[_Link] = deque()
        self.waiting: deque[float] = deque()
        self.found: list[tuple[int, float, float]] = []
        self.late: list[float] = []
        self.open = 0
        self.again = False
        self.idle = asyncio.Event()
        self._ended = False
        self._links: set[_Link] = set()
        self._jobs: set[asyncio.Task[None]] = set()

    async def closed(self, concurrency: int, seconds: float) -> None:
        """Clients, one for each connection, with one request at a time."""
        self.again = True
        for _ in range(concurrency):
            self._due(time.perf_counter())
        await asyncio.sleep(seconds)
        self.again = False
        await self._end()

    async def opened(self, rate: float, plan: Plan) -> None:
        """Requests at times that do not ask for the answers."""
        rng = np.random.default_rng(plan.seed)
        gaps = rng.exponential(1 / rate, int(rate * plan.seconds * 1.5) + 100)
        times = np.cumsum(gaps)
        start = time.perf_counter()
        for at in times[times < plan.seconds]:
            now = time.perf_counter() - start
            if at > now:
                await asyncio.sleep(at - now)
            self.late.append(time.perf_counter() - start - at)
            self._due(start + at)
        await self._end()

    async def connect(self, n: int) -> None:
        """So many connections, all of them free."""
        for _ in range(n):
            self.free.append(await self._link())

    async def _link(self) -> _Link:
        make: Callable[[], _Link] = lambda: _Link(self)  # noqa: E731
        where = self.address
        name = where.host if where.tls is not None else None
        _, link = await asyncio.get_running_loop().create_connection(
            make, where.host, where.port, ssl=where.tls, server_hostname=name
        )
        self._links.add(link)
        return link

    def _due(self, at: float) -> None:
        """A request is due; it goes now if a connection is free."""
        self.open += 1
        if self.free:
            self.free.pop().send(at)
        else:
            self.waiting.append(at)

    def answered(self, link: _Link | None, status: int, seconds: float) -> None:
        """One request is over; its connection, if it goes on, takes the next."""
        if self._ended:
            return
        self.found.append((status, seconds, time.perf_counter()))
        self.open -= 1
        if self.again:
            self.open += 1
            self.waiting.append(time.perf_counter())
        if link is not None and not link.ending:
            self._take(link)
        if not self.open:
            self.idle.set()

    def _take(self, link: _Link) -> None:
        if self.waiting:
            link.send(self.waiting.popleft())
        else:
            self.free.append(link)

    def lost(self, link: _Link) -> None:
        """A connection ended; another takes its place."""
        self._links.discard(link)
        with contextlib.suppress(ValueError):
            self.free.remove(link)
        if not self._ended:
            task = asyncio.get_running_loop().create_task(self._replace())
            self._jobs.add(task)
            task.add_done_callback(self._jobs.discard)

    async def _replace(self) -> None:
        while not self._ended:
            try:
                link = await self._link()
            except OSError:
                await asyncio.sleep(_AGAIN_S)
                continue
            self._take(link)
            return

    async def _end(self) -> None:
        """Waits for what is open; what does not come is counted as without an answer."""
        if self.open:
            self.idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.idle.wait(), GRACE_S)
        self._ended = True
        for job in list(self._jobs):
            job.cancel()
        for link in list(self._links):
            link.transport.abort()
        while self._links:
            await asyncio.sleep(0)
