"""The process of one stage: ``python -m edgekit.recipe.worker JOB``.

It tells its progress as lines of JSON on a pipe, and ends when the run that started it ends: its
standard input is a pipe from there, which then closes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from edgekit import cores
from edgekit.errors import EdgekitError, Locked
from edgekit.recipe import values
from edgekit.recipe.context import Run
from edgekit.recipe.stages import Recipe, load_recipe
from edgekit.settings import Settings, reading, rooted

__all__ = ["main"]

_LOCK_S = 15.0


def main(job_path: str) -> int:
    """Runs one stage; what came of it is in the job's ``answer``."""
    job = json.loads(Path(job_path).read_text())
    _end_with_parent()
    with os.fdopen(job["events"], "w", encoding="utf-8") as sink:
        try:
            with _locked(Path(job["scratch"])):
                answer = _run(job, sink)
        except BaseException as error:
            answer = {"error": _told(error, job)}
        # Its absence says that this process died.
        Path(job["answer"]).write_text(json.dumps(answer))
    return 0 if "error" not in answer else 1


def _run(job: Mapping[str, Any], sink: TextIO) -> dict[str, Any]:
    recipe = load_recipe(Path(job["script"]))
    stage = recipe.stages[job["stage"]]
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
    with reading() as reads:
        value = stage.function(**{name: given[name] for name in stage.parameters})
    values.write(value, result, script=recipe.module)
    return {
        "reads": sorted(reads),
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
    sys.stderr.write("".join(lines))
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


@contextlib.contextmanager
def _locked(scratch: Path) -> Iterator[None]:
    """Holds the stage's scratch: where a run was killed, its stage may live a moment longer."""
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "lock").open("w") as file:
        limit = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise Locked(
                        "another run is at this stage with the same settings",
                        hint="wait for it to end; its result is then taken",
                    ) from None
                time.sleep(0.05)
        yield


def _end_with_parent() -> None:
    def watch() -> None:
        # Past Python's own buffer, whose lock the interpreter would wait for at its end.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    cores.spin_briefly(os.environ)
    cores.collect_seldom()
    sys.exit(main(sys.argv[1]))
