"""The process that loads one artifact and measures it: ``python -m edgekit.bench.worker FILE``.

``FILE`` holds a request (JSON); one JSON document with the request's nonce goes to stdout. The
worker imports numpy and the runtime, nothing more, since it measures its own memory. A crash of
the runtime is this process's death and nobody else's.

Request: ``nonce``, ``op`` (``bench`` or ``signature``), ``target``, ``path``; for ``bench`` also
``signature``, ``threads``, ``feeds`` (an ``.npz``), ``warmup_runs``, ``warmup_seconds``, ``runs``,
``max_seconds``.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.runtime.session import Array, Session, open_session, preload, read_signature
from edgekit.signature import Signature

_KIB = 1024


def memory() -> dict[str, int]:
    """``VmHWM``, ``VmRSS`` and ``VmSwap`` of this process in bytes (proc(5), status)."""
    wanted = {"VmHWM": 0, "VmRSS": 0, "VmSwap": 0}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        key, _, rest = line.partition(":")
        if key in wanted:
            wanted[key] = int(rest.split()[0]) * _KIB
    return wanted


class PeakMemory:
    """Follows the largest memory the process held, in RAM and in swap, since it was created.

    The kernel's high-water mark counts RAM alone, so samples of RAM plus swap stand beside it.
    """

    def __init__(self) -> None:
        before = memory()
        self.start = before["VmRSS"] + before["VmSwap"]
        self.process_peak = max(before["VmHWM"], self.start)
        self.reset = _reset_high_water_mark()
        self.peak = self.start

    def sample(self) -> None:
        """Looks now; the high-water mark covers what happened since the last look."""
        now = memory()
        mark = now["VmHWM"] if self.reset else now["VmRSS"]
        self.peak = max(self.peak, mark, now["VmRSS"] + now["VmSwap"])
        self.process_peak = max(self.process_peak, self.peak, now["VmHWM"])


def _reset_high_water_mark() -> bool:
    """Sets VmHWM back to VmRSS (proc(5)), so that importing's peak doesn't hide the model's."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def bench(request: Mapping[str, Any]) -> dict[str, Any]:
    """Loads and runs the artifact as the request says; all times in ms, all sizes in bytes.

    Returns:
        ``load_ms`` (opening the session, runtime already imported), ``first_ms`` (first call),
        ``samples_ms`` (every timed call), ``peak_bytes`` (the process's), ``added_bytes`` (peak
        over what the process held once the runtime was imported), ``runtime_version``,
        ``cpu_share`` (CPU time of all threads over wall time of the timed calls: under 1 where
        the calls had to wait for a core), ``memory_reset``.
    """
    signature = Signature.from_json(request["signature"])
    with np.load(request["feeds"], allow_pickle=False) as file:
        feeds = {name: file[name] for name in file.files}
    preload(request["target"])
    gc.collect()
    peak = PeakMemory()

    start = time.perf_counter_ns()
    session = open_session(
        request["target"], Path(request["path"]), signature, threads=request["threads"]
    )
    load_ms = _since(start)
    peak.sample()
    start = time.perf_counter_ns()
    session.run(feeds)
    first_ms = _since(start)
    peak.sample()

    gc.disable()  # a collection between two calls would be counted as one of them
    _repeat(session, feeds, request["warmup_runs"], request["warmup_seconds"])
    cpu, wall = time.process_time(), time.perf_counter()
    samples = _repeat(session, feeds, request["runs"], request["max_seconds"])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak.sample()
    return {
        "load_ms": load_ms,
        "first_ms": first_ms,
        "samples_ms": samples,
        "peak_bytes": peak.process_peak,
        "added_bytes": peak.peak - peak.start,
        "runtime_version": session.runtime_version,
        "cpu_share": cpu / wall,
        "memory_reset": peak.reset,
    }


def _since(start_ns: int) -> float:
    return (time.perf_counter_ns() - start_ns) / 1e6


def _repeat(session: Session, feeds: Mapping[str, Array], runs: int, seconds: float) -> list[float]:
    """Times calls until ``runs`` are made or ``seconds`` have passed, at least one; in ms."""
    samples: list[float] = []
    clock = time.perf_counter_ns
    end = clock() + int(seconds * 1e9)
    while len(samples) < runs:
        start = clock()
        session.run(feeds)
        stop = clock()
        samples.append((stop - start) / 1e6)
        if stop >= end:
            break
    return samples


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Does what the request asks; an error on purpose becomes part of the answer."""
    result: dict[str, Any]
    try:
        if request["op"] == "signature":
            stated = read_signature(request["target"], Path(request["path"]))
            result = {"signature": stated.to_json()}
        else:
            result = bench(request)
    except EdgekitError as error:
        kind = type(error).__name__
        result = {"error": {"kind": kind, "message": error.message, "hint": error.hint}}
    return {"nonce": request["nonce"], **result}


def main(argv: list[str]) -> int:
    """Reads the request, answers on stdout; what the runtime itself prints goes to stderr."""
    request = json.loads(Path(argv[0]).read_bytes())
    out = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(out, "w", encoding="utf-8") as sink:
        sink.write(json.dumps(answer(request), allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
