"""The worker process of one target: conversion, first load and inference happen here.

``run`` starts ``python -m edgekit.targets.worker REQUEST`` with a list of tasks and reads their
results. What the converter prints goes to a log file, never to the caller's terminal.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekit import cores, errors
from edgekit.errors import (
    BadData,
    EdgekitError,
    StorageError,
    UnsupportedError,
    WorkerCrashed,
)
from edgekit.scratch import scratch

TIMEOUT_S = 1800.0
_TAIL = 12
_LEAST_FREE = 2**18
"""Free bytes under which a worker that died is taken to have died of that."""

_running: set[subprocess.Popen[bytes]] = set()

Task = dict[str, Any]
Result = dict[str, Any]


def run(
    target: str,
    tasks: Sequence[Task],
    *,
    timeout: float = TIMEOUT_S,
    on_done: Callable[[int], None] | None = None,
) -> list[Result]:
    """Runs ``tasks`` for one target in a process of its own.

    Args:
        target: a target id or ``module:attribute``.
        tasks: see the functions named ``_task_*``, or ``module:function``; paths as strings.
        timeout: seconds for all of them together.
        on_done: called with the number of tasks finished so far, while they run.

    Returns:
        One result per task; ``{"error": EdgekitError}`` for a task that was refused.

    Raises:
        WorkerCrashed: the process died or ran out of time; the message carries its last lines.
        StorageError: it died where no space is left for temporary files.
    """
    with scratch("worker") as folder:
        request, log = folder / "request.json", folder / "log.txt"
        results = folder / "results.jsonl"
        request.write_text(
            json.dumps(
                {
                    "target": target,
                    "tasks": list(tasks),
                    "results": str(results),
                    "path": [p for p in sys.path if p],
                }
            )
        )
        code = _supervise(request, log, results, timeout, on_done)
        done = _read(results)
        if code != 0 or len(done) < len(tasks):
            _check_space(folder)
            raise WorkerCrashed(
                f"{target}: the worker process {_cause(code, timeout)} "
                f"at task {min(len(done) + 1, len(tasks))} of {len(tasks)} "
                f"({tasks[min(len(done), len(tasks) - 1)]['op']})\n{_tail(log)}",
                hint="run `edgekit doctor` to test this runtime by itself",
            )
    return [_decode(r) for r in done]


def _check_space(folder: Path) -> None:
    """Native libraries die of a full disk in many ways, and rarely say so."""
    if shutil.disk_usage(folder).free < _LEAST_FREE:
        raise StorageError(
            f"no space is left for temporary files in {tempfile.gettempdir()}",
            hint="free some space, or set TMPDIR to another place",
        )


def _supervise(
    request: Path,
    log: Path,
    results: Path,
    timeout: float,
    on_done: Callable[[int], None] | None,
) -> int | None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"}
    cores.spin_briefly(environment)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgekit.targets.worker", str(request)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        deadline = time.monotonic() + timeout
        seen = 0
        _running.add(process)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=0.05)
                if on_done is not None and (count := len(_read(results))) > seen:
                    seen = count
                    on_done(count)
                if time.monotonic() > deadline:
                    return None
        finally:
            _running.discard(process)
            if process.poll() is None:
                process.kill()
                process.wait()


def stop() -> None:
    """Kills every worker of this process; for a caller that was interrupted."""
    for process in list(_running):
        process.kill()


def _read(results: Path) -> list[Result]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines() if line.endswith("}")]


def _cause(code: int | None, timeout: float) -> str:
    if code is None:
        return f"ran over its {timeout:.0f} s"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with {code}"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_TAIL:]
    return "\n".join(f"  | {line[:300]}" for line in lines)


def _decode(result: Result) -> Result:
    if "error" not in result:
        return result
    error = result["error"]
    kind = getattr(errors, error["kind"], EdgekitError)
    return {"error": kind(error["message"], hint=error["hint"])}


# What follows runs in the worker process.


def _task_convert(target: Any, task: Task) -> Result:
    """Converts; ``{"program", "plan", "variant", "signature", "out"}`` -> ``{"files"}``.

    A ``variant`` is the override that the plan is rendered with; without one it is the plan's own.
    """
    import dataclasses

    import torch

    from edgekit.compress.plan import QuantPlan
    from edgekit.signature import Signature

    torch.manual_seed(0)
    _share_histories()
    program = torch.export.load(task["program"])
    plan = QuantPlan.from_json(json.loads(Path(task["plan"]).read_text()))
    if task.get("variant") is not None:
        plan = dataclasses.replace(plan, variant=task["variant"])
    if plan.scheme not in target.schemes:
        carried = ", ".join(target.schemes)
        raise UnsupportedError(
            f"{target.id} has no scheme {plan.scheme!r}; it carries {carried}",
            hint="choose one of them with --scheme, or leave this target out with --target",
        )
    signature = Signature.from_json(task["signature"])
    out = Path(task["out"])
    files = target.convert(program, plan, signature, out)
    return {"files": [str(f) for f in files]}


def _share_histories() -> None:
    """Lets copies of a graph's node share where it came from.

    torch (2.13) copies that whole history for each node of each pass, although nobody changes it;
    a fifth to a quarter of what a conversion to ExecuTorch took went there.
    """
    from torch.fx.traceback import NodeSource

    NodeSource.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]


def _task_infer(target: Any, task: Task) -> Result:
    """Runs samples; ``{"artifact", "signature", "feeds", "outputs", "threads", "repeats"}``.

    ``feeds`` and ``outputs`` are ``.npz`` files with the samples along the first axis. The first
    sample is run ``repeats`` more times; ``{"distinct"}`` counts the different answers.
    ``{"emulated"}`` says whether something else than the target's own runtime gave them.
    """
    import numpy as np

    from edgekit.signature import Signature
    from edgekit.targets import open_session

    signature = Signature.from_json(task["signature"])
    threads = int(task.get("threads", 1))
    session = open_session(target, Path(task["artifact"]), signature, threads)
    with np.load(task["feeds"], allow_pickle=False) as data:
        feeds = {name: data[name] for name in data.files}
    count = len(next(iter(feeds.values())))
    rows: dict[str, list[Any]] = {}
    for i in range(count):
        for name, value in session.run({k: v[i] for k, v in feeds.items()}).items():
            rows.setdefault(name, []).append(value)
    if count == 0:
        raise BadData("inference got no samples")
    answers = set()
    for _ in range(int(task.get("repeats", 0))):
        again = session.run({k: v[0] for k, v in feeds.items()})
        answers.add(b"".join(np.ascontiguousarray(again[k]).tobytes() for k in sorted(again)))
    outputs = {name: np.stack(values) for name, values in rows.items()}
    np.savez(task["outputs"], **outputs)  # type: ignore[arg-type]
    version = session.runtime_version
    emulated = bool(getattr(session, "emulated", False))
    session.close()
    return {
        "runtime": version,
        "emulated": emulated,
        "n": count,
        "distinct": len(answers),
        "order": list(rows),
    }


def _task_inspect(target: Any, task: Task) -> Result:
    """``{"artifact"}`` -> ``{"placement"}``."""
    try:
        return {"placement": target.inspect(Path(task["artifact"])).to_json()}
    except (EdgekitError, OSError, MemoryError):
        raise
    except Exception as error:
        _check_space(Path(tempfile.gettempdir()))
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UnsupportedError(
            f"{target.id}: the runtime refuses the artifact: {(lines or [repr(error)])[0][:400]}",
            hint="replace the operator in the model, or leave this target out with --target",
        ) from error


def _task_unrounded(target: Any, task: Task) -> Result:
    """``{"artifact"}`` -> ``{"unrounded"}``: `edgekit.compress.unrounded.Unrounded`, as JSON."""
    from edgekit.compress.unrounded import Unrounded

    ask = getattr(target, "unrounded", None)
    found = Unrounded() if ask is None else ask(Path(task["artifact"]))
    return {"unrounded": found.to_json()}


def _task_describe(target: Any, task: Task) -> Result:
    """Tells an app, in the artifact itself, what it takes and gives, and what it tells then.

    ``{"artifact", "signature", "about"}`` -> ``{"metadata"}``; the target's ``describe``, where it
    has one, writes it. ``about`` has the model's ``name``, ``licence`` and ``preprocess``.
    """
    from edgekit.signature import Signature

    path, signature = Path(task["artifact"]), Signature.from_json(task["signature"])
    if hasattr(target, "describe"):
        target.describe(path, signature, task["about"])
    return _task_metadata(target, task)


def _task_metadata(target: Any, task: Task) -> Result:
    """``{"artifact"}`` -> ``{"metadata"}``: what it tells an app of itself; None for nothing."""
    ask = getattr(target, "metadata", None)
    return {"metadata": None if ask is None else ask(Path(task["artifact"]))}


def _task_metadata_faults(target: Any, task: Task) -> Result:
    """As for ``describe``, -> ``{"faults"}``: what it tells otherwise than it has to, in words."""
    from edgekit.signature import Signature

    ask = getattr(target, "metadata_faults", None)
    signature = Signature.from_json(task["signature"])
    found = [] if ask is None else ask(Path(task["artifact"]), signature, task["about"])
    return {"faults": found}


def _task_structure(target: Any, task: Task) -> Result:
    """What can be told of an artifact that nothing here can run, from its file.

    ``{"artifact", "signature", "scheme"}`` -> ``{"findings", "mutant", "runtime", "unemulated"}``:
    lists of a check's name, whether it holds and what was seen, for the artifact as it is and for a
    signature that it does not have, at which they have to find fault; and why it can't be emulated.
    """
    import dataclasses

    from edgekit.signature import Signature
    from edgekit.targets import installed

    path, scheme = Path(task["artifact"]), task["scheme"]
    signature = Signature.from_json(task["signature"])
    last = signature.outputs[-1]
    wrong = dataclasses.replace(last, shape=(*last.shape, 2))
    mutant = Signature(inputs=signature.inputs, outputs=(*signature.outputs[:-1], wrong))
    known = installed(target)
    return {
        "findings": target.structure(path, signature, scheme),
        "mutant": target.structure(path, mutant, scheme),
        "runtime": f"{target.id} {known[target.id]}",
        "unemulated": target.unemulated(path),
    }


def _task_stored(target: Any, task: Task) -> Result:
    """``{"artifact"}`` -> ``{"stored"}``: every quantized tensor in the file."""
    from dataclasses import asdict

    return {"stored": [asdict(s) for s in target.stored(Path(task["artifact"]))]}


_TASKS: dict[str, Callable[[Any, Task], Result]] = {
    "convert": _task_convert,
    "describe": _task_describe,
    "infer": _task_infer,
    "inspect": _task_inspect,
    "metadata": _task_metadata,
    "metadata_faults": _task_metadata_faults,
    "unrounded": _task_unrounded,
    "stored": _task_stored,
    "structure": _task_structure,
}


def _task(op: str) -> Callable[[Any, Task], Result]:
    """A task of this file, or ``module:function`` of a package that stands above this one."""
    if op in _TASKS:
        return _TASKS[op]
    module, _, name = op.partition(":")
    found: Callable[[Any, Task], Result] = getattr(importlib.import_module(module), name)
    return found


def _serve(request_path: str) -> int:
    from edgekit.targets import find, require_installed

    cores.collect_seldom()
    request = json.loads(Path(request_path).read_text())
    sys.path.extend(p for p in request["path"] if p not in sys.path)
    results = Path(request["results"])
    refused: dict[str, Result] = {}
    for task in request["tasks"]:
        result = refused.get(task.get("artifact", ""))
        if result is None:
            try:
                target = find(request["target"])
                require_installed(target)
                result = _task(task["op"])(target, task)
            except EdgekitError as error:
                result = _encode(error)
            except OSError as error:
                from edgekit.artifact import storage_error

                place = task.get("out") or task.get("outputs") or tempfile.gettempdir()
                result = _encode(storage_error(Path(place).parent, error))
        if "error" in result and "out" in task:
            # What is asked about this artifact further on has no other answer.
            refused[task["out"]] = result
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")
    return 0


def _encode(error: EdgekitError) -> Result:
    kind = type(error).__name__
    return {"error": {"kind": kind, "message": error.message, "hint": error.hint}}


def main(argv: Sequence[str]) -> int:
    """``REQUEST`` serves a request; ``--self-test TARGET`` makes a one-layer round trip."""
    if list(argv[:1]) == ["--self-test"]:
        from edgekit.targets._self_test import self_test

        print(json.dumps(self_test(argv[1])))
        return 0
    return _serve(argv[0])


if __name__ == "__main__":
    # Leave without running native libraries' exit handlers: two runtimes in one process may clash.
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
