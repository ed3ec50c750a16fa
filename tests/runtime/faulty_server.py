"""A server on loopback, of the standard library alone, that answers right or with a named fault."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["FaultyServer", "serving"]


class FaultyServer:
    """The model of `answer`, over OIP v2 with the binary extension, one thread per connection.

    Attributes:
        fault: what is wrong with it; empty: nothing. See `_faulty` and `_spoiled`.
        wait_s: how long it takes over an answer.
        retry_after: what it says in ``Retry-After`` where it is busy.
        seen: header fields and JSON of every request that was read.
        connections: how many were accepted.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.fault, self.wait_s, self.retry_after = "", 0.0, ""
        self.model, self.version = "teacher", "3"
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.connections = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop = threading.Event()
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        scheme = "http" if self._context is None else "https"
        return f"{scheme}://localhost:{self.port}/v2/models/teacher"

    @staticmethod
    def answer(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The teacher: logits [1, 4] of x [1, 2, 3]."""
        flat = x.reshape(1, 6)
        logits: np.ndarray[Any, Any] = flat[:, :4] * np.float32(10)
        return logits

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for connection in self._open:
            # What was set to reset is closed already.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.append(connection)
        with contextlib.suppress(OSError, ValueError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            if self.fault == "mute":
                self._stop.wait(30)
                return
            stream = connection.makefile("rb")
            while (request := self._read(stream)) is not None:
                if not self._reply(connection, *request):
                    break
        connection.close()

    def _read(self, stream: Any) -> tuple[dict[str, str], dict[str, Any], bytes] | None:
        if not stream.readline():
            return None
        headers = {}
        while (line := stream.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", 0)))
        length = int(headers.get("inference-header-content-length", len(body)))
        document = json.loads(body[:length]) if body else {}
        self.seen.append((headers, document))
        return headers, document, body[length:]

    def _reply(
        self, connection: socket.socket, headers: dict[str, str], asked: dict[str, Any], tail: bytes
    ) -> bool:
        """Whether the connection goes on."""
        if self._stop.wait(self.wait_s):
            return False
        raw = self._faulty(asked) if self.fault else None
        if self.fault == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if raw is None:
            raw = self._right(asked, tail)
        if self.fault == "slow-bytes":
            for i in range(len(raw)):
                connection.sendall(raw[i : i + 1])
                if self._stop.wait(0.02):
                    return False
        elif self.fault == "half":
            connection.sendall(raw[:-5])
            return False
        else:
            connection.sendall(raw)
        return self.fault != "close-after"

    def _faulty(self, asked: dict[str, Any]) -> bytes | None:
        """A whole response that is no answer; None where there is to be one after all."""
        status = self.fault if self.fault.isdigit() else ""
        if status:
            wait = f"Retry-After: {self.retry_after}\r\n" if self.retry_after else ""
            return _response(b'{"error": "no: key-of-ours"}', f"{status} No", wait)
        return {
            "html": _response(b"<html>please log in</html>"),
            "redirect": _response(b"", "302 Found", "Location: http://localhost/login\r\n"),
            "no-http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "huge": _response(b"x" * 3_000_000),
            "endless": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{",
        }.get(self.fault)

    def _right(self, asked: dict[str, Any], tail: bytes) -> bytes:
        if not asked:
            tensors = [{"name": "x", "datatype": "FP32", "shape": [-1, 2, 3]}]
            scores = [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]
            found = {"name": self.model, "platform": "p", "inputs": tensors, "outputs": scores}
            return _response(json.dumps(found).encode())
        (tensor,) = asked["inputs"]
        flat = np.array(tensor["data"]) if "data" in tensor else np.frombuffer(tail, "<f4")
        x = flat.astype(np.float32)
        y = self.answer(x)
        document: dict[str, Any] = {
            "model_name": self.model,
            "model_version": self.version,
            "id": asked["id"],
        }
        output: dict[str, Any] = {"name": "y", "shape": [1, 4], "datatype": "FP32"}
        if self.fault == "json" or "data" in tensor:
            output["data"] = y.ravel().tolist()
            document["outputs"] = [output]
            return _response(json.dumps(document).encode())
        data = y.astype("<f4").tobytes()
        data = self._spoiled(document, output, data)
        output["parameters"] = {"binary_data_size": len(data)}
        document["outputs"] = [output] if self.fault != "no-output" else []
        head = json.dumps(document).encode()
        length = len(head) + (9999 if self.fault == "header-length" else 0)
        return _response(head + data, extra=f"Inference-Header-Content-Length: {length}\r\n")

    def _spoiled(self, document: dict[str, Any], output: dict[str, Any], data: bytes) -> bytes:
        """Spoils one thing of an answer that is right otherwise."""
        match self.fault:
            case "shape":
                output["shape"] = [1, 5]
                return data + data[:4]
            case "dtype":
                output["datatype"] = "INT32"
            case "nan":
                return data[:-4] + np.float32("nan").tobytes()
            case "short":
                return data[:-4]
            case "name":
                document["model_name"] = "student"
            case "id":
                document["id"] = "another"
            case "output":
                output["name"] = "z"
            case "version":
                document["model_version"] = "4"
        return data


def _response(body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[FaultyServer]:
    """A server that is closed in the end."""
    server = FaultyServer(context)
    try:
        yield server
    finally:
        server.close()


def until(condition: Any, seconds: float = 5.0) -> None:
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def certificate(folder: Path, name: str, host: str, ca: Path | None = None) -> tuple[Path, Path]:
    """A certificate and its key, made by openssl; signed by itself, or by ``ca`` (and its key)."""
    import subprocess

    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", str(key)]
    command += ["-out", str(cert), "-addext", f"subjectAltName=DNS:{host}"]
    if ca is not None:
        command += ["-CA", str(ca), "-CAkey", str(ca.with_suffix(".key"))]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return cert, key
