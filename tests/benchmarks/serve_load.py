"""The load generator of `serve.py`: open and closed loop, one thread, its own processor time told.

    python tests/benchmarks/serve_load.py PORT REQUEST --closed 16 --seconds 5
    python tests/benchmarks/serve_load.py PORT REQUEST --open 800 --seconds 5

REQUEST is a file with the bytes of one HTTP/1.1 request. Open loop: requests are due at times that
were drawn before (Poisson, seeded), whether or not earlier ones are answered, and a latency counts
from when its request was due, so that a server that stalls cannot hide it. What finds no free
connection within `CONNECTIONS` waits, and that counts too. One JSON document goes to stdout:
latencies by status in ms, requests without an answer, and how late the generator itself was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import httptools
import numpy as np
import uvloop

CONNECTIONS = 512
GRACE_S = 40.0


class Link(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.due = 0.0
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)

    def send(self, due: float) -> None:
        self.due, self.busy = due, True
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.busy = False
        status = self.parser.get_status_code()
        self.load.answered(self, status, time.perf_counter() - self.due)

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self.load.answered(None, 0, time.perf_counter() - self.due)
        self.load.lost(self)


class Load:
    """All connections, and what came back."""

    def __init__(self, port: int, request: bytes) -> None:
        self.port, self.request = port, request
        self.free: deque[Link] = deque()
        self.waiting: deque[float] = deque()
        self.links = 0
        self.found: list[tuple[int, float, float]] = []
        self.open = 0
        self.again = False
        self.late: list[float] = []
        self.idle = asyncio.Event()

    async def connect(self, n: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(n):
            _, link = await loop.create_connection(lambda: Link(self), "127.0.0.1", self.port)
            self.free.append(link)
            self.links += 1

    def due(self, at: float) -> None:
        """A request is due; it goes now if a connection is free."""
        self.open += 1
        if self.free:
            self.free.pop().send(at)
        else:
            self.waiting.append(at)

    def answered(self, link: Link | None, status: int, seconds: float) -> None:
        self.found.append((status, seconds, time.perf_counter()))
        self.open -= 1
        if link is not None:
            if self.again:
                self.open += 1
                link.send(time.perf_counter())
            elif self.waiting:
                link.send(self.waiting.popleft())
            else:
                self.free.append(link)
        if not self.open:
            self.idle.set()

    def lost(self, link: Link) -> None:
        self.links -= 1
        if link in self.free:
            self.free.remove(link)

    async def closed(self, concurrency: int, seconds: float) -> None:
        await self.connect(concurrency)
        self.again = True
        for _ in range(concurrency):
            self.due(time.perf_counter())
        await asyncio.sleep(seconds)
        self.again = False
        await self.end()

    async def opened(self, rate: float, seconds: float, seed: int) -> None:
        await self.connect(CONNECTIONS)
        gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 1.5) + 10)
        times = np.cumsum(gaps)
        start = time.perf_counter()
        for at in times[times < seconds]:
            now = time.perf_counter() - start
            if at > now:
                await asyncio.sleep(at - now)
            self.late.append(time.perf_counter() - start - at)
            self.due(start + at)
        await self.end()

    async def end(self) -> None:
        """Waits for what is open; what does not come is counted as without an answer."""
        if self.open:
            self.idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.idle.wait(), GRACE_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("request", type=Path)
    parser.add_argument("--closed", type=int, metavar="CONCURRENCY")
    parser.add_argument("--open", type=float, metavar="PER_SECOND")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    async def job() -> dict[str, Any]:
        load = Load(options.port, options.request.read_bytes())
        begun = time.perf_counter()
        if options.closed:
            await load.closed(options.closed, options.seconds)
        else:
            await load.opened(options.open, options.seconds, options.seed)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        by_status: dict[str, list[float]] = {}
        for status, seconds, _ in load.found:
            by_status.setdefault(str(status), []).append(round(seconds * 1e3, 4))
        ends = [at - begun for status, _, at in load.found if status == 200]
        return {
            "seconds": options.seconds,
            "latency_ms": by_status,
            "last_ok_s": max(ends, default=0.0),
            "unanswered": load.open,
            "late_ms_p99": float(np.percentile(load.late, 99) * 1e3) if load.late else 0.0,
            "client_cpu_s": usage.ru_utime + usage.ru_stime,
        }

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump(runner.run(job()), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
