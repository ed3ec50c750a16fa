"""Counters, and their text for Prometheus.

Names and meanings are Triton's where it has them (``nv_inference_*``: a request of 8 samples that
runs with one of 1 sample counts 2 requests, 9 inferences and 1 execution) and OpenVINO Model
Server's for what is going on now. What is received is always what succeeded, what failed by its
status, and what is going on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["BUCKETS_S", "ModelMetrics", "labels", "render"]

BUCKETS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds of the histogram of whole requests, in seconds."""


@dataclass
class ModelMetrics:
    """What one model has done since the server started, over all its versions.

    Attributes:
        received: requests, counted as they arrive.
        codes: by status, counted as they end; 200 is success.
        rows: samples of the successful ones.
        executions: calls of the runtime.
        duration_us, queue_us, exec_us: sums over successful requests.
        buckets: of the histogram, not cumulated; one more than `BUCKETS_S`.
        swaps: versions that took another's place.
        current: requests going on.
        queued: rows that wait now.
        workers: alive now.
        ready: now.
    """

    name: str
    received: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    rows: int = 0
    executions: int = 0
    duration_us: int = 0
    queue_us: int = 0
    exec_us: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    swaps: int = 0
    current: int = 0
    queued: int = 0
    workers: int = 0
    ready: bool = False

    def begin(self) -> None:
        """A request arrives."""
        self.received += 1
        self.current += 1

    def end(self, code: int) -> None:
        """It ends with a status."""
        self.codes[code] += 1
        self.current -= 1

    def succeed(self, rows: int, duration_us: int, queue_us: int, exec_us: int) -> None:
        """It will end with 200, after these times."""
        self.rows += rows
        self.duration_us += duration_us
        self.queue_us += queue_us
        self.exec_us += exec_us
        seconds = duration_us / 1e6
        place = next((i for i, b in enumerate(BUCKETS_S) if seconds <= b), len(BUCKETS_S))
        self.buckets[place] += 1


_REASONS = {429: "REJECTED", 503: "REJECTED", 499: "CANCELED", 500: "BACKEND"}

# Name, type, help.
_COUNTERS = (
    ("nv_inference_request_success", "counter", "Requests answered with outputs"),
    ("nv_inference_count", "counter", "Samples of those requests"),
    ("nv_inference_exec_count", "counter", "Calls of the runtime"),
    ("nv_inference_request_duration_us", "counter", "Microseconds of those requests"),
    ("nv_inference_queue_duration_us", "counter", "Microseconds that those requests waited"),
    ("nv_inference_compute_infer_duration_us", "counter", "Microseconds in the runtime"),
    ("ovms_current_requests", "gauge", "Requests going on"),
    ("ovms_requests_success", "counter", "Requests answered with outputs"),
    ("edgekit_requests_received_total", "counter", "Requests, counted as they arrive"),
    ("edgekit_queue_rows", "gauge", "Samples that wait for a worker"),
    ("edgekit_workers", "gauge", "Worker processes that take requests"),
    ("edgekit_model_ready", "gauge", "1 where the model takes requests"),
    ("edgekit_model_swaps_total", "counter", "Versions that took another's place"),
)


def _values(m: ModelMetrics) -> tuple[int, ...]:
    ok = m.codes[200]
    return (
        ok, m.rows, m.executions, m.duration_us, m.queue_us, m.exec_us, m.current, ok,
        m.received, m.queued, m.workers, int(m.ready), m.swaps,
    )  # fmt: skip


def render(models: Sequence[ModelMetrics], others: Counter[int]) -> str:
    """The text that Prometheus reads.

    Args:
        models: all that are served.
        others: requests for anything else, by status.
    """
    lines: list[str] = []
    values = [_values(m) for m in models]
    for i, (name, kind, text) in enumerate(_COUNTERS):
        lines += [f"# HELP {name} {text}.", f"# TYPE {name} {kind}"]
        for m, row in zip(models, values, strict=True):
            lines.append(f"{name}{_labels(m.name)} {row[i]}")
    lines += _failures(models)
    lines += _histogram(models)
    lines += _head("edgekit_other_requests_total", "Requests for anything but an inference")
    lines += [f'edgekit_other_requests_total{{code="{c}"}} {n}' for c, n in sorted(others.items())]
    return "\n".join(lines) + "\n"


def _failures(models: Iterable[ModelMetrics]) -> list[str]:
    name = "nv_inference_request_failure"
    lines = _head(name, "Requests answered with an error, or left by their clients")
    for m in models:
        for code, n in sorted(m.codes.items()):
            if code != 200:
                reason = _REASONS.get(code, "OTHER")
                lines.append(f"{name}{_labels(m.name, code=code, reason=reason)} {n}")
    return lines


def _histogram(models: Iterable[ModelMetrics]) -> list[str]:
    name = "edgekit_request_seconds"
    lines = [f"# HELP {name} Requests answered with outputs.", f"# TYPE {name} histogram"]
    for m in models:
        below = 0
        for bound, n in zip((*map(str, BUCKETS_S), "+Inf"), m.buckets, strict=True):
            below += n
            lines.append(f"{name}_bucket{_labels(m.name, le=bound)} {below}")
        lines.append(f"{name}_sum{_labels(m.name)} {m.duration_us / 1e6}")
        lines.append(f"{name}_count{_labels(m.name)} {below}")
    return lines


def _head(name: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}.", f"# TYPE {name} counter"]


def _labels(model: str, **more: object) -> str:
    return labels({"model": model, **more})


def labels(pairs: Mapping[str, object]) -> str:
    """Labels as they stand behind a name, values escaped."""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs.items()) + "}"


def _escaped(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
