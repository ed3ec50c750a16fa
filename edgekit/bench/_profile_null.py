"""The null runtime's layers, each product in numpy timed from outside."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit.bench._profile import Layers
from edgekit.runtime.session import Array
from edgekit.runtime.session_null import NullSession
from edgekit.signature import Signature


def profile(
    path: Path,
    signature: Signature,
    feeds: Mapping[str, Array],
    threads: int,
    runs: int,
    seconds: float,
    folder: Path,
) -> Layers:
    """See `edgekit.bench._profile`."""
    session = NullSession(path, signature, threads)
    weights = session.layers
    found = Layers(how="numpy, timed layer by layer", resolution_us=0.001)
    calls: list[list[tuple[str, str, str | None, int]]] = []
    end = time.perf_counter() + seconds
    while len(calls) < runs:
        start = time.perf_counter_ns()
        x = feeds[signature.inputs[0].name].reshape(signature.inputs[0].shape[0], -1)
        call: list[tuple[str, str, str | None, int]] = []
        for index, (w, b) in enumerate(weights):
            begun = time.perf_counter_ns()
            x = np.maximum(x, 0.0) @ w + b if index else x @ w + b
            call.append((f"linear{index}", "linear", None, time.perf_counter_ns() - begun))
        found.profiled_ns.append(time.perf_counter_ns() - start)
        calls.append(call)
        if time.perf_counter() >= end:
            break
    found.add(calls)
    return found
