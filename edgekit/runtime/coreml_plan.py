"""Where Core ML would run each operation of a program: CPU, GPU or Neural Engine.

Core ML's own plan, through coremltools (8 or later) on a Mac, where this was not run yet: what is
tested is what we make of a plan. Latencies of `edgekit.runtime.session_coreml` are the CPU's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import MissingDependency, UnsupportedError
from edgekit.runtime.session import require
from edgekit.runtime.session_coreml import unavailable

__all__ = ["count", "placement", "units"]

_UNITS = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "neural-engine",
}


def placement(path: Path) -> dict[str, Any]:
    """What `count` gives of a ``.mlpackage`` when Core ML may choose among all units.

    Raises:
        MissingDependency: coremltools is not installed.
        UnsupportedError: this is not macOS 14.4 or later, or coremltools makes no plans.
    """
    reason = unavailable()
    if reason is not None:
        raise UnsupportedError(f"coreml {path.name}: Core ML makes no plan of it here: {reason}")
    coremltools = require("coremltools", "coremltools")
    plans = require("coremltools.models.compute_plan", "coremltools")
    with tempfile.TemporaryDirectory(prefix="edgekit-coreml-") as folder:
        try:
            compiled = coremltools.models.utils.compile_model(str(path), f"{folder}/a.mlmodelc")
            plan = plans.MLComputePlan.load_from_path(compiled, coremltools.ComputeUnit.ALL)
            return count(plan)
        except UnsupportedError:
            raise
        except Exception as error:
            raise UnsupportedError(
                f"coreml {path.name}: Core ML makes no plan of it here: {error}",
                hint="it needs macOS 14.4 and coremltools 8, or later ones",
            ) from error


def units(path: Path) -> dict[str, int]:
    """Operations by unit; empty where `placement` knows of none."""
    try:
        found = placement(path)["units"]
    except (MissingDependency, UnsupportedError):
        return {}
    return {unit: entry["ops"] for unit, entry in sorted(found.items())}


def count(plan: Any) -> dict[str, Any]:
    """Operations and share of the work by unit, of coremltools' ``MLComputePlan``.

    Returns:
        ``units``: by name, ``ops`` and ``work`` (0 to 1 of the whole, as Core ML estimates it);
        ``first_off``: the first operation that the Neural Engine will not run, None if there is
        none or it runs nothing; ``could``: of the operations not on it, how many it supports.

    Raises:
        UnsupportedError: it is no ML Program.
    """
    program = plan.model_structure.program
    if program is None:
        raise UnsupportedError("coreml: only ML Programs have a plan, and this is none")
    units: dict[str, dict[str, Any]] = {}
    first_off, could = None, 0
    for function in program.functions.values():
        for operation in _operations(function.block):
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is None:
                continue  # a constant, which nothing runs
            unit = _unit(usage.preferred_compute_device)
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            entry = units.setdefault(unit, {"ops": 0, "work": 0.0})
            entry["ops"] += 1
            entry["work"] += 0.0 if cost is None else cost.weight
            if unit != "neural-engine":
                first_off = first_off or str(operation.operator_name)
                supported = {_unit(device) for device in usage.supported_compute_devices}
                could += "neural-engine" in supported
    if "neural-engine" not in units:
        first_off = None
    return {"units": units, "first_off": first_off, "could": could}


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _unit(device: object) -> str:
    return _UNITS.get(type(device).__name__, type(device).__name__)
