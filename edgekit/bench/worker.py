"""The process that loads one artifact and measures it: ``python -m edgekit.bench.worker FILE``.

It runs on the device, where numpy and the runtime's wheel are all there is beside Python: shipped
as one file (`edgekit.bench.archive`), ``python3 worker.pyz FILE``. ``FILE`` holds a request (JSON);
one line of JSON with the request's nonce goes to stdout. A crash of the runtime is this process's
death and nobody else's. It imports numpy and the runtime, nothing more, since it measures its own
memory.

A request has ``nonce`` and ``op``:

* ``bench``: ``target``, ``path``, ``signature``, ``feeds`` (an ``.npz``), ``threads``,
  ``warmup_runs``, ``warmup_seconds``, ``runs``, ``max_seconds``; optional ``cpus`` (see
  `_affinity`), ``look_seconds`` (from one look at the machine to the next), ``thermal``
  (``limit_c``, ``budget_s``).
* ``profile``: as ``bench``; times each layer instead (`edgekit.bench._profile`).
* ``placement``: ``target`` (``coreml``), ``path``; on which units its operations would run.
* ``signature``: ``target``, ``path``; what the artifact states itself.
* ``facts``: what machine this is.

Paths are relative to the folder of the request. ``root`` says where ``proc`` and ``sys`` are read,
``asker`` with which process this one is to end (`edgekit.bench._asker`).
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

from edgekit.bench import _memory, _state, _thermal, _timing
from edgekit.errors import BadData, EdgekitError
from edgekit.runtime.session import Array, bare_call, open_session, preload, read_signature
from edgekit.signature import Signature

PeakMemory = _memory.PeakMemory
_LOOK_SECONDS = 0.5
_WHOLE = 10, 0.25  # calls and seconds, at most, of whole calls


def bench(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Loads and runs the artifact as the request says; all times in ms, all sizes in bytes.

    Returns:
        ``load_ms`` (opening the session, runtime already imported), ``first_ms`` (first whole
        call), ``warmup_ms`` (every call between that and the timed ones), ``samples_ms`` (every
        timed call: `edgekit.runtime.session.bare_call`, as the runtimes' own benchmarks time it),
        ``kept_every`` (calls that each of these stands for; over 1 where there were very many),
        ``whole_ms`` (some calls of `Session.run`, which checks, converts and copies what goes in
        and out), ``peak_bytes`` (the process's), ``added_bytes`` (peak over what the process held
        once the runtime was imported), ``pss_bytes``, ``reported``
        (`edgekit.bench._memory.reported`), ``runtime_version``, ``cpu_share`` (CPU time of all
        threads over wall time of the timed calls: under 1 where the calls had to wait for a core),
        ``memory_reset``, ``affinity``, ``gate`` (`edgekit.bench._thermal.cool_down`), ``before``
        and ``after`` (`edgekit.bench._state.look`), ``looks`` (`edgekit.bench._timing.Series`),
        ``energy``, ``clocks``, ``timed_s``.
    """
    from edgekit.bench._energy import EnergyMeter

    root = Path(request.get("root", "/"))
    cpus = _affinity(request.get("cpus"), root)
    gate = _gate(request.get("thermal"), root)
    signature, feeds = _inputs(request, folder)
    preload(request["target"])
    gc.collect()
    peak = PeakMemory()

    start = time.perf_counter_ns()
    path = folder / request["path"]
    session = open_session(request["target"], path, signature, threads=request["threads"])
    load_ms = _since(start)
    peak.sample()
    start = time.perf_counter_ns()
    session.run(feeds)
    first_ms = _since(start)
    peak.sample()

    before = _state.look(root)
    gc.disable()  # a collection between two calls would be counted as one of them
    call = bare_call(session, feeds)
    warmup = _timing.repeat(call, request["warmup_runs"], request["warmup_seconds"])
    clocks, meter = _timing.Clocks(), EnergyMeter(root)
    every = request.get("look_seconds", _LOOK_SECONDS)
    limits = {"runs": request["runs"], "seconds": request["max_seconds"]}
    keep = _keep(request, sorted(warmup)[len(warmup) // 2])
    timed = _timing.series(call, every=every, keep=keep, root=root, **limits)
    energy, told = meter.stop(), clocks.stop()
    whole = _timing.repeat(lambda: session.run(feeds), *_WHOLE)
    peak.sample()
    return {
        "load_ms": load_ms,
        "first_ms": first_ms,
        "warmup_ms": [ns / 1e6 for ns in warmup],
        "samples_ms": [ns / 1e6 for ns in timed.samples],
        "kept_every": timed.every,
        "whole_ms": [ns / 1e6 for ns in whole],
        "peak_bytes": peak.process_peak,
        "added_bytes": peak.peak - peak.start,
        "pss_bytes": _memory.pss(),
        "reported": _memory.reported(request["target"], path),
        "runtime_version": session.runtime_version,
        "cpu_share": timed.cpu_seconds / timed.wall_seconds,
        "memory_reset": peak.reset,
        "affinity": cpus,
        "gate": gate,
        "before": before,
        "looks": timed.looks,
        "after": _state.look(root),
        "energy": energy,
        "clocks": told,
        "timed_s": timed.seconds,
    }


def _keep(request: Mapping[str, Any], call_ns: int) -> int:
    """Of how many calls one is kept, so that a long run of short calls leaves room."""
    calls = min(request["runs"], 1e9 * request["max_seconds"] / max(1, call_ns))
    return max(1, -(-int(calls) // _timing.ROOM))


def _inputs(request: Mapping[str, Any], folder: Path) -> tuple[Signature, dict[str, Array]]:
    with np.load(folder / request["feeds"], allow_pickle=False) as file:
        return Signature.from_json(request["signature"]), {n: file[n] for n in file.files}


def _affinity(wanted: Any, root: Path) -> list[int]:
    """Keeps this process, and so the threads the runtime will start, on some CPUs.

    Args:
        wanted: their numbers; ``big`` or ``little`` for the fastest or the slowest kind; None for
            all that it may use.
        root: where the kinds are read.

    Returns:
        The CPUs it may run on now.

    Raises:
        BadData: there are none such, or this system has no say in it.
    """
    have = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if wanted is None:
        return have
    if isinstance(wanted, str):
        from edgekit.bench._machine import clusters

        kinds = clusters(root)
        if not kinds:
            raise BadData(f"cpus {wanted!r}: the system does not tell which CPUs are {wanted}")
        wanted = kinds[0 if wanted == "big" else -1]["cpus"]
    try:
        os.sched_setaffinity(0, wanted)
    except (AttributeError, OSError, ValueError) as error:
        raise BadData(
            f"cpus {wanted}: this process can't be kept on them: {error}",
            hint="this process may use " + (", ".join(map(str, have)) or "what the system says"),
        ) from error
    return sorted(os.sched_getaffinity(0))


def _gate(thermal: Mapping[str, Any] | None, root: Path) -> dict[str, Any]:
    """Lets the chip cool as the request says; without a say, only looks."""
    wanted = thermal or {}
    limit = wanted.get("limit_c")
    limit = _thermal.limit_c(root) if limit is None else limit
    return _thermal.cool_down(root, limit=limit, budget=wanted.get("budget_s", 0.0))


def _since(start_ns: int) -> float:
    return (time.perf_counter_ns() - start_ns) / 1e6


def _profile(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from edgekit.bench._profile import profile

    root = Path(request.get("root", "/"))
    cpus = _affinity(request.get("cpus"), root)
    gate = _gate(request.get("thermal"), root)
    signature, feeds = _inputs(request, folder)
    found = profile(request, folder / request["path"], signature, feeds, folder)
    return {**found, "affinity": cpus, "gate": gate}


def _signature(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    stated = read_signature(request["target"], folder / request["path"])
    return {"signature": stated.to_json()}


def _facts(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from edgekit.bench._machine import machine_facts

    root = Path(request.get("root", "/"))
    return {"facts": {**machine_facts(root), "state": _state.look(root)}}


def _placement(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from edgekit.runtime.coreml_plan import placement

    if request["target"] != "coreml":
        raise BadData(f"{request['target']} makes no plan of where it runs; coreml does")
    return {"placement": placement(folder / request["path"])}


_OPS = {
    "bench": bench,
    "profile": _profile,
    "placement": _placement,
    "signature": _signature,
    "facts": _facts,
}


def answer(request: Mapping[str, Any], folder: Path = Path()) -> dict[str, Any]:
    """Does what the request asks; an error on purpose becomes part of the answer."""
    result: dict[str, Any]
    try:
        op = _OPS.get(request["op"])
        if op is None:
            raise BadData(f"op {request['op']!r} is none of {', '.join(_OPS)}")
        result = op(request, folder)
    except EdgekitError as error:
        kind = type(error).__name__
        result = {"error": {"kind": kind, "message": error.message, "hint": error.hint}}
    return {"nonce": request["nonce"], **result}


def main(argv: list[str]) -> int:
    """Reads the request, answers on stdout; what the runtime itself prints goes to stderr."""
    path = Path(argv[0])
    request = json.loads(path.read_bytes())
    if "asker" in request:
        from edgekit.bench._asker import end_with

        end_with(request["asker"])
    out = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(out, "w", encoding="utf-8") as sink:
        sink.write(json.dumps(answer(request, path.parent), allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
