"""An engine's work in a target's worker process; see `edgekit.targets.worker`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

TASK = "edgekit.engines._task:quantize"
"""The task's name for the worker."""


def quantize(target: Any, task: dict[str, Any]) -> dict[str, Any]:
    """``{"engine", "settings", "program", "calib", "signature", "out"}`` -> ``{"files"}``.

    ``calib`` is an ``.npz`` with arrays [n, *shape] by input name.
    """
    import torch

    from edgekit import engines
    from edgekit.signature import Signature

    torch.manual_seed(0)
    signature = Signature.from_json(task["signature"])
    files = engines.quantize(
        task["engine"],
        torch.export.load(task["program"]),
        _feeds(Path(task["calib"]), [spec.name for spec in signature.inputs]),
        signature,
        target.id,
        Path(task["out"]),
        task["settings"],
    )
    return {"files": [str(file) for file in files]}


def _feeds(path: Path, names: list[str]) -> Iterator[tuple[torch.Tensor, ...]]:
    import torch

    with np.load(path, allow_pickle=False) as data:
        arrays = [data[name] for name in names]
    for i in range(len(arrays[0])):
        yield tuple(torch.from_numpy(np.ascontiguousarray(array[i])) for array in arrays)
