"""The operators that torch's profiler sees the lite interpreter call, one by one."""

from __future__ import annotations

import time

from edgekit.bench._profile import Layer, Layers, Task
from edgekit.runtime.session_torch_mobile import TorchMobileSession


def profile(task: Task) -> Layers:
    """See `edgekit.bench._profile`."""
    from torch.autograd.profiler import profile as watch

    session = TorchMobileSession(task.path, task.signature, task.threads)
    session.run(task.feeds)
    call = session.prepare(task.feeds)
    found = Layers(how="torch's profiler", resolution_us=0.001)
    calls: list[list[Layer]] = []
    end = time.perf_counter() + task.seconds
    while len(calls) < task.runs:
        with watch(use_cpu=True) as seen:
            start = time.perf_counter_ns()
            call()
            found.profiled_ns.append(time.perf_counter_ns() - start)
        # What another operator calls is part of that one.
        events = [e for e in seen.function_events if e.cpu_parent is None]
        calls.append(
            [
                (f"{index}: {e.name}", e.name, None, round(1000 * e.cpu_time_total))
                for index, e in enumerate(sorted(events, key=lambda e: float(e.time_range.start)))
            ]
        )
        if time.perf_counter() >= end:
            break
    found.add(calls)
    return found
