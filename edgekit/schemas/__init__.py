"""The JSON Schemas (draft 2020-12) of every document edgekit writes, and the check against them.

A document names its own schema in its ``schema`` field, e.g. ``edgekit.export/1``; the number grows
when a reader of the old form could misread the new one.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, Final

from edgekit.errors import BadData, MissingDependency, UsageError
from edgekit.names import install_command, unknown

__all__ = ["DOCUMENTS", "load", "validate"]

DOCUMENTS: Final = {
    "edgekit.export/1": "export",
    "edgekit.jobs/1": "jobs",
    "edgekit.bundle/1": "manifest",
    "edgekit.bundle-diff/1": "bundle_diff",
    "edgekit.clients/1": "clients",
    "edgekit.device/1": "device",
    "edgekit.devices/1": "devices",
    "edgekit.device-check/1": "device_check",
    "edgekit.targets/1": "targets",
    "edgekit.plan/1": "plan",
    "edgekit.quantize/1": "quantize",
    "edgekit.verify/1": "verify",
    "edgekit.bench/1": "bench",
    "edgekit.estimate/1": "estimate",
    "edgekit.estimator/1": "estimator",
    "edgekit.memory/1": "memory",
    "edgekit.bench-matrix/1": "bench_matrix",
    "edgekit.bench-history/1": "bench_history",
    "edgekit.bench-compare/1": "bench_compare",
    "edgekit.inspect/1": "inspect",
    "edgekit.recipes/1": "recipes",
    "edgekit.run/1": "run",
    "edgekit.run-plan/1": "run_plan",
    "edgekit.evidence/1": "evidence",
    "edgekit.report/1": "report",
    "edgekit.doctor/1": "doctor",
    "edgekit.serve/1": "serve",
    "edgekit.pair/1": "pair",
    "edgekit.serve-export/1": "serve_export",
    "edgekit.serve-load/1": "serve_load",
    "edgekit.policy/1": "policy",
    "edgekit.tune/1": "tune",
    "edgekit.telemetry/1": "telemetry",
    "edgekit.telemetry-report/1": "telemetry_report",
    "edgekit.telemetry-canary/1": "telemetry_canary",
    "edgekit.telemetry-serve/1": "telemetry_serve",
    "edgekit.telemetry-alert/1": "telemetry_alert",
    "edgekit.telemetry-alerts/1": "telemetry_alerts",
    "edgekit.telemetry-check/1": "telemetry_check",
    "edgekit.error/1": "error",
}
"""Which schema file (its name without ``.json``) each value of the ``schema`` field means."""


def load(name: str) -> dict[str, Any]:
    """One schema, as a fresh dictionary.

    Args:
        name: a value of the ``schema`` field (``edgekit.export/1``) or a file's name (``export``).

    Raises:
        UsageError: no such schema; the message suggests the nearest.
    """
    stem = DOCUMENTS.get(name, name)
    if stem not in DOCUMENTS.values():
        raise UsageError(unknown("schema", name, [*DOCUMENTS, *DOCUMENTS.values()]))
    text = resources.files(__name__).joinpath(f"{stem}.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def validate(document: Mapping[str, Any]) -> None:
    """Refuses a document that does not keep to the schema that it names.

    Args:
        document: a JSON document, as plain dictionaries and lists.

    Raises:
        BadData: the ``schema`` field is missing or unknown, a value does not fit, or a number is
            not finite; the message gives the JSON path of the first misfit (``$.artifacts[0].id``).
        MissingDependency: the ``jsonschema`` package is not installed.
    """
    name = document.get("schema")
    if not isinstance(name, str) or name not in DOCUMENTS:
        what = "is missing" if name is None else f"is {name!r}"
        raise BadData(f"$.schema {what}; known: {', '.join(DOCUMENTS)}")
    for path, value in _leaves(document, "$"):
        # JSON has no such numbers, yet Python's encoder writes them unless it is told not to.
        if isinstance(value, float) and not math.isfinite(value):
            raise BadData(f"{name}: {path} is {value}; write null and say why in a field beside it")
    error = min(_validator(name).iter_errors(document), key=_path, default=None)
    if error is not None:
        raise BadData(f"{name}: {error.json_path}: {_shorten(error.message)}")


@functools.cache
def _validator(name: str) -> Any:
    try:
        import jsonschema
    except ImportError as error:
        raise MissingDependency(
            "checking a document against its schema needs the jsonschema package",
            hint=f"{install_command('dev')}, or: pip install jsonschema",
        ) from error
    return jsonschema.Draft202012Validator(load(name))


def _path(error: Any) -> tuple[str, ...]:
    """Sorts errors by where they are, so that a document always gives the same first one."""
    return tuple(f"{part:09}" if isinstance(part, int) else str(part) for part in error.path)


def _shorten(message: str, limit: int = 300) -> str:
    # jsonschema quotes the whole offending value, which may be thousands of samples.
    return message if len(message) <= limit else f"{message[: limit // 2]} ... {message[-60:]}"


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value
