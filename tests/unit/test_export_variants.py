"""Variants on an export's way: which jobs keep them, and what a failed proof says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgekit import device
from edgekit.device import Job
from edgekit.export import making, run
from edgekit.export.document import Row, requirements
from edgekit.export.request import ExportRequest, Silent
from edgekit.names import NO_VNNI


class Told(Silent):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_an_engine_makes_one_artifact_for_all_and_says_so() -> None:
    jobs = device.plan_targets([device.load(n) for n in ("core-ultra", "intel-nuc")], ("openvino",))
    assert [j.variant for j in jobs] == [None, NO_VNNI]
    listener = Told()
    merged = run._without_variants(jobs, ExportRequest(engine="nncf", listener=listener))
    assert [(j.id, j.devices, j.threads) for j in merged] == [
        ("openvino-w8a8", ("core-ultra", "intel-nuc"), 4)
    ]
    assert len(listener.notes) == 1 and "openvino may saturate" in listener.notes[0]


@pytest.mark.parametrize(
    ("target", "variant", "here", "told"),
    [
        ("openvino", None, True, True),
        ("openvino", NO_VNNI, True, False),
        ("tflite", None, True, False),
        ("openvino", None, False, False),
    ],
)
def test_a_failed_proof_says_where_this_machine_is_the_cause(
    monkeypatch: pytest.MonkeyPatch, target: str, variant: str | None, here: bool, told: bool
) -> None:
    monkeypatch.setattr(making, "lacks_vnni", lambda: here)
    row = Row(Job(target, "w8a8", "cpu", ("core-ultra",), 1, variant))
    said = making._with_cause(row, "sqnr is 9")
    assert said is not None and said.startswith("sqnr is 9")
    assert ("this machine has no VNNI" in said) is told


OVERRIDES: dict[str, Any] = {
    NO_VNNI: {
        "isa": ["x86_64:avx_vnni|avx512_vnni"],
        "targets": {
            "openvino": {"weight_limit": 64},
            "onnxruntime": {"weight_dtype": "uint8"},
        },
    }
}


@pytest.mark.parametrize(
    ("target", "variant", "overrides", "needs"),
    [
        ("openvino", None, OVERRIDES, {"isa": ["x86_64:avx_vnni|avx512_vnni"]}),
        ("openvino", NO_VNNI, OVERRIDES, {}),
        ("openvino", None, {}, {}),  # nothing in it could saturate
        ("onnxruntime", None, OVERRIDES, {"without_vnni": {"session.x64quantprecision": "1"}}),
        ("onnxruntime", NO_VNNI, OVERRIDES, {}),
        ("tflite", None, OVERRIDES, {}),
    ],
)
def test_what_an_artifact_requires(
    target: str, variant: str | None, overrides: dict[str, Any], needs: dict[str, Any]
) -> None:
    proof: Any = SimpleNamespace(
        runtime=f"{target} 1.2.3", document={"passed": True}, structural=False
    )
    row = Row(Job(target, "w8a8", "cpu", ("x",), 1, variant), proof=proof)
    found = requirements(row, overrides)
    assert found.pop("min_version") == "1.2.3"
    assert found.pop("runtime") in (target, "ai-edge-litert")
    assert found == needs
