"""Artifacts of models for one job, made by one worker process and nothing proven of them.

For latencies and memory, of which the numbers in the weights are no part: plans are made without
the methods that only choose better numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Store
from edgekit.compress.plan import plan_name
from edgekit.data import ArraySamples
from edgekit.device import Job
from edgekit.export.planning import make_plan
from edgekit.export.request import Silent
from edgekit.model import Model
from edgekit.names import METHODS
from edgekit.targets import find, worker

__all__ = ["artifacts_of"]


def artifacts_of(
    models: Sequence[Model],
    job: Job,
    calib: Mapping[str, np.ndarray[Any, Any]],
    folder: Path,
) -> list[Path]:
    """Main files of the artifacts.

    Args:
        models: what to convert; all take the inputs of ``calib``.
        job: target, delegate, scheme and variant.
        calib: calibration samples by input name, ``[n, ...]``.
        folder: where they go, each into a folder of its own.

    Raises:
        UnsupportedError: a model can't be exported or converted.
        WorkerCrashed: the converter died.
    """
    tasks = []
    store = Store(folder / "store")
    name = plan_name(job.through, job.scheme, job.variant)
    # Other variants are another rendering of the scheme's own plan.
    variants = [job.variant] if job.variant is not None and name != job.scheme else []
    for number, model in enumerate(models):
        samples = ArraySamples(
            dict(calib), None, signature=model.signature, preprocess=None, source="calibration"
        )
        planned = make_plan(
            model,
            samples,
            [job.scheme],
            store,
            Silent(),
            without=tuple(METHODS),
            variants=variants,
        )
        out = folder / str(number)
        out.mkdir(parents=True)
        task: dict[str, Any] = {
            "op": "convert",
            "program": str(planned.program(name)),
            "plan": str(planned.plan(name)),
            "variant": job.variant,
            "signature": model.signature.to_json(),
            "out": str(out / f"model{find(job.through).suffix}"),
        }
        tasks.append(task)
    results = worker.run(job.through, tasks)
    for result in results:
        if "error" in result:
            raise result["error"]
    return [Path(result["files"][0]) for result in results]
