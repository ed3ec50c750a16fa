"""ExecuTorch's other delegates: how they are named, and what is claimed of what nothing can run."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from edgekit import device
from edgekit.cli._found import Found
from edgekit.device import plan_targets
from edgekit.device.profile import TargetSupport
from edgekit.errors import UnsupportedError, UsageError
from edgekit.names import artifact_id, through_target
from edgekit.parity import Check
from edgekit.structure import checks_of, only_by_structure
from edgekit.targets import find


def test_the_usual_delegate_changes_no_id() -> None:
    assert artifact_id("executorch", "w8a8", delegate="xnnpack") == "executorch-w8a8"
    assert artifact_id("coreml", "fp16", delegate="coreml") == "coreml-fp16"
    assert artifact_id("executorch", "fp16", delegate="vulkan") == "executorch-fp16-vulkan"
    assert through_target("executorch", "xnnpack") == "executorch"


def test_a_delegate_is_made_only_where_it_is_named() -> None:
    phone = device.load("pixel-8")
    assert "vulkan" not in {job.delegate for job in plan_targets([phone])}
    (job,) = plan_targets([phone], ["executorch"])
    assert (job.id, job.delegate) == ("executorch-w8a8", "xnnpack")
    assert plan_targets([phone], ["executorch:xnnpack"]) == (job,)
    (job,) = plan_targets([phone], ["executorch:vulkan"])
    assert (job.id, job.through) == ("executorch-fp16-vulkan", "executorch:vulkan")
    both = plan_targets([phone], ["executorch:vulkan", "executorch"])
    assert [j.delegate for j in both] == ["xnnpack", "vulkan"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("executorch:vulcan", "Did you mean 'vulkan'.*coreml, vulkan, xnnpack"),
        ("tflite:gpu", "target 'tflite' has one delegate alone"),
        ("executorch:", "unknown delegate of executorch"),
    ],
)
def test_an_unknown_delegate_is_refused(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_targets([device.load("pixel-8")], [name])


@pytest.mark.parametrize(
    ("id", "name", "words"),
    [
        ("pixel-8", "executorch:coreml", "pixel-8: Core ML is part of Apple's systems"),
        ("iphone-12", "executorch:vulkan", "iphone-12: its profile lists no GPU"),
        ("host", "executorch:vulkan", "host: its profile lists no GPU"),
    ],
)
def test_a_device_without_the_delegate_says_why(id: str, name: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        plan_targets([device.load(id)], [name])


def test_a_scheme_that_a_delegate_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="executorch:vulkan with scheme w8a8") as refused:
        plan_targets([device.load("pixel-8")], ["executorch:vulkan"], ["w8a8"])
    assert "lists no GPU" not in refused.value.message


def test_the_usual_delegate_is_never_judged_by_structure() -> None:
    assert only_by_structure("executorch") is None
    assert only_by_structure("coreml") is None
    assert find("executorch:xnnpack") is find("executorch")


def test_a_profile_names_delegates_that_there_are() -> None:
    with pytest.raises(ValidationError, match="Did you mean 'vulkan'"):
        TargetSupport(target="executorch", schemes=("fp32",), delegate="Vulkan")
    assert TargetSupport(target="executorch", schemes=("fp32",), delegate="vulkan")


def test_two_artifacts_of_one_id_are_refused() -> None:
    phone = device.load("pixel-8")
    other = phone.model_copy(
        update={
            "id": "other",
            "targets": (TargetSupport(target="tflite", schemes=("w8a8",), delegate="gpu"),),
        }
    )
    with pytest.raises(UsageError, match=r"tflite-w8a8 would be made twice.*'gpu' of other"):
        plan_targets([phone, other], ["tflite"])


def test_what_nothing_ran_is_not_said_to_have_run() -> None:
    artifact: Any = None
    good = (Check("loads", True, None, None, "it loads"),)
    assert Found(artifact, good).verification == "runtime"
    assert Found(artifact, good, emulated=True).verification == "emulated"
    assert Found(artifact, good, structural=True).verification == "structural"
    bad = (*good, Check("outputs", False, None, None, "another shape"))
    assert Found(artifact, bad, structural=True).verification == "none"
    assert Found(artifact, ()).verification == "none"


def test_structure_that_finds_no_fault_in_a_mutant_proves_nothing() -> None:
    good, bad = [["loads", True, "seen"]], [["outputs", False, "seen"]]
    assert all(check.passed for check in checks_of(good, bad))
    void = {check.name: check.passed for check in checks_of(good, good)}
    assert void == {"loads": True, "self-test": False}
    assert checks_of(bad, bad)[0].passed is False
