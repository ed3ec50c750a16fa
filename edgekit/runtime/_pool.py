"""Connections to one server that are kept open, and what their failures are called."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from typing import Final

from edgekit.runtime._wire import Connection, Deadline, Question, Reply, TooLarge

__all__ = ["Pool", "Trouble"]

_IDLE_S: Final = 30.0


class Trouble(Exception):
    """An exchange that failed: one of `edgekit.runtime.cloud.KINDS`, and what is known of it."""

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


class Pool:
    """Idle connections to one server. Safe to use from several threads.

    Args:
        host, port: of the server.
        context: of TLS; None for plain HTTP.
        most_idle: how many are kept.
    """

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext | None, most_idle: int
    ) -> None:
        self._host, self._port, self._context = host, port, context
        self._most_idle = most_idle
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def exchange(self, question: Question, deadline: Deadline) -> Reply:
        """One request and its answer; the arguments are those of `Connection.exchange`.

        Raises:
            Trouble: there is no answer.
        """
        try:
            return self._exchange(question, deadline)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise Trouble("reset") from None
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or type(error).__name__
            raise Trouble("tls", reason) from None
        except TimeoutError:
            raise Trouble("timeout") from None
        except socket.gaierror as error:
            raise Trouble("dns", error.strerror or "") from None
        except ConnectionRefusedError as error:
            raise Trouble("connect", error.strerror or "") from None
        except ConnectionError as error:  # RemoteDisconnected is one
            raise Trouble("reset", error.strerror or "") from None
        except http.client.IncompleteRead:
            raise Trouble("reset", "the answer ended half-way") from None
        except (http.client.HTTPException, TooLarge, ValueError) as error:
            raise Trouble("garbage", type(error).__name__) from None
        except OSError as error:
            raise Trouble("connect", error.strerror or "") from None

    def _exchange(self, question: Question, deadline: Deadline) -> Reply:
        while True:
            connection = self._connection(deadline)
            reused = connection.used > 0
            try:
                reply, reusable = connection.exchange(question, deadline)
            except ConnectionError:
                connection.close()
                if not reused:
                    raise
                # It was closed while idle, as this went out: that says nothing of the server.
                self.close()
                continue
            except BaseException:
                connection.close()
                raise
            self._keep(connection, reusable)
            return reply

    def _connection(self, deadline: Deadline) -> Connection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Connection.connect(self._host, self._port, self._context, deadline)
            if time.monotonic() - connection.since < _IDLE_S and connection.alive:
                return connection
            connection.close()

    def _keep(self, connection: Connection, reusable: bool) -> None:
        with self._lock:
            if reusable and len(self._idle) < self._most_idle:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Closes the idle ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
