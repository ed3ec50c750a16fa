"""HTTP/1.1 as uvicorn speaks it, with limits that it does not have: on headers, on how slowly they
and a body may come, and on how many connections there may be; and word of clients that leave.

Large bodies of a known length are read from the socket straight into the memory that the handler
gets, past the parser: of a picture in float32, half a megabyte, each copy costs about as much as
everything else that is done with a request. What is left of a body that was refused is read over.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import httptools
import numpy as np
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgekit.serve.asgi import CONNECTION
from edgekit.serve.refusal import CODES, Refusal

__all__ = ["Limits", "protocol"]


_HIGH_WATER = 2**20
_LARGE = 32_768
"""Bytes that are yet to come from which on the parser is passed by."""

_PIPELINED = 32
"""Requests that wait for their turn on one connection."""

# One for all connections: what is read into it is taken out before the loop reads again.
_SCRATCH = memoryview(bytearray(262_144))


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
        body_bytes: of a body, as it comes.
    """

    headers_s: float = 10.0
    body_s: float = 30.0
    header_bytes: int = 32_768
    header_count: int = 100
    connections: int = 20_000
    keep_alive_s: int = 75
    body_bytes: int = 32 * 2**20


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """What uvicorn takes as its class of connections."""

    class Limited(_Buffered):
        pass

    Limited.limits = limits
    # uvloop reads into a protocol's own memory only where it is no `asyncio.Protocol`. uvicorn asks
    # for one, and hands it on.
    return cast("type[asyncio.Protocol]", Limited)


class _Buffered(asyncio.BufferedProtocol):
    """The face that a connection shows to the event loop."""

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        inner = _LimitedProtocol(self.limits, *args, **kwargs)
        self._inner = inner
        self.get_buffer = inner.get_buffer  # type: ignore[method-assign]
        self.buffer_updated = inner.buffer_updated  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]
        self.connection_lost = inner.connection_lost  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(cast(asyncio.Transport, transport))

    def eof_received(self) -> None:
        self._inner.eof_received()


