"""What we make of Core ML's plan; Core ML itself runs on a Mac alone, and made none of these."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.bench.worker import answer
from edgekit.errors import UnsupportedError
from edgekit.runtime.coreml_plan import count, placement, units

compute = pytest.importorskip("coremltools.models.compute_plan")


class MLCPUComputeDevice:
    """Named as coremltools names it."""


class MLNeuralEngineComputeDevice:
    """Named as coremltools names it."""


CPU, ENGINE = MLCPUComputeDevice(), MLNeuralEngineComputeDevice()


def operation(name: str, *inner: Any) -> Any:
    """One of a program, in coremltools' own class."""
    blocks = [compute.MLModelStructureProgramBlock([], list(inner), [])] if inner else []
    return compute.MLModelStructureProgramOperation({}, name, [], blocks, None)


class Plan:
    """A plan by the names of its operations: the unit, the supported ones, the weight."""

    def __init__(self, told: dict[str, Any], *operations: Any) -> None:
        block = compute.MLModelStructureProgramBlock([], list(operations), [])
        function = compute.MLModelStructureProgramFunction([], block)
        program = compute.MLModelStructureProgram({"main": function})
        self.model_structure = SimpleNamespace(program=program if operations else None)
        self._told = told

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        told = self._told.get(operation.operator_name)
        return None if told is None else compute.MLComputePlanDeviceUsage(told[0], told[1])

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        weight = self._told[operation.operator_name][2]
        return None if weight is None else compute.MLComputePlanCost(weight)


def test_operations_and_work_are_counted_by_unit() -> None:
    told = {
        "ios17.conv": (ENGINE, [CPU, ENGINE], 0.75),
        "ios17.gather": (CPU, [CPU], 0.125),
        "ios17.relu": (CPU, [CPU, ENGINE], 0.125),
        "ios17.cond": (CPU, [CPU], None),
    }
    nested = operation("ios17.cond", operation("ios17.conv"), operation("const"))
    names = ("const", "ios17.conv", "ios17.gather", "ios17.relu")
    found = count(Plan(told, *map(operation, names), nested))
    assert found["units"] == {
        "neural-engine": {"ops": 2, "work": 1.5},
        "cpu": {"ops": 3, "work": 0.25},
    }
    assert found["first_off"] == "ios17.gather" and found["could"] == 1
    alone = count(Plan({"ios17.relu": (CPU, [CPU], 1.0)}, operation("ios17.relu")))
    assert alone["first_off"] is None
    with pytest.raises(UnsupportedError, match="only ML Programs"):
        count(Plan({}))


@pytest.mark.skipif(sys.platform == "darwin", reason="here Core ML would make the plan")
def test_without_a_mac_there_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="makes no plan of it here"):
        placement(tmp_path / "a.mlpackage")
    assert units(tmp_path / "a.mlpackage") == {}
    question = {"nonce": "n", "op": "placement", "target": "tflite", "path": "a"}
    assert "coreml does" in answer(question, tmp_path)["error"]["message"]
