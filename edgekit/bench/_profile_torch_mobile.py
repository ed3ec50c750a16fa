"""The operators that torch's profiler sees the lite interpreter call, one by one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from edgekit.bench._profile import Layers
from edgekit.runtime.session import Array
from edgekit.runtime.session_torch_mobile import TorchMobileSession
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
    from torch.autograd.profiler import profile as watch

    session = TorchMobileSession(path, signature, threads)
    session.run(feeds)
    call = session.prepare(feeds)
    found = Layers(how="torch's profiler", resolution_us=0.001)
    calls: list[list[tuple[str, str, str | None, int]]] = []
    end = time.perf_counter() + seconds
    while len(calls) < runs:
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
