"""ONNX Runtime's profiling: a trace of events in JSON, written when the session ends it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from edgekit.bench._profile import Layers
from edgekit.runtime.session import Array
from edgekit.runtime.session_onnxruntime import OnnxRuntimeSession
from edgekit.signature import Signature

_KERNEL = "_kernel_time"
_RUN = "model_run"


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
    found = Layers(how="ONNX Runtime's enable_profiling", resolution_us=1.0)
    with tempfile.TemporaryDirectory(prefix="profile-", dir=folder) as own:
        session = OnnxRuntimeSession(path, signature, threads, profile=f"{own}/ort")
        end = time.perf_counter() + seconds
        session.run(feeds)  # the first call packs weights
        call = session.prepare(feeds)
        while len(found.profiled_ns) < runs:
            start = time.perf_counter_ns()
            call()
            found.profiled_ns.append(time.perf_counter_ns() - start)
            if time.perf_counter() >= end:
                break
        events = json.loads(Path(session.end_profiling()).read_bytes())
    calls: list[list[tuple[str, str, str | None, int]]] = [[]]
    for event in events:
        arguments, name = event.get("args", {}), event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            kind, provider = arguments.get("op_name", "?"), arguments.get("provider")
            took = int(event["dur"]) * 1000
            calls[-1].append((name.removesuffix(_KERNEL), kind, provider, took))
        elif event.get("cat") == "Session" and name == _RUN:
            found.inside_ns.append(int(event["dur"]) * 1000)
            calls.append([])
    # The first call, and the empty list behind the last.
    del calls[0], calls[-1:], found.inside_ns[0]
    found.add(calls)
    return found
