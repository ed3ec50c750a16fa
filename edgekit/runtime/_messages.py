"""What the recorder writes to its spool: one window or one event, as OTLP has it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, Final

from edgekit.runtime import otlp
from edgekit.runtime.attributes import Value, allowed
from edgekit.runtime.bundle import Bundle, BundleArtifact

__all__ = ["document", "event", "resource_of", "stack_hash", "window"]


def _version() -> str | None:
    try:
        return importlib.metadata.version("edgekit")
    except importlib.metadata.PackageNotFoundError:
        return None  # a copy that was not installed


_VERSION: Final = _version()
_SCOPE: Final = {"name": "edgekit", "version": _VERSION or ""}
_ARCHITECTURES: Final = {
    "x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "i386": "x86",
    "i686": "x86", "armv7l": "arm32", "armv6l": "arm32",
}  # fmt: skip
_ERROR, _INFO = 17, 9


def resource_of(
    bundle: Bundle | None,
    artifact: BundleArtifact | None,
    device_class: str,
    app_version: str | None,
) -> dict[str, Value]:
    """What is the same for all that a device sends, but for the name that it changes."""
    found: dict[str, object] = {
        "service.name": "edgekit",
        "service.version": app_version,
        "telemetry.sdk.name": "edgekit",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": _VERSION,
        "os.type": platform.system().lower(),
        "host.arch": _ARCHITECTURES.get(platform.machine().lower(), "other"),
        "edgekit.device.class": device_class,
    }
    if bundle is not None:
        found |= {
            "edgekit.bundle.name": bundle.name,
            "edgekit.bundle.version": bundle.version,
            "edgekit.bundle.digest": bundle.digest,
        }
    if artifact is not None:
        found |= {
            "edgekit.artifact.target": artifact.target,
            "edgekit.artifact.scheme": artifact.scheme,
            "edgekit.artifact.delegate": artifact.delegate,
        }
    return allowed(found)


def window(
    resource: Mapping[str, Value], metrics: list[dict[str, Any]], id: bytes, sequence: int
) -> bytes:
    """A ``ResourceMetrics``."""
    metadata = otlp.key_values(allowed({"event.id": id.hex(), "edgekit.sequence": sequence}))
    return otlp.encode(
        "ResourceMetrics",
        {
            "resource": {"attributes": otlp.key_values(resource)},
            "scope_metrics": [
                {
                    "scope": _SCOPE,
                    "metrics": [{**metric, "metadata": metadata} for metric in metrics],
                }
            ],
        },
    )


def event(
    resource: Mapping[str, Value],
    name: str,
    attributes: Mapping[str, object],
    id: bytes,
    sequence: int,
    time_ns: int,
    *,
    failed: bool,
) -> bytes:
    """A ``ResourceLogs`` of one record."""
    marks = {"event.id": id.hex(), "edgekit.sequence": sequence}
    record = {
        "time_unix_nano": time_ns,
        "observed_time_unix_nano": time_ns,
        "severity_number": _ERROR if failed else _INFO,
        "event_name": name,
        "attributes": otlp.key_values(allowed({**attributes, **marks})),
    }
    return otlp.encode(
        "ResourceLogs",
        {
            "resource": {"attributes": otlp.key_values(resource)},
            "scope_logs": [{"scope": _SCOPE, "log_records": [record]}],
        },
    )


def stack_hash(error: BaseException) -> str:
    """Sixteen hex digits that tell one place of failure from another, and nothing of its data.

    Of each frame it takes the function's name and the line within the function: no path, no
    argument, no message.
    """
    frames = [
        f"{frame.f_code.co_name}+{line - frame.f_code.co_firstlineno}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return hashlib.sha256("\n".join(frames).encode()).hexdigest()[:16]


def document(resource: Mapping[str, Value], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """An ``edgekit.telemetry/1`` document: what a window says, for people to read."""
    return {
        "schema": "edgekit.telemetry/1",
        "resource": dict(resource),
        "metrics": [
            {"name": metric["name"], "unit": metric["unit"], "points": list(_points(metric))}
            for metric in metrics
        ],
    }


def _points(metric: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("sum", "histogram", "exponential_histogram"):
        for point in metric.get(kind, {}).get("data_points", []):
            found: dict[str, Any] = {"attributes": otlp.attributes_of(point["attributes"])}
            if kind == "sum":
                found["value"] = point["as_int"]
            elif kind == "histogram":
                found |= {"edges": point["explicit_bounds"], "counts": point["bucket_counts"]}
            else:
                buckets = point.get("positive", {"offset": 0, "bucket_counts": []})
                found |= {
                    "scale": point["scale"],
                    "zeros": point["zero_count"],
                    "offset": buckets["offset"],
                    "counts": buckets["bucket_counts"],
                }
            yield found
