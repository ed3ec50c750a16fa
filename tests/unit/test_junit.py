"""The JUnit report: the elements and attributes that CI servers read, and the gates' verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgekit.errors import StorageError, UnsupportedError
from edgekit.export import junit

# What junit-10.xsd of Jenkins' xUnit plug-in allows of what is written here: attributes (those
# needed first), and children.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"skipped", "time"}, {"testcase"}),
    "testcase": ({"name"}, {"classname", "time"}, {"skipped", "error", "failure", "system-out"}),
    "skipped": (set(), {"message", "type"}, set()),
    "failure": (set(), {"message", "type"}, set()),
    "error": (set(), {"message", "type"}, set()),
    "system-out": (set(), set(), set()),
}


def check(element: ElementTree.Element) -> None:
    """Holds an element, and all in it, to `SCHEMA`."""
    needed, allowed, children = SCHEMA[element.tag]
    assert needed <= set(element.attrib) <= needed | allowed, element.attrib
    assert {child.tag for child in element} <= children
    if element.tag == "testsuite":
        cases = list(element)
        assert element.get("tests") == str(len(cases))
        for name, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert element.get(name) == str(sum(c.find(kind) is not None for c in cases))
    for child in element:
        check(child)


def read(path: Path) -> ElementTree.Element:
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites"
    check(root)
    return root


def document(*gates: dict[str, Any], status: str = "ok", reason: str | None = None) -> Any:
    artifact = {"id": "tflite-w8a8", "status": status, "reason": reason}
    return {"model": "net", "artifacts": [artifact], "gates": list(gates), "wall_s": 1.25}


def gate(name: str, passed: bool | None, **more: Any) -> dict[str, Any]:
    base = {"artifact": "tflite-w8a8", "name": name, "limit": 1.0, "value": 2, "passed": passed}
    return base | more


def test_one_suite_per_artifact_and_one_case_per_gate(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text("older")
    junit.write(
        document(
            gate("parity", True, limit="plan", value="runtime"),
            gate("faster", None, value=None, detail="it was not measured beside float"),
            gate("smaller", False, waived=True),
            gate("max-drop", False, detail='a < b & "c"\x00 \ud800'),
            gate("whole", True, artifact=None),
            status="failed",
            reason="gate max-drop",
        ),
        path,
    )
    root = read(path)
    assert (root.get("tests"), root.get("failures"), root.get("time")) == ("5", "1", "1.250")
    suite, whole = root
    assert suite.get("name") == "tflite-w8a8" and whole.get("name") == "net"
    cases = {case.get("name"): case for case in suite}
    assert list(cases) == ["parity", "faster", "smaller", "max-drop"]
    assert {case.get("classname") for case in suite} == {"edgekit.tflite-w8a8"}
    assert cases["parity"].findtext("system-out") == "parity: runtime, limit plan"
    skipped = cases["faster"].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == (
        "not judged here: faster: none, limit 1: it was not measured beside float"
    )
    waived = cases["smaller"].find("skipped")
    assert waived is not None and waived.get("message") == "waived: smaller: 2, limit 1"
    failure = cases["max-drop"].find("failure")
    assert failure is not None and failure.get("type") == "gate"
    assert failure.text == 'max-drop: 2, limit 1: a < b & "c"\ufffd \ufffd'
    assert [p.name for p in tmp_path.iterdir()] == ["junit.xml"], "nothing is left aside"


def test_an_artifact_that_no_gate_failed_has_a_case_of_its_own(tmp_path: Path) -> None:
    junit.write(document(status="failed", reason="no kernel\nfor this"), tmp_path / "j.xml")
    [[case]] = read(tmp_path / "j.xml")
    failure = case.find("failure")
    assert case.get("name") == "export"
    assert failure is not None
    assert (failure.get("message"), failure.text) == ("no kernel", "no kernel\nfor this")


def test_an_export_that_ended_early_is_an_error(tmp_path: Path) -> None:
    junit.write_error(UnsupportedError("no operator x", hint="leave it out"), tmp_path / "j.xml")
    [[case]] = read(tmp_path / "j.xml")
    error = case.find("error")
    assert error is not None
    assert (error.get("type"), error.text) == ("UnsupportedError", "no operator x\nleave it out")


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file") as error:
        junit.check_place(tmp_path / "file" / "junit.xml")
    assert "--junit" in error.value.hint
    junit.check_place(tmp_path / "new" / "junit.xml")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(StorageError):
        junit.write(document(), tmp_path / "absent" / "junit.xml")
