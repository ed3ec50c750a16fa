"""ONNX Runtime's profiling: a trace of events in JSON, written when the session ends it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from edgekit.bench import _timing
from edgekit.bench._profile import Layer, Layers, Task
from edgekit.runtime.session_onnxruntime import OnnxRuntimeSession

_KERNEL = "_kernel_time"
_RUN = "model_run"


def profile(task: Task) -> Layers:
    """See `edgekit.bench._profile`."""
    found = Layers(how="ONNX Runtime's enable_profiling", resolution_us=1.0)
    with tempfile.TemporaryDirectory(prefix="profile-", dir=task.folder) as own:
        how = f"{own}/ort"
        session = OnnxRuntimeSession(task.path, task.signature, task.threads, profile=how)
        session.run(task.feeds)  # the first call packs weights
        call = session.prepare(task.feeds)
        found.profiled_ns.extend(_timing.repeat(call, task.runs, task.seconds))
        events = json.loads(Path(session.end_profiling()).read_bytes())
    calls: list[list[Layer]] = [[]]
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
