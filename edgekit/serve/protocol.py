"""HTTP/1.1 as uvicorn speaks it, with limits that it does not have: on headers, on how slowly they
and a body may come, and on how many connections there may be; and word of clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgekit.serve.asgi import GONE
from edgekit.serve.refusal import CODES

__all__ = ["Limits", "protocol"]


_HIGH_WATER = 2**20


@dataclass(frozen=True)
class Limits:
    """What a connection may do.

    Attributes:
        headers_s: seconds until the first request's headers, or from one's first byte until they
            are complete.
        body_s: seconds for a body.
        header_bytes: of the target and all headers.
        header_count: headers of one request.
        connections: open at a time.
        keep_alive_s: how long a connection may be idle between requests.
    """

    headers_s: float = 10.0
    body_s: float = 30.0
    header_bytes: int = 32_768
    header_count: int = 100
    connections: int = 20_000
    keep_alive_s: int = 75


def protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """The class of connections for uvicorn."""

    class Limited(_LimitedProtocol):
        pass

    Limited.limits = limits
    return Limited


class _LimitedProtocol(HttpToolsProtocol):
    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._header_bytes = 0
        self._in_body = False
        self._stalled: asyncio.TimerHandle | None = None
        self._left: list[Callable[[], None]] = []

    # -- time -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too many connections")
            return
        self._expect(self.limits.headers_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)
        left, self._left = self._left, []
        for notify in left:
            notify()

    def _expect(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        cycle: Any = self.cycle  # None before the first request
        answered = cycle is not None and (cycle.response_started or not cycle.more_body)
        if self._in_body and cycle.response_complete:
            # It was refused before its body had come.
            self.transport.close()
        elif answered and not cycle.response_complete:
            # Another answer is on its way, between which and this client's there is no room.
            self.transport.abort()
        else:
            self._refuse(408, CODES[408])

    def pause_writing(self) -> None:
        """The client does not read its answer: it has as long as for a body."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.body_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    # -- sizes ------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._expect(self.limits.headers_s)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def _count(self, size: int) -> None:
        self._header_bytes += size
        many = len(self.headers) > self.limits.header_count
        if many or self._header_bytes > self.limits.header_bytes:
            self._refuse(431, CODES[431])

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        super().on_headers_complete()
        extensions: dict[str, Any] = {GONE: self}
        self.scope["extensions"] = extensions
        self._in_body = True
        self._expect(self.limits.body_s)

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if self._refused or cycle.response_complete:
            return
        # The handler wants all of it: it is woken when that is there, not for every part.
        cycle.body += body
        if len(cycle.body) > _HIGH_WATER:
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._expect(None)
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._left.clear()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so in JSON, like everything else."""
        self._refuse(400, "this is not HTTP/1.1")

    def _refuse(self, status: int, message: str) -> None:
        """Answers without the application, and closes."""
        if self._refused:
            return
        self._refused = True
        self._expect(None)
        body = json.dumps({"error": message}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    # -- clients that leave -----------------------------------------------------------------------

    def when_gone(self, notify: Callable[[], None]) -> None:
        """See `edgekit.serve.asgi.Departures`."""
        if self.transport.is_closing():
            notify()
        else:
            self._left.append(notify)