class _LimitedProtocol(HttpToolsProtocol):
    def __init__(self, limits: Limits, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._header_bytes = 0
        self._in_body = False
        self._body_bytes = 0
        self._stalled: asyncio.TimerHandle | None = None
        self._left: list[Callable[[], None]] = []
        self._into: memoryview | None = None
        self._to_come = 0
        self._again = False

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
        # uvicorn leaves it running where the client broke off, and with it all of the connection.
        self._unset_keepalive_if_required()
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

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go; see `asyncio.BufferedProtocol`."""
        if not self._to_come:
            return _SCRATCH
        if self._into is None and not self.cycle.response_complete:
            self._make_room()
        into = _SCRATCH if self._into is None else self._into[-self._to_come :]
        return into[: self._to_come]

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come; see `asyncio.BufferedProtocol`."""
        if not self._to_come:
            self.data_received(bytes(_SCRATCH[:nbytes]))
            return
        self._to_come -= nbytes
        cycle = self.cycle
        if cycle.response_complete:
            self._into = None
        if self._to_come:
            return
        if self._into is not None:
            cycle.body = self._into  # type: ignore[assignment]
            self._into = None
        # The parser has not seen this body, and waits for it; the next request gets another.
        self.parser = httptools.HttpRequestParser(self)
        self.on_message_complete()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError:
            # What is no HTTP is told so in JSON, like everything else.
            self._refuse(400, "this is not HTTP/1.1")
        self._expect_more()

    def _expect_more(self) -> None:
        if self._refused:
            return
        if self._in_body:
            self._pass_by_the_parser()
        # Before the first request uvicorn has no cycle, whatever its annotation says.
        elif self._timer is None and getattr(self.cycle, "response_complete", True):
            # Empty lines may come before a request, and are none.
            self._expect(self.limits.headers_s)

    def _parse(self, data: bytes) -> bytes:
        """Gives the parser what has come; what it left is to be given again.

        It ends at the headers of a request that offers to speak another protocol than HTTP/1.1,
        though that has a body like any other (Java's client offers HTTP/2 with each first request).
        The offer is passed over: another parser is told how long the body is.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            framing = (b"content-length", b"transfer-encoding")
            lines = [b"%s: %s\r\n" % (k, v) for k, v in self.headers if k in framing]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(lines))
            return data[offer.args[0] :]
        return b""

    def _pass_by_the_parser(self) -> None:
        """Has the rest of a large body read into its place, or over."""
        cycle = self.cycle
        stated = [v for k, v in self.headers if k == b"content-length"]
        if not stated or any(k == b"transfer-encoding" for k, _ in self.headers):
            return
        length = int(stated[0])
        left = length - self._body_bytes
        if left < _LARGE or length > self.limits.body_bytes:
            return
        self._to_come = left
        # Not read, and no room made for it, before the handler asks for it: it may refuse.
        if not cycle.response_complete:
            self.flow.pause_reading()

    def _make_room(self) -> None:
        came = self.cycle.body
        # Not a bytearray: that would be written to once only to be zero.
        self._into = np.empty(len(came) + self._to_come, np.uint8).data
        self._into[: len(came)] = came

    def on_message_begin(self) -> None:
        if self._again:
            return
        super().on_message_begin()
        self._header_bytes = 0
        self._expect(self.limits.headers_s)

    def on_url(self, url: bytes) -> None:
        if self._again:
            return
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._again:
            return
        # Behind a chunked body they are trailers, which say nothing of who asks or what comes.
        if not self._in_body:
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
        if self._again:
            self._again = False
            return
        if len(self.pipeline) >= _PIPELINED:
            self._end_behind()
            raise _TooMany
        super().on_headers_complete()
        self._again = self.parser.should_upgrade()
        extensions: dict[str, Any] = {CONNECTION: _Request(self, self.cycle)}
        self.scope["extensions"] = extensions
        self._in_body, self._body_bytes = True, 0
        self._expect(self.limits.body_s)

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        self._body_bytes += len(body)
        if self._refused or cycle.response_complete:
            return
        # The handler wants all of it: it is woken when that is there, not for every part.
        cycle.body += body
        if len(cycle.body) > _HIGH_WATER:
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._again:
            return
        self._in_body = False
        self._expect(None)
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._left.clear()
        if not self.pipeline:
            self.cycle.body = bytearray()
        super().on_response_complete()

    def _refuse(self, status: int, message: str) -> None:
        """Answers without the application where it is this request's turn, and closes."""
        cycle: Any = self.cycle  # None before the first request
        waiting = cycle is not None and not cycle.response_complete
        if self._refused:
            return
        if waiting and not self._in_body:
            self._end_behind()
            return
        self._refused = True
        self._expect(None)
        if waiting and (self.pipeline or cycle.response_started):
            # Others' answers come first, or half of its own is sent.
            self.transport.abort()
        elif self._in_body and not waiting:
            # It was refused before its body had come.
            self.transport.close()
        else:
            self._send_refusal(status, message)

    def _end_behind(self) -> None:
        """Lets what has come before be answered, reads no more, and closes then."""
        self._refused = True
        self._expect(None)
        self.cycle.keep_alive = False

    def _send_refusal(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    # -- for the handler --------------------------------------------------------------------------

    def when_gone(self, notify: Callable[[], None]) -> None:
        """See `edgekit.serve.asgi.Connection`."""
        if self.transport.is_closing():
            notify()
        else:
            self._left.append(notify)


class _TooMany(Exception):
    """Ends the parser's work on what has been read."""


class _Request:
    """See `edgekit.serve.asgi.Connection`."""

    def __init__(self, link: _LimitedProtocol, cycle: Any) -> None:
        # Its scope holds this; together they would stay, with a body, until garbage is collected.
        self._cycle = weakref.ref(cycle)
        self.when_gone = link.when_gone

    async def body(self, limit: int) -> bytes | memoryview:
        """All of it, without a copy where it is large."""
        cycle = self._cycle()
        if cycle is None:
            raise Refusal(499, "the client left")
        if cycle.waiting_for_100_continue and not cycle.transport.is_closing():
            cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        while cycle.more_body and not cycle.disconnected and len(cycle.body) <= limit:
            cycle.flow.resume_reading()
            await cycle.message_event.wait()
            cycle.message_event.clear()
        if cycle.disconnected:
            raise Refusal(499, "the client left")
        whole, cycle.body = cycle.body, bytearray()
        return whole if isinstance(whole, memoryview) else bytes(whole)
