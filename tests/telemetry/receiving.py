"""The real receiver as a process, and records as devices make them."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import schemas
from edgekit.runtime import otlp
from edgekit.runtime.aggregate import Aggregate
from edgekit.runtime.drift_reference import counted_predictions

ROOT = Path(__file__).resolve().parents[2]
PROTOBUF = {"Content-Type": "application/x-protobuf"}
RESOURCE = {
    "service.name": "edgekit",
    "service.version": "2.1",
    "edgekit.device.class": "pixel-8",
    "edgekit.bundle.name": "net",
    "edgekit.bundle.version": "1.0",
}


_OFTEN = """
import sys
from edgekit.cli.main import main
from edgekit.telemetry import receiver
receiver._TIDY_S = {}
sys.exit(main())
"""


@dataclass
class Receiving:
    """A receiver that runs."""

    process: subprocess.Popen[str]
    port: int
    store: str

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str] = PROTOBUF
    ) -> tuple[int, bytes, Mapping[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", path, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())

    def get(self, path: str, key: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def peak_mb(self) -> float:
        """Most memory that it has had."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmHWM")


@contextlib.contextmanager
def receiver(
    store: Path | str, *options: object, log: Path | None = None, tidy_s: float | None = None
) -> Iterator[Receiving]:
    """`edgekit telemetry serve` on a free port; what it logs is beside its file, or where told.
    Its upkeep is every hour, or as often as told."""
    log = Path(store).with_name("receiver.log") if log is None else log
    command = [sys.executable, "-m", "edgekit.cli.main"]
    if tidy_s is not None:
        command = [sys.executable, "-c", _OFTEN.format(tidy_s)]
    command += ["telemetry", "serve", str(store)]
    command += ["--port", "0", "--json", *map(str, options)]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with (
        log.open("a") as errors,
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            text = ""
            decoder = json.JSONDecoder()
            while True:
                line = process.stdout.readline()
                assert line, log.read_text()
                text += line
                with contextlib.suppress(json.JSONDecodeError):
                    document, _ = decoder.raw_decode(text)
                    break
            schemas.validate(document)
            yield Receiving(process, int(document["url"].rpartition(":")[2]), document["store"])
        finally:
            if process.poll() is None:
                process.kill()


def metrics_record(
    aggregate: Aggregate,
    *,
    event: str | None = None,
    device: str | None = None,
    resource: Mapping[str, Any] = RESOURCE,
    time_ns: int | None = None,
) -> bytes:
    """A record of a window, as the recorder writes one."""
    now = time.time_ns() if time_ns is None else time_ns
    metrics = aggregate.to_metrics(now - 60 * 10**9, now)
    for metric in metrics:
        metric["metadata"] = otlp.key_values(
            {"event.id": event or uuid.uuid4().hex, "edgekit.sequence": 1}
        )
    attributes = {**resource, "service.instance.id": device or uuid.uuid4().hex}
    found = {
        "resource": {"attributes": otlp.key_values(attributes)},
        "scope_metrics": [{"metrics": metrics}],
    }
    return otlp.encode("ResourceMetrics", found)


def window(n: int = 10, duration_s: float = 0.02) -> Aggregate:
    """So many requests, all alike."""
    aggregate = Aggregate()
    for _ in range(n):
        aggregate.add("device", "sure", duration_s, 0.9, 3, 1e8)
    return aggregate


def crash(event: str, **more: str) -> dict[str, Any]:
    """A log record of a crash."""
    attributes = {"event.id": event, "error.type": "MemoryError", **more}
    return {
        "time_unix_nano": time.time_ns(),
        "severity_number": 17,
        "event_name": "edgekit.crash",
        "attributes": otlp.key_values(attributes),
    }


def logs_request(records: Sequence[Mapping[str, Any]], device: str) -> bytes:
    """A request of log records of one device."""
    resource = {"attributes": otlp.key_values({**RESOURCE, "service.instance.id": device})}
    found = {"resource": resource, "scope_logs": [{"log_records": list(records)}]}
    return otlp.encode("ExportLogsServiceRequest", {"resource_logs": [found]})


def zipped(body: bytes) -> tuple[bytes, dict[str, str]]:
    """A body as devices send it, with its headers."""
    return gzip.compress(body), {**PROTOBUF, "Content-Encoding": "gzip"}


def proven_on(confidences: np.ndarray[Any, Any]) -> dict[str, Any]:
    """``reference_statistics`` of a manifest: answers so sure, all of the last of four classes."""
    rest = np.repeat((1 - confidences[:, None]) / 3, 3, axis=1)
    scores = np.concatenate([rest, confidences[:, None]], axis=1)
    plan = counted_predictions(scores, "probabilities")
    return {"inputs": {}, "predictions": {"y": {"held_out": True, "plans": {"fp32": plan}}}}
