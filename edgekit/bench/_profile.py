"""What each layer takes, told by the runtime itself: a pass of its own, apart from timing.

A runtime that takes the time of each layer is slower for it, so these times are never the model's
latency. Beside their sum stand the same calls with profiling (`profiled_ms`) and without it
(`plain_ms`), in the same process: how much of a call the layers account for, and what looking at
them costs.

One file for each runtime, ``_profile_<target>.py``, found by its name. It offers
``profile(task: Task) -> Layers``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from edgekit.bench import _timing
from edgekit.errors import UnsupportedError
from edgekit.runtime.session import Array, bare_call, open_session
from edgekit.signature import Signature

__all__ = ["Layer", "Layers", "Task", "middle_mean", "profile"]

Layer = tuple[str, str, str | None, int]
"""Name, kind, kernel and ns of a layer in one call."""

_WITHOUT = {
    "coreml": "Core ML tells no times of layers to a program; Xcode's Performance report has them",
}


@dataclass(frozen=True)
class Task:
    """What is to be profiled.

    Attributes:
        path: the artifact.
        signature: the model's inputs and outputs.
        feeds: one array per input.
        threads: of the runtime.
        runs: calls, at most.
        seconds: that they take, at most; one is made in any case.
        folder: where the runtime may write.
    """

    path: Path
    signature: Signature
    feeds: Mapping[str, Array]
    threads: int
    runs: int
    seconds: float
    folder: Path


@dataclass
class Layers:
    """What a runtime told.

    Attributes:
        entries: in the order in which they ran; ``name`` and ``kind`` as the runtime calls them,
            ``kernel`` (None where it does not say), ``ns`` (one number for each call, or the mean
            of several).
        profiled_ns: what each of those calls took from outside.
        inside_ns: what the runtime says that each call took, empty where it doesn't.
        resolution_us: the step in which it counts.
        how: by which of the runtime's means.
    """

    how: str
    resolution_us: float
    entries: list[dict[str, Any]] = field(default_factory=list)
    profiled_ns: list[int] = field(default_factory=list)
    inside_ns: list[int] = field(default_factory=list)

    def add(self, calls: Sequence[Sequence[Layer]]) -> None:
        """Takes the layers of several calls, which ran the same ones.

        Raises:
            UnsupportedError: there are none, or they differ from call to call.
        """
        first = calls[0] if calls else []
        if not first:
            raise UnsupportedError(f"{self.how}: the runtime told of no layer")
        names = [layer[:3] for layer in first]
        same = [call for call in calls if [layer[:3] for layer in call] == names]
        if 2 * len(same) < len(calls):
            raise UnsupportedError(f"{self.how}: the runtime ran other layers in each call")
        for index, (name, kind, kernel) in enumerate(names):
            times = [call[index][3] for call in same]
            self.entries.append({"name": name, "kind": kind, "kernel": kernel, "ns": times})


def profile(
    request: Mapping[str, Any],
    path: Path,
    signature: Signature,
    feeds: Mapping[str, Array],
    folder: Path,
) -> dict[str, Any]:
    """Runs an artifact with the runtime's own profiling, and without it for comparison.

    Args:
        request: ``target``, ``threads``, ``warmup_runs``, ``warmup_seconds``, ``runs``,
            ``max_seconds``.
        path: the artifact.
        signature: the model's inputs and outputs.
        feeds: one array per input.
        folder: where the runtime may write.

    Returns:
        ``how``, ``resolution_us``, ``runtime_version``, ``plain_ms`` (median call without
        profiling), ``profiled_ms`` (with), ``inside_ms`` (the runtime's own total, or None),
        ``sum_ms`` (of the layers), ``calls``, and ``layers``: ``name``, ``kind``, ``kernel``,
        ``ms`` (the mean of the middle half of its calls).

    Raises:
        UnsupportedError: the runtime tells no times of layers, and why.
    """
    target = request["target"]
    name = f"edgekit.bench._profile_{target.replace('-', '_')}"
    if target in _WITHOUT or importlib.util.find_spec(name) is None:
        reason = _WITHOUT.get(target, "nothing is known of its profiling")
        raise UnsupportedError(f"{target} has no profile of its layers: {reason}")
    session = open_session(target, path, signature, threads=request["threads"])
    warmup = request["warmup_runs"], request["warmup_seconds"]
    limits = request["runs"], request["max_seconds"]
    call = bare_call(session, feeds)
    _timing.repeat(call, *warmup)
    plain = _timing.repeat(call, *limits)
    version = session.runtime_version
    session.close()
    module = importlib.import_module(name)
    task = Task(path, signature, feeds, request["threads"], *limits, folder)
    found: Layers = module.profile(task)
    layers = [
        {"name": e["name"], "kind": e["kind"], "kernel": e["kernel"], "ms": middle_mean(e["ns"])}
        for e in found.entries
    ]
    return {
        "how": found.how,
        "resolution_us": found.resolution_us,
        "runtime_version": version,
        "plain_ms": median(plain) / 1e6,
        "profiled_ms": median(found.profiled_ns) / 1e6,
        "inside_ms": median(found.inside_ns) / 1e6 if found.inside_ns else None,
        "sum_ms": sum(layer["ms"] for layer in layers),
        "calls": len(found.profiled_ns),
        "layers": layers,
    }


def middle_mean(values: Sequence[int]) -> float:
    """The mean of the middle half, in ms of ns.

    A median would do against outliers, but where a runtime counts in whole microseconds it can
    only be one of those; the mean of many lies between them.
    """
    ordered = sorted(values)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept) / 1e6
