"""Where Core ML would run a package's operations on this Mac: Apple's own compute plan.

`MLComputePlan` exists from macOS 14.4 on. It cannot be had elsewhere: on other systems nothing is
known of it, and what is written here has run against coremltools' documented interface alone, never
against Apple's.
"""

from __future__ import annotations

import collections
import tempfile
from pathlib import Path
from typing import Any

from edgekit.runtime.session_coreml import unavailable
from edgekit.targets._coreml_package import quiet

__all__ = ["counted", "units"]

_UNITS = {
    "MLNeuralEngineComputeDevice": "neural-engine",
    "MLGPUComputeDevice": "gpu",
    "MLCPUComputeDevice": "cpu",
}


def units(path: Path) -> dict[str, int]:
    """Operations by the unit that Core ML prefers for them, with all units allowed.

    Returns:
        Counts under ``cpu``, ``gpu`` and ``neural-engine``; empty off the Mac, and where this
        system has no compute plans or makes none of this package.
    """
    if unavailable() is not None:
        return {}
    quiet()
    from coremltools.models.compute_plan import MLComputePlan
    from coremltools.models.utils import compile_model

    with tempfile.TemporaryDirectory(prefix="edgekit-plan-") as folder:
        try:
            compiled = compile_model(str(path), str(Path(folder) / "model.mlmodelc"))
            return counted(MLComputePlan.load_from_path(str(compiled)))
        except Exception:  # coremltools raises what Apple's frameworks say, in any type
            return {}


def counted(plan: Any) -> dict[str, int]:
    """Operations of a compute plan's main function by unit; those without one are left out."""
    program = plan.model_structure.program
    if program is None or "main" not in program.functions:
        return {}
    found: collections.Counter[str] = collections.Counter()
    for operation in program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            kind = type(usage.preferred_compute_device).__name__
            found[_UNITS.get(kind, kind)] += 1
    return dict(sorted(found.items()))
