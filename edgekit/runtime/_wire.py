"""One HTTP exchange after another over one connection, each ending by a deadline.

`http.client` limits every single receive, so that a server which sends a byte now and then can hold
its caller for ever. Here connect, TLS handshake, send and receive draw on one deadline.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Connection", "Deadline", "Question", "Reply", "TooLarge", "resolve"]

_CHUNK: Final = 1 << 16


class TooLarge(Exception):
    """The answer has more bytes than any right one."""


class Deadline:
    """A point in time, as seconds of the monotonic clock."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until then; negative once it has passed."""
        return self.at - time.monotonic()

    def need(self) -> float:
        """Seconds until then.

        Raises:
            TimeoutError: it has passed.
        """
        left = self.left
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return left


@dataclass(frozen=True)
class Question:
    """A request: method, path, body, header fields, and bytes that the answer's body may have."""

    method: str
    path: str
    body: bytes | None
    headers: Mapping[str, str]
    most: int


@dataclass(frozen=True)
class Reply:
    """What a server sent: status, header fields by name in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


# -- names ----------------------------------------------------------------------------------------

_lookups: dict[tuple[str, int], tuple[threading.Event, list[Any]]] = {}
_lookups_lock = threading.Lock()


def resolve(host: str, port: int, deadline: Deadline) -> list[Any]:
    """`socket.getaddrinfo` that ends by a deadline.

    The C library's own cannot be called off, so it runs in a thread, one per name at a time.

    Raises:
        OSError: the name is not known, or nobody answered in time (`TimeoutError`).
    """
    key = (host, port)
    with _lookups_lock:
        entry = _lookups.get(key)
        if entry is None:
            entry = _lookups[key] = (threading.Event(), [])
            threading.Thread(target=_look_up, args=(key, entry), daemon=True).start()
    done, result = entry
    if not done.wait(deadline.need()):
        raise TimeoutError(f"the name {host} was not resolved in time")
    if isinstance(result[0], OSError):
        raise result[0]
    return list(result)


def _look_up(key: tuple[str, int], entry: tuple[threading.Event, list[Any]]) -> None:
    done, result = entry
    try:
        result += socket.getaddrinfo(*key, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        known = isinstance(error, OSError)
        result[:] = [error if known else socket.gaierror(socket.EAI_NONAME, str(error))]
    finally:
        with _lookups_lock:
            _lookups.pop(key, None)
        done.set()


# -- bytes ----------------------------------------------------------------------------------------


class _Reader(io.RawIOBase):
    """What http.client reads from: every receive ends by the wire's deadline."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wire.socket.settimeout(self._wire.deadline.need())
        return self._wire.socket.recv_into(buffer)


class _Wire:
    """A socket as http.client uses one."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self.socket = connected
        self.deadline = deadline

    def makefile(self, *_: object) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self), _CHUNK)

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self.socket.settimeout(self.deadline.need())
            rest = rest[self.socket.send(rest[:_CHUNK]) :]

    def close(self) -> None:
        # http.client closes it where the server will, before it has read the answer's body.
        pass


class Connection:
    """One connection to a server.

    Attributes:
        used: how many exchanges it has carried.
        since: when the last of them ended, in seconds of the monotonic clock.
    """

    def __init__(self, wire: _Wire, host: str, port: int) -> None:
        """Not for callers: use `connect`."""
        self._wire = wire
        self._http = http.client.HTTPConnection(host, port)
        self._http.auto_open = 0
        if isinstance(wire.socket, ssl.SSLSocket):
            self._http.default_port = 443  # which the Host field leaves out
        self._http.sock = wire  # it has all that http.client calls
        self.used = 0
        self.since = time.monotonic()

    @classmethod
    def connect(
        cls, host: str, port: int, context: ssl.SSLContext | None, deadline: Deadline
    ) -> Connection:
        """Connects, with TLS where ``context`` is given; every address of the name is tried.

        Raises:
            OSError: the name, the address or the certificate (`ssl.SSLError`) is no good, or the
                time was up (`TimeoutError`).
        """
        addresses = resolve(host, port, deadline)
        last: OSError = OSError(f"{host} has no address")
        for position, (family, kind, protocol, _, address) in enumerate(addresses):
            made = socket.socket(family, kind, protocol)
            try:
                # The first of two addresses must not take all the time that there is.
                made.settimeout(deadline.need() / (len(addresses) - position))
                made.connect(address)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                break
            except OSError as error:
                made.close()
                last = error
        else:
            raise last
        try:
            if context is not None:
                made.settimeout(deadline.need())
                made = context.wrap_socket(made, server_hostname=host)
        except BaseException:
            made.close()
            raise
        return cls(_Wire(made, deadline), host, port)

    @property
    def alive(self) -> bool:
        """Whether the other side has neither closed it nor sent anything unasked."""
        try:
            self._wire.socket.settimeout(0)
            self._wire.socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def exchange(self, question: Question, deadline: Deadline) -> tuple[Reply, bool]:
        """Sends a request and reads the answer.

        Args:
            question: the request.
            deadline: of all of it.

        Returns:
            The answer, and whether the connection may be used again.

        Raises:
            OSError: the connection broke, or the time was up (`TimeoutError`).
            http.client.HTTPException: what came is no HTTP.
            TooLarge: the answer is longer than the question allows.
        """
        self._wire.deadline = deadline
        self.used += 1
        try:
            self._http.request(
                question.method, question.path, body=question.body, headers=dict(question.headers)
            )
        except TimeoutError:
            raise
        except OSError as error:
            # A server that refuses may answer and close before it has read all.
            try:
                reply = self._read(question.most)
            except (OSError, http.client.HTTPException):
                raise error from None
            return reply, False
        reply = self._read(question.most)
        self.since = time.monotonic()
        return reply, self._http.sock is not None

    def _read(self, most: int) -> Reply:
        response = self._http.getresponse()
        try:
            headers = {name.lower(): value for name, value in response.getheaders()}
            stated = response.length
            if stated is not None and stated > most:
                raise TooLarge(f"{stated} bytes")
            body = response.read(most + 1)
            if len(body) > most:
                raise TooLarge(f"more than {most} bytes")
            if stated is not None and len(body) < stated:
                raise http.client.IncompleteRead(body, stated - len(body))
            if not response.isclosed():
                response.read()  # the end of a chunked body
            return Reply(response.status, headers, body)
        finally:
            response.close()

    def close(self) -> None:
        """Closes it; twice is allowed."""
        self._http.close()
        self._wire.socket.close()
