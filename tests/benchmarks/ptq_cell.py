"""What `bench_ptq.py` does in processes of its own: makes a model ready, a plan, one artifact.

``python ptq_cell.py REQUEST.json`` does one step and writes its result beside the request. Each has
a process, so that its peak memory is its own and what a vendor's library does to a process stays
there.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def prepare(request: dict[str, Any]) -> dict[str, Any]:
    """The canonical program and the samples of a model, as files in ``folder``."""
    import torch
    from ptq_models import MODELS, Unavailable

    from edgekit.compress.graph import canonical, program_digest, save_program
    from edgekit.model import Model

    folder = Path(request["folder"])
    try:
        ready = MODELS[request["model"]].prepare(Path(request["data"]), request["shift"])
    except Unavailable as error:
        return {"unavailable": str(error)}
    examples = {name: torch.from_numpy(value[0].copy()) for name, value in ready.calib.items()}
    model = Model.from_module(ready.net, examples, name=request["model"])
    program = canonical(model.program())
    save_program(program, folder / "program.pt2")
    names = [spec.name for spec in model.signature.inputs]
    np.savez(folder / "calib.npz", **{n: ready.calib[n] for n in names})
    np.savez(folder / "eval.npz", **{n: ready.evaluation[n] for n in names})
    labels = np.zeros(0, np.int64) if ready.labels is None else ready.labels
    np.save(folder / "labels.npy", labels)
    np.save(folder / "samples.npy", ready.samples)
    sha = hashlib.sha256(program_digest(program).encode())
    for sample in (*(ready.calib[n] for n in names), *(ready.evaluation[n] for n in names), labels):
        sha.update(np.ascontiguousarray(sample).tobytes())
    return {
        "signature": model.signature.to_json(),
        "n": len(ready.evaluation[names[0]]),
        "digest": sha.hexdigest(),
    }


def plan(request: dict[str, Any]) -> dict[str, Any]:
    """edgekit's plan, and the program that it belongs to."""
    import torch

    from edgekit.compress.graph import save_program

    folder = Path(request["folder"])
    program = torch.export.load(request["program"])
    start = time.perf_counter()
    program, made = edgekit_plan(program, _feeds(request))
    seconds = time.perf_counter() - start
    save_program(program, folder / "program.pt2")
    (folder / "plan.json").write_text(json.dumps(made.to_json()))
    return {"seconds": seconds}


def edgekit_plan(program: Any, feeds: Iterator[Any]) -> tuple[Any, Any]:
    """The one place where edgekit's own quantizer is called: the program to render, and the plan.

    As `edgekit.export.planning.make_plan` calls it.
    """
    from edgekit.compress.ptq import post_training

    made = post_training(program, feeds)
    return made.program, made.plan


def artifact(request: dict[str, Any]) -> dict[str, Any]:
    """One artifact: of edgekit's plan, of the float model, or of an engine."""
    import torch

    from edgekit import engines, targets
    from edgekit.artifact import files_of
    from edgekit.compress.graph import program_digest
    from edgekit.compress.plan import QuantPlan
    from edgekit.signature import Signature

    torch.manual_seed(0)
    runtime, engine = request["runtime"], request["engine"]
    target = targets.find(runtime)
    signature = Signature.from_json(request["signature"])
    out = Path(request["folder"]) / f"model{target.suffix}"
    program = torch.export.load(request["program"])
    start = time.perf_counter()
    if engine == "float":
        empty = QuantPlan("fp32", program_digest(program))
        files = target.convert(program, empty, signature, out)
    elif engine == "edgekit":
        made = QuantPlan.from_json(json.loads(Path(request["plan"]).read_text()))
        files = target.convert(program, made, signature, out)
    else:
        settings = request["settings"]
        feeds = _feeds(request)
        files = engines.quantize(engine, program, feeds, signature, runtime, out, settings)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "files": [file.name for file in files],
        "bytes": sum(part.stat().st_size for file in files for part in files_of(file)),
    }


def _feeds(request: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    import torch

    with np.load(request["calib"], allow_pickle=False) as data:
        arrays = [data[name] for name in data.files]
    for i in range(len(arrays[0])):
        yield tuple(torch.from_numpy(np.ascontiguousarray(a[i])) for a in arrays)


_STEPS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "prepare": prepare,
    "plan": plan,
    "artifact": artifact,
}


def main() -> int:
    """Does the step; an error on purpose is a result too."""
    from edgekit.errors import EdgekitError

    path = Path(sys.argv[1])
    request = json.loads(path.read_text())
    import torch

    torch.set_num_threads(request["threads"])
    try:
        result = _STEPS[request["step"]](request)
    except EdgekitError as error:
        traceback.print_exc()  # into the step's log.txt
        result = {"error": error.message}
    # ru_maxrss is in KiB on Linux.
    result["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    path.with_name("result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
