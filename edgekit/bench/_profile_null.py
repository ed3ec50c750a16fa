"""The null runtime's layers, each product in numpy timed from outside."""

from __future__ import annotations

import time

import numpy as np

from edgekit.bench._profile import Layer, Layers, Task
from edgekit.runtime.session_null import NullSession


def profile(task: Task) -> Layers:
    """See `edgekit.bench._profile`."""
    session = NullSession(task.path, task.signature, task.threads)
    weights, first = session.layers, task.signature.inputs[0]
    found = Layers(how="numpy, timed layer by layer", resolution_us=0.001)
    calls: list[list[Layer]] = []
    end = time.perf_counter() + task.seconds
    while len(calls) < task.runs:
        start = time.perf_counter_ns()
        x = task.feeds[first.name].reshape(first.shape[0], -1)
        call: list[Layer] = []
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
