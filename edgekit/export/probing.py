"""Makes probes: artifacts of known networks, to measure on a device (`edgekit.bench.probes`)."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekit.bench.probes import probe_model
from edgekit.device import Job
from edgekit.export.converted import artifacts_of
from edgekit.scratch import scratch

__all__ = ["write_probe"]


def write_probe(network: str, job: Job, folder: Path, stem: str) -> Path:
    """Converts one probe for a job; its files are called ``stem``.

    Returns:
        The main file.

    Raises:
        UnsupportedError: the target can't convert it.
        StorageError: no space or permission.
    """
    model = probe_model(network)
    calib = {
        spec.name: tensor.numpy()
        for spec, tensor in zip(model.signature.inputs, model.example_inputs(), strict=True)
    }
    with scratch("probe") as folder:
        (made,) = artifacts_of([model], job, calib, folder)
        main = folder / f"{stem}{made.suffix}"
        for part in sorted(made.parent.glob(f"{made.stem}.*")):
            goal = folder / f"{stem}{part.suffix}"
            if part.is_dir():
                shutil.copytree(part, goal, dirs_exist_ok=True)
            else:
                shutil.copyfile(part, goal)
    return main
