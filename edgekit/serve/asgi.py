"""The handler as an ASGI application: limits on bodies, and the way from a scope to a `Call`."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from edgekit.serve.call import Call, Reply, never
from edgekit.serve.refusal import Refusal

__all__ = ["CONNECTION", "Answers", "Application", "Connection"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

CONNECTION = "edgekit.connection"
"""Key of a scope's extensions: a `Connection`, where the server has one."""

_DESCRIBED = ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect")


class Connection(Protocol):
    """What a server can do for a request beyond ASGI."""

    async def body(self, limit: int) -> bytes | memoryview:
        """All of the body as it came, or more than ``limit`` of it.

        Raises:
            Refusal: 499, the client left.
        """
        ...

    def when_gone(self, notify: Callable[[], None]) -> None:
        """Has ``notify`` called if the client leaves before its answer."""
        ...


class Answers(Protocol):
    """What answers: a handler."""

    async def handle(self, call: Call) -> Reply:
        """Answers one request; never raises but for cancellation."""
        ...


class Application:
    """Answers by the handler; the pages that describe it come from another application.

    Args:
        handler: answers.
        description: FastAPI's application for ``/docs`` and ``/openapi.json``, or None.
        max_body: bytes of a body, as it comes.
        max_inflated: bytes of one that was compressed; as many as of any other without.
    """

    def __init__(
        self,
        handler: Answers,
        description: Asgi | None,
        max_body: int,
        max_inflated: int | None = None,
    ) -> None:
        self._handler = handler
        self._description = description
        self._max_body = max_body
        self._max_inflated = max_body if max_inflated is None else max_inflated

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        if scope["path"] in _DESCRIBED and self._description is not None:
            await self._description(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        client = scope.get("client")
        raw_path = scope.get("raw_path") or scope["path"].encode()
        connection: Connection | None = scope.get("extensions", {}).get(CONNECTION)
        call = Call(
            scope["method"],
            raw_path.decode("latin-1"),
            headers,
            _Body(receive, connection, headers, self._max_body, self._max_inflated).read,
            scope["query_string"].decode("latin-1"),
            client[0] if client else "",
            never if connection is None else connection.when_gone,
        )
        await _send(await self._handler.handle(call), call.method, send)


async def _send(reply: Reply, method: str, send: Send) -> None:
    headers = [(b"content-length", str(len(reply.body)).encode())]
    headers += [(k.lower().encode(), v.encode("latin-1")) for k, v in reply.headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    body = b"" if method == "HEAD" else reply.body
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class _Body:
    """Reads a body within its limit."""

    def __init__(
        self,
        receive: Receive,
        connection: Connection | None,
        headers: dict[str, str],
        limit: int,
        inflated: int,
    ) -> None:
        self._receive = receive
        self._connection = connection
        self._headers = headers
        self._limit = limit
        self._most = inflated

    async def read(self) -> bytes | memoryview:
        """All of it, decompressed; see `Call.body`."""
        stated = self._headers.get("content-length", "")
        # Before a byte of it is waited for.
        if stated.isdigit() and int(stated) > self._limit:
            raise _too_large(self._limit)
        encoding = self._headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity", "gzip", "deflate"):
            raise Refusal(415, "a body is sent as it is, or as gzip or deflate")
        if self._connection is not None:
            body = await self._connection.body(self._limit)
        else:
            body = await self._received()
        if len(body) > self._limit:
            raise _too_large(self._limit)
        return body if encoding in ("", "identity") else self._inflated(body, encoding)

    async def _received(self) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more and size <= self._limit:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Refusal(499, "the client left")
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _inflated(self, body: bytes | memoryview, encoding: str) -> bytes:
        inflater = zlib.decompressobj(31 if encoding == "gzip" else 15)
        try:
            # One byte more than is allowed tells that there is more, and costs no more.
            whole = inflater.decompress(body, self._most + 1)
        except zlib.error as error:
            raise Refusal(400, f"the body is no {encoding}") from error
        if len(whole) > self._most:
            raise _too_large(self._most)
        if not inflater.eof or inflater.unused_data:
            raise Refusal(400, f"the body is cut off, or more than one {encoding}")
        return whole


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"a body has at most {limit} bytes", {"Connection": "close"})
