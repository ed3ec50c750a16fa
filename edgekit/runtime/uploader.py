"""Uploader: brings a spool's records to a server by OTLP/HTTP, one request at a time.

A record is settled when the server has said what became of it, and not before. A batch that the
server finds malformed or too large is halved until the record that it stumbles over stands alone
and is dropped as ``poison``; what is behind it goes on.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from edgekit.errors import UsageError
from edgekit.runtime import otlp
from edgekit.runtime._records import Record
from edgekit.runtime.clocks import Clock, SystemClock
from edgekit.runtime.schedule import Answer, Conditions, Schedule, Verdict, judge
from edgekit.runtime.spool import Spool

__all__ = ["HttpTransport", "Transport", "Uploader", "to_server"]

_PATHS: Final = {"metric": "/v1/metrics", "event": "/v1/logs"}
_MOST_RECORDS: Final = 256
_MOST_BYTES: Final = 512 << 10
_MOST_ANSWER: Final = 64 << 10


class Transport(Protocol):
    """A way to a server."""

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Sends a request and gives the answer, one without status where there was none."""

    def abort(self) -> None:
        """Ends the request that is under way, if there is one, and refuses all later ones."""


class HttpTransport:
    """HTTP/1.1 with a connection for each request; redirects are not followed, proxies not used.

    Args:
        endpoint: ``https://host[:port][/prefix]``, to which ``/v1/metrics`` and ``/v1/logs`` are
            added. Plain ``http`` is for this machine, unless ``allow_plain``.
        headers: sent with each request, such as ``{"Authorization": "Bearer ..."}``.
        timeout_s: for a whole request, whatever trickles in meanwhile; in seconds.
        context: of TLS; None: the system's certificates.
        allow_plain: whether another machine may be reached without TLS.

    Raises:
        UsageError: the endpoint is no such URL, or a header can't be sent.
    """

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = 30.0,
        context: ssl.SSLContext | None = None,
        allow_plain: bool = False,
    ) -> None:
        parts = urllib.parse.urlsplit(endpoint)
        wrong = _misfit(parts, allow_plain)
        if wrong:
            # A user, a password or a query may be a secret; messages go to logs.
            shown = "" if {"@", "?", "#"} & set(endpoint) else f" {endpoint!r}"
            raise UsageError(
                f"the telemetry endpoint{shown} {wrong}",
                hint="for example https://collector.example:4318",
            )
        for name, value in (headers or {}).items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not re.fullmatch(r"[ -~]*", value):
                raise UsageError(f"the header {name!r} can't be sent: it is not printable ASCII")
        self._host, self._port = parts.hostname or "", parts.port
        self._prefix = parts.path.rstrip("/")
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s
        self._context = None
        if parts.scheme == "https":
            self._context = context or ssl.create_default_context()
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._aborted = False

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        connection = self._connect()
        if connection is None:
            return Answer(None)
        # A timeout of the socket starts anew with each byte; this one does not.
        watch = threading.Timer(self._timeout_s, _break, [connection])
        watch.daemon = True
        watch.start()
        try:
            connection.connect()
            if self._aborted:  # while the name was looked up, say
                return Answer(None)
            connection.request("POST", self._prefix + path, body, {**headers, **self._headers})
            response = connection.getresponse()
            return Answer(
                response.status,
                response.headers.get("Retry-After", ""),
                response.headers.get("Content-Type", ""),
                response.read(_MOST_ANSWER),
            )
        except (OSError, http.client.HTTPException, ValueError):
            return Answer(None)
        finally:
            watch.cancel()
            connection.close()
            with self._lock:
                self._connection = None

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._connection is not None:
                _break(self._connection)

    def _connect(self) -> http.client.HTTPConnection | None:
        connection: http.client.HTTPConnection
        if self._context is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=self._context
            )
        with self._lock:
            if self._aborted:
                return None
            self._connection = connection
        return connection


def to_server(
    endpoint: str, headers: Mapping[str, str] | None = None
) -> Callable[[], HttpTransport]:
    """Makes an `HttpTransport` whenever it is called; what can't be is refused at once.

    Raises:
        UsageError: as `HttpTransport`.
    """
    HttpTransport(endpoint, headers)
    return lambda: HttpTransport(endpoint, headers)


