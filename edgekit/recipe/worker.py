"""The process of one stage: ``python -m edgekit.recipe.worker JOB``.

It tells its progress as lines of JSON on a pipe, and ends when the run that started it ends: its
standard input is a pipe from there, which then closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from edgekit import cores
from edgekit.errors import EdgekitError, UsageError
from edgekit.recipe import source, values
from edgekit.recipe.context import Run
from edgekit.recipe.stages import Recipe, load_recipe
from edgekit.settings import Settings, leaves, reading, rooted

__all__ = ["main"]


def main(job_path: str) -> int:
    """Runs one stage; what came of it is in the job's ``answer``."""
    job = json.loads(Path(job_path).read_text())
    _end_with_parent()
    # The run's lock of the scratch: held by this process too, which may outlive it a moment.
    os.set_inheritable(job["lock"], False)
    os.set_inheritable(job["events"], False)
    with os.fdopen(job["events"], "w", encoding="utf-8") as sink:
        try:
            answer = _run(job, sink)
        except BaseException as error:
            answer = {"error": _told(error, job)}
        # Its absence says that this process died.
        try:
            Path(job["answer"]).write_text(json.dumps(answer))
        except OSError as error:
            # What it made fills the disk, and is of no use without this answer.
            shutil.rmtree(job["result"], ignore_errors=True)
            answer = {"error": _told(error, job)}
            Path(job["answer"]).write_text(json.dumps(answer))
    return 0 if "error" not in answer else 1


def _run(job: Mapping[str, Any], sink: TextIO) -> dict[str, Any]:
    recipe = load_recipe(Path(job["script"]))
    stage = recipe.stages[job["stage"]]
    if not source.unchanged(job["code"], recipe.path, stage.name):
        raise UsageError(
            f"{recipe.path.name}, or a module beside it, was changed since this run began",
            hint="run it again: what is finished stays",
        )
    result = Path(job["result"])
    shutil.rmtree(result, ignore_errors=True)
    out = result / values.FILES
    out.mkdir(parents=True)
    scratch = Path(job["scratch"]) / "folder"
    scratch.mkdir(parents=True, exist_ok=True)
    run = Run(scratch, out, job["threads"], sink)
    given = _arguments(recipe, job, run)
    _seed()
    start = time.perf_counter()
    aside = Path(job["scratch"]) / "reads"
    aside.unlink(missing_ok=True)
    with reading(aside) as reads:
        value = stage.function(**{name: given[name] for name in stage.parameters})
    values.write(value, result, script=recipe.module)
    known = leaves(given["cfg"]) if "cfg" in given else {}
    forked = set(aside.read_text().split("\n")) & set(known) if aside.exists() else set[str]()
    return {
        "reads": sorted({*reads, *forked}),
        "metrics": run.metrics,
        "gates": run.gates,
        "notes": run.notes,
        "wall_s": round(time.perf_counter() - start, 3),
    }


def _arguments(recipe: Recipe, job: Mapping[str, Any], run: Run) -> dict[str, Any]:
    from edgekit import device

    config: type[Settings] = recipe.config
    given: dict[str, Any] = {
        name: values.read(Path(folder), script=recipe.module)
        for name, folder in job["inputs"].items()
    }
    taken = recipe.stages[job["stage"]].parameters
    given["run"] = run
    given["data"] = None if job["data"] is None else Path(job["data"])
    if "cfg" in taken:
        given["cfg"] = rooted(config.model_validate(job["settings"]))
    if "device" in taken or "devices" in taken:
        given["devices"] = tuple(device.load(name) for name in job["devices"])
        given["device"] = given["devices"][0]
    return given


def _seed() -> None:
    """What a stage draws at random is the same every time, unless it says otherwise."""
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


def _told(error: BaseException, job: Mapping[str, Any]) -> dict[str, Any]:
    """An error as data, with the line of the script that it came from."""
    lines = traceback.format_exception(error)
    with contextlib.suppress(OSError, ValueError):  # a full disk, or what the stage has closed
        sys.stderr.write("".join(lines))
        sys.stderr.flush()
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == job["script"]:
            place = f"{Path(frame.filename).name}:{frame.lineno}"
    known = isinstance(error, EdgekitError)
    return {
        "kind": type(error).__name__,
        "ancestors": [f"{k.__module__}.{k.__qualname__}" for k in type(error).__mro__],
        "message": error.message if isinstance(error, EdgekitError) else str(error),
        "hint": error.hint if isinstance(error, EdgekitError) else "",
        "ours": known,
        "errno": error.errno if isinstance(error, OSError) else None,
        "module": error.name if isinstance(error, ModuleNotFoundError) else None,
        "place": place,
    }


def _end_with_parent() -> None:
    # What asks for input gets none, instead of waiting for ever.
    pipe = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def watch() -> None:
        # Past Python's own buffer, whose lock the interpreter would wait for at its end.
        os.read(pipe, 1)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    cores.spin_briefly(os.environ)
    cores.collect_seldom()
    sys.exit(main(sys.argv[1]))
