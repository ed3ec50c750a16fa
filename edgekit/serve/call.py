"""A request and an answer, as the handler sees them: no server framework's types."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.serve.refusal import Refusal

__all__ = ["Call", "Reply", "json_reply", "never", "refused"]

Gone = Callable[[Callable[[], None]], None]


def never(_notify: Callable[[], None]) -> None:
    """For servers that do not tell when a client leaves."""


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        method: ``GET`` and so on.
        path: as sent, percent-encoded, without the query.
        query: as sent, without the question mark.
        headers: names in lower case; of several with one name the last.
        body: reads all of the body, decompressed, at most as large as allowed. It may raise
            `Refusal` with 400, 408, 413 or 415. A request that is refused before is never read.
        address: of the client.
        gone: takes a function that is to be called when the client leaves.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Callable[[], Awaitable[bytes | memoryview]]
    query: str = ""
    address: str = ""
    gone: Gone = never


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_reply(document: Any, status: int = 200) -> Reply:
    """An answer in JSON."""
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return Reply(status, body, {"Content-Type": "application/json"})


def refused(refusal: Refusal) -> Reply:
    """The protocol's form of an error."""
    reply = json_reply({"error": refusal.message}, refusal.status)
    return Reply(reply.status, reply.body, {**reply.headers, **refusal.headers})
