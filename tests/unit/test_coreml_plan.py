"""Apple's compute plan, counted: only the counting, as the plan itself exists on a Mac alone."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.targets._coreml_package import quiet
from edgekit.targets._coreml_plan import counted, units


class MLCPUComputeDevice:
    """Named as coremltools names a CPU, whose own can be made by Apple's frameworks alone."""


class MLNeuralEngineComputeDevice:
    """The same for a Neural Engine."""


def plan(*devices: object) -> Any:
    """A plan of one operation per device; None for one that runs nowhere, such as a constant."""
    quiet()
    from coremltools.models import compute_plan as ct

    operations = [
        ct.MLModelStructureProgramOperation({}, f"op{i}", [], [], None)
        for i, _ in enumerate(devices)
    ]
    block = ct.MLModelStructureProgramBlock([], operations, [])
    function = ct.MLModelStructureProgramFunction([], block)
    program = ct.MLModelStructureProgram({"main": function})
    used = {
        op.operator_name: None if d is None else ct.MLComputePlanDeviceUsage(d, [d])
        for op, d in zip(operations, devices, strict=True)
    }
    return SimpleNamespace(
        model_structure=ct.MLModelStructure(None, program, None),
        get_compute_device_usage_for_mlprogram_operation=lambda op: used[op.operator_name],
    )


def test_operators_are_counted_by_the_unit_that_is_preferred() -> None:
    cpu, engine = MLCPUComputeDevice(), MLNeuralEngineComputeDevice()
    found = counted(plan(engine, None, engine, cpu))
    assert found == {"cpu": 1, "neural-engine": 2}
    assert counted(plan()) == {}


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has plans")
def test_there_is_none_off_the_mac(tmp_path: Path) -> None:
    assert units(tmp_path / "model.mlpackage") == {}