class Uploader:
    """Sends what a spool holds, as a schedule has it.

    Args:
        spool: the records.
        transport: the way to the server.
        schedule: when.
        clock: the time, for dates in ``Retry-After``.
        conditions: tells how the device is; asked before each request.
        hold_on_auth: keep what a server refuses with 401 or 403 until it doesn't any more. This
            departs from OTLP, by which it is dropped.

    Attributes:
        fates: how many requests came to which end.
    """

    def __init__(
        self,
        spool: Spool,
        transport: Transport,
        *,
        schedule: Schedule | None = None,
        clock: Clock | None = None,
        conditions: Callable[[], Conditions] | None = None,
        hold_on_auth: bool = False,
    ) -> None:
        self._spool = spool
        self._transport = transport
        self.schedule = schedule or Schedule()
        self._clock = clock or SystemClock()
        self._conditions = conditions or Conditions
        self._hold = hold_on_auth
        self._limits = dict.fromkeys(_PATHS, _MOST_RECORDS)
        self.fates: dict[str, int] = {}

    def step(self) -> float:
        """Makes one request at most.

        Returns:
            seconds after which to call it again.

        Raises:
            Locked: the spool is closed.
        """
        for stream in self.schedule.streams(self._ask()):
            records = self._spool.take(stream, records=self._limits[stream], size=_MOST_BYTES)
            if records:
                verdict = self._send(stream, records)
                return self.schedule.after(verdict, more=self._spool.counts().pending > 0)
        return self.schedule.idle()

    def _ask(self) -> Conditions:
        # A hook that fails tells nothing, and must not end the thread.
        with contextlib.suppress(Exception):
            return self._conditions()
        return Conditions()

    def _send(self, stream: str, records: list[Record]) -> Verdict:
        body = gzip.compress(otlp.request(record.payload for record in records), mtime=0)
        answer = self._transport.post(
            _PATHS[stream],
            body,
            {
                "Content-Type": "application/x-protobuf",
                "Content-Encoding": "gzip",
                "User-Agent": "edgekit",
            },
        )
        verdict = judge(answer, self._clock.wall, hold_on_auth=self._hold)
        self.fates[verdict.fate] = self.fates.get(verdict.fate, 0) + 1
        self._settle(stream, [record.seq for record in records], verdict)
        return verdict

    def _settle(self, stream: str, seqs: list[int], verdict: Verdict) -> None:
        if verdict.fate == "delivered":
            # Which ones were rejected it doesn't say: as many as there can be count as dropped.
            kept = len(seqs) - min(verdict.rejected, len(seqs))
            self._spool.settle(stream, seqs[:kept])
            self._spool.settle(stream, seqs[kept:], "rejected")
            self._limits[stream] = min(2 * self._limits[stream], _MOST_RECORDS)
        elif verdict.fate == "refused":
            self._spool.settle(stream, seqs, "refused")
        elif verdict.fate == "split" and len(seqs) == 1:
            self._spool.settle(stream, seqs, "poison")
        elif verdict.fate == "split":
            self._limits[stream] = len(seqs) // 2


def _misfit(parts: urllib.parse.SplitResult, allow_plain: bool) -> str:
    try:
        port = parts.port
    except ValueError:
        return "has a port that is no number"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "is no http or https URL"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "holds more than a host, a port and a path"
    if port == 0 or not re.fullmatch(r"[A-Za-z0-9._~/-]*", parts.path):
        return "has a port or path that can't be"
    if parts.path.rstrip("/").endswith((*_PATHS.values(), "/v1/traces")):
        return "ends with a signal's path, which is added to it"
    if parts.scheme == "http" and not allow_plain and not _here(parts.hostname):
        return "is another machine's without TLS"
    return ""


def _here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _break(connection: http.client.HTTPConnection) -> None:
    """Ends whatever another thread waits for on a connection."""
    found = connection.sock
    if isinstance(found, socket.socket):
        with contextlib.suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)
