"""What may come over a connection beside one good request after the other."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import socket
import struct
import time
import weakref
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="pip install 'edgekit[serve]'")

BODY = json.dumps(
    {"inputs": [{"name": "i", "shape": [1, 2], "datatype": "INT64", "data": [0, 1]}]}
).encode()
POST = b"POST /v2/models/lookup/infer HTTP/1.1\r\nHost: a\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
GOOD = POST + LENGTH + b"\r\n" + BODY
ASK = b"GET /v2 HTTP/1.1\r\nHost: a\r\n"
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"


def _chunks(*parts: bytes, trailer: bytes = b"") -> bytes:
    sized = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"Transfer-Encoding: chunked\r\n\r\n" + sized + b"0\r\n" + trailer + b"\r\n"


def _statuses(server: Any, *sent: bytes, pause: float = 0.2) -> tuple[list[int], bool]:
    """Statuses of all answers to what is sent, part by part, and whether the server closed."""
    got, closed = b"", False
    with server.open() as link:
        link.settimeout(1.5)
        for i, part in enumerate(sent):
            if i:
                time.sleep(pause)
            link.sendall(part)
        with contextlib.suppress(TimeoutError):
            while part := link.recv(65536):
                got += part
                link.settimeout(0.4)
            closed = True
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+)", got)], closed


@pytest.mark.parametrize(
    "head",
    [
        LENGTH + b"Transfer-Encoding: chunked\r\n",
        LENGTH + b"Content-Length: 5\r\n",
        LENGTH + LENGTH,
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"X: a\r\n b\r\n",
        OFFER + LENGTH + b"Transfer-Encoding: chunked\r\n",
    ],
)
def test_a_length_that_can_be_read_in_two_ways_is_refused(server: Any, head: bytes) -> None:
    assert _statuses(server, POST + head + b"\r\n" + BODY + GOOD) == ([400], True)


def test_an_offer_of_another_protocol_is_passed_over(server: Any) -> None:
    with_length = POST + OFFER + LENGTH + b"\r\n" + BODY
    in_chunks = POST + OFFER + _chunks(BODY[:9], BODY[9:])
    large = POST + OFFER + b"Content-Length: %d\r\n\r\n" % 200_000
    large += BODY + b" " * (200_000 - len(BODY))
    bare = ASK + OFFER + b"\r\n"
    whole = with_length + in_chunks + bare + large + GOOD
    assert _statuses(server, whole) == ([200] * 5, False)
    head = len(POST + OFFER + LENGTH) + 2
    assert _statuses(server, with_length[:head], with_length[head:], GOOD) == ([200] * 2, False)


def test_trailers_are_no_headers(server: Any) -> None:
    late = _chunks(BODY, trailer=b"Content-Encoding: br\r\n")
    assert _statuses(server, POST + late) == ([200], False)
    long = _chunks(BODY, trailer=b"X: " + b"a" * 40_000 + b"\r\n")
    assert _statuses(server, POST + long)[0] == [431]


def test_a_refusal_does_not_take_another_answers_place(server: Any) -> None:
    long = ASK + b"X: " + b"a" * 40_000 + b"\r\n\r\n"
    for bad in (long, b"\x00\x01 junk\r\n\r\n"):
        assert _statuses(server, GOOD + GOOD + bad) == ([200] * 2, True)
    # The other way round: what was refused has had its answer.
    absent = POST.replace(b"lookup", b"absent") + b"Transfer-Encoding: chunked\r\n\r\n"
    assert _statuses(server, absent + b"5\r\nhello\r\n", b"zz\r\n") == ([404], True)


def test_many_requests_in_one_breath(server: Any) -> None:
    """They are answered in turn up to a number, and the connection ends."""
    assert _statuses(server, GOOD * 30) == ([200] * 30, False)
    start = time.perf_counter()
    found, closed = _statuses(server, (ASK + b"\r\n") * 9000)
    assert closed and set(found) == {200} and 32 <= len(found) <= 100
    assert time.perf_counter() - start < 5


def test_empty_lines_keep_no_connection_and_one_too_many_is_refused(
    bundles: Any, start: Any
) -> None:
    limits = ("--header-timeout-s", "0.5", "--connections", "2")
    served = start(bundles.lookup, "--workers", "1", *limits)
    with served.open(), served.open(), served.open() as third:
        assert served.answer(third) == 503
        assert third.recv(9999) == b""
    with served.open() as link:
        link.sendall(ASK + b"\r\n")
        assert served.answer(link) == 200
        link.sendall(b"\r\n")
        assert served.answer(link) == 408
        assert link.recv(9999) == b""


def test_a_connection_that_the_client_breaks_off_is_forgotten() -> None:
    from uvicorn.server import ServerState

    from edgekit.serve.asgi import Application
    from edgekit.serve.handler import Handler
    from edgekit.serve.listening import ServerSettings, configuration
    from edgekit.serve.protocol import Limits, protocol

    config = configuration(Application(Handler([]), None, 2**20), ServerSettings())
    kept: list[Any] = []

    def made() -> Any:
        link: Any = protocol(Limits())
        link = link(config=config, server_state=ServerState(), app_state={})
        kept.append(weakref.ref(link._inner))
        return link

    def visit(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            assert link.recv(999).startswith(b"HTTP/1.1 200")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def job() -> None:
        server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        await asyncio.to_thread(visit, server.sockets[0].getsockname()[1])
        for _ in range(100):
            await asyncio.sleep(0.02)
            gc.collect()
            if kept[0]() is None:
                break
        assert kept[0]() is None
        server.close()

    asyncio.run(asyncio.wait_for(job(), 30))
