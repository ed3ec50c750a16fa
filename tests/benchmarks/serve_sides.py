"""The servers that `serve.py` measures: each a process, its port, and the bytes of a request to it.

A new one is a function that gives a `Side`, and an entry in `SIDES`; all run the same artifact by
the same session of edgekit's. What a peer is told is in `peers_serve.toml`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HERE = Path(__file__).parent
PEERS = tomllib.loads((HERE / "peers_serve.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Subject:
    """What is served: an artifact of a bundle, and one input for it."""

    bundle: Path
    artifact: str
    name: str
    value: np.ndarray[Any, Any]
    datatype: str
    cores: int


@dataclass(frozen=True)
class Side:
    """A server that runs.

    Attributes:
        name: in the report.
        port: where it listens.
        request: the bytes of one request.
        process: the server's; what it starts belongs to it.
    """

    name: str
    port: int
    request: bytes
    process: subprocess.Popen[bytes]

    def cpu_s(self) -> float:
        """Processor time of it and all its processes, in seconds."""
        return sum(sum(p.cpu_times()[:2]) for p in self._all())

    def rss_mib(self) -> float:
        """Resident memory of it and all its processes, in MiB."""
        return sum(p.memory_info().rss for p in self._all()) / 2**20

    def _all(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]


@contextlib.contextmanager
def ray(subject: Subject) -> Iterator[Side]:
    """`edgekit serve --engine ray`: a replica for each core."""
    options = ("--engine", "ray", "--replicas", subject.cores)
    with edgekit(subject, *options, name="ray", linger=()) as side:
        yield side


@contextlib.contextmanager
def edgekit(
    subject: Subject,
    *options: object,
    name: str = "edgekit",
    linger: Sequence[object] = ("--linger-s", 0),
) -> Iterator[Side]:
    """`edgekit serve`, as it comes or with some of its settings fixed."""
    model = _model_name(subject.bundle)
    data = subject.value.tobytes()
    entry = {"name": subject.name, "shape": list(subject.value.shape), "datatype": subject.datatype}
    head = json.dumps(
        {
            "inputs": [{**entry, "parameters": {"binary_data_size": len(data)}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    request = _post(
        f"/v2/models/{model}/infer", head + data, **{"Inference-Header-Content-Length": len(head)}
    )
    command = [
        *(sys.executable, "-m", "edgekit.cli.main", "serve", subject.bundle),
        *("--artifact", subject.artifact, *linger, *options),
    ]
    with _running(command, "/v2/health/ready", name, request) as side:
        yield side


@contextlib.contextmanager
def litserve(subject: Subject) -> Iterator[Side]:
    """LitServe with the same session behind it; as many workers as edgekit has."""
    settings = dict(PEERS["litserve"])
    if settings["workers_per_device"] == "cores":
        settings["workers_per_device"] = subject.cores
    request = _post("/predict", subject.value.tobytes())
    command = [sys.executable, HERE / "serve_litserve.py", subject.bundle, subject.artifact]
    with _running(command, "/health", "litserve", request, json.dumps(settings)) as side:
        yield side


@contextlib.contextmanager
def sink(request: bytes) -> Iterator[Side]:
    """The cheapest server that refuses each such request; see `serve_sink.py`."""
    with _running(
        [sys.executable, HERE / "serve_sink.py", len(request)], "/health", "sink", request
    ) as side:
        yield side


SIDES: Mapping[str, Callable[[Subject], contextlib.AbstractContextManager[Side]]] = {
    "edgekit": edgekit,
    "litserve": litserve,
    "ray": ray,
}


def _model_name(bundle: Path) -> str:
    from edgekit.runtime.bundle import Bundle

    with Bundle.open(bundle) as opened:
        return opened.name


def _post(path: str, body: bytes, **headers: object) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: application/octet-stream"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(
    command: Sequence[object], health: str, name: str, request: bytes, *more: str
) -> Iterator[Side]:
    port = _free_port()
    words = [str(word) for word in command]
    words += [str(port), *more] if more else ["--port", str(port)]
    # A group of its own, so that whatever it starts ends with it.
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )  # fmt: skip
    try:
        _until_healthy(f"http://127.0.0.1:{port}{health}", process)
        yield Side(name, port, request, process)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()


def _until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(url, timeout=2) as reply,
        ):
            if reply.status == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{url} is not healthy")
