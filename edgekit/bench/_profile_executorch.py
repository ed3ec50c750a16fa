"""ExecuTorch's ETDump: what its event tracer recorded, with XNNPACK's own events in it.

Its wheel is built with the tracer. The file is a FlatBuffer (``etdump_schema_flatcc.fbs`` in the
wheel's devtools), and is read here without that, which needs more than the runtime.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgekit.bench import _flat, _timing
from edgekit.bench._profile import Layer, Layers, Task
from edgekit.errors import UnsupportedError
from edgekit.runtime.session_executorch import ExecutorchSession

_IDENTIFIER = b"ED00"
_NATIVE = "native_call_"


def profile(task: Task) -> Layers:
    """See `edgekit.bench._profile`."""
    found = Layers(how="ExecuTorch's ETDump", resolution_us=1.0)
    session = ExecutorchSession(task.path, task.signature, task.threads, trace=True)
    session.run(task.feeds)
    found.profiled_ns.extend(_timing.repeat(session.prepare(task.feeds), task.runs, task.seconds))
    with tempfile.TemporaryDirectory(prefix="profile-", dir=task.folder) as own:
        dump = Path(own) / "run.etdp"
        session.write_trace(dump, Path(own) / "debug.bin")
        if not dump.is_file():
            raise UnsupportedError("executorch: this build of its wheel has no event tracer")
        calls, inside = read(dump.read_bytes())
    found.inside_ns = inside[1:]
    found.add(calls[1:])
    return found


def read(data: bytes) -> tuple[list[list[Layer]], list[int]]:
    """Layers (name, kind, kernel, ns) of each call in an ETDump, and what each call took in ns.

    Raises:
        BadData: it is damaged or no ETDump.
    """
    # The writer puts the buffer's size before it.
    dump = _flat.root(data[4:], _IDENTIFIER)
    calls, inside = [], []
    for run in dump.tables(1):
        events = [e for entry in run.tables(3) if (e := entry.table(0)) is not None]
        took = [_ns(e) for e in events if e.text(0) == "Method::execute"]
        if not took:  # loading
            continue
        inside.append(took[0])
        calls.append([layer for e in events if (layer := _layer(e)) is not None])
    return calls, inside


def _layer(event: _flat.Table) -> tuple[str, str, str | None, int] | None:
    """A layer of a delegate or one of ExecuTorch's own kernels; None for what contains others."""
    name, within = event.text(0), event.text(4)
    if within is not None:
        kind, _, _ = within.partition(" #")
        return within, kind, "delegate", _ns(event)
    if name is not None and name.startswith(_NATIVE):
        kind = name.removeprefix(_NATIVE).removesuffix(".out")
        return f"{kind}#{event.number(2, '<i', -1)}", kind, "portable", _ns(event)
    return None


def _ns(event: _flat.Table) -> int:
    return event.number(7, "<Q") - event.number(6, "<Q")
