"""An export's gates as JUnit XML, which continuous-integration servers show as tests.

One ``testsuite`` per artifact, one ``testcase`` per gate: a ``failure`` with limit and value where
it does not hold, ``skipped`` where it could not be judged here or was waived. Elements, attributes
and their order are those of the schema that Jenkins' xUnit plug-in publishes (``junit-10.xsd``),
which GitLab and GitHub's actions read too.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgekit.artifact import storage_error
from edgekit.errors import EdgekitError, StorageError

__all__ = ["check_place", "write", "write_error"]

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME = "edgekit export"


def write(document: Mapping[str, Any], path: Path) -> None:
    """Writes an ``edgekit.export/1`` document's gates, aside and then renamed into place.

    An artifact that failed for no gate's sake, as its target refused it, has a case ``export``.

    Raises:
        StorageError: no space or no permission.
    """
    suites = []
    for artifact in document["artifacts"]:
        gates = [g for g in document["gates"] if g["artifact"] == artifact["id"]]
        cases = [_case(artifact["id"], gate) for gate in gates]
        failed = any(g["passed"] is False and not g.get("waived") for g in gates)
        if artifact["status"] != "ok" and not failed:
            reason = artifact["reason"] or artifact["status"]
            cases.append(_told(artifact["id"], "export", "failure", artifact["status"], reason))
        suites.append(_suite(artifact["id"], cases))
    whole = [_case(document["model"], g) for g in document["gates"] if g["artifact"] is None]
    if whole:
        suites.append(_suite(document["model"], whole))
    _save(suites, document["wall_s"], path)


def write_error(error: EdgekitError, path: Path) -> None:
    """Writes that the export ended with an error, so that no older report stands for this one.

    Raises:
        StorageError: no space or no permission.
    """
    hint = f"\n{error.hint}" if error.hint else ""
    case = _told(_NAME, "export", "error", type(error).__name__, f"{error.message}{hint}")
    _save([_suite(_NAME, [case])], 0.0, path)


def check_place(path: Path) -> None:
    """Makes sure, before the work, that a report can be written.

    Raises:
        StorageError: its directory can't be made or written.
    """
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise _refused(path, error) from error


def _case(suite: str, gate: Mapping[str, Any]) -> ElementTree.Element:
    said = f"{gate['name']}: {_shown(gate['value'])}, limit {_shown(gate['limit'])}"
    detail = gate.get("detail")
    said = f"{said}: {detail}" if detail else said
    if gate["passed"] is True:
        case = _testcase(suite, gate["name"])
        ElementTree.SubElement(case, "system-out").text = _clean(said)
        return case
    if gate["passed"] is None:
        return _told(suite, gate["name"], "skipped", "", f"not judged here: {said}")
    if gate.get("waived"):
        return _told(suite, gate["name"], "skipped", "", f"waived: {said}")
    return _told(suite, gate["name"], "failure", "gate", said)


def _told(suite: str, name: str, kind: str, type_: str, said: str) -> ElementTree.Element:
    case = _testcase(suite, name)
    first = said.splitlines()[0] if said else kind
    about = {"message": _clean(first)}
    if kind != "skipped":
        about["type"] = type_
    ElementTree.SubElement(case, kind, about).text = _clean(said)
    return case


def _testcase(suite: str, name: str) -> ElementTree.Element:
    about = {"name": _clean(name), "classname": f"edgekit.{_clean(suite)}", "time": "0"}
    return ElementTree.Element("testcase", about)


def _suite(name: str, cases: Sequence[ElementTree.Element]) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", {"name": _clean(name), **_counts(cases), "time": "0"})
    suite.extend(cases)
    return suite


def _counts(cases: Sequence[ElementTree.Element]) -> dict[str, str]:
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    counted = {n: str(sum(c.find(k) is not None for c in cases)) for n, k in kinds.items()}
    return {"tests": str(len(cases)), **counted}


def _save(suites: Sequence[ElementTree.Element], seconds: float, path: Path) -> None:
    totals = _counts([case for suite in suites for case in suite])
    del totals["skipped"]  # the root has no such attribute in the schema
    root = ElementTree.Element("testsuites", {"name": _NAME, "time": f"{seconds:.3f}", **totals})
    root.extend(suites)
    ElementTree.indent(root)
    data = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"
    try:
        aside = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            aside.write_bytes(data)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> StorageError:
    found = storage_error(path.absolute().parent, error)
    return StorageError(found.message, hint="free some space, or choose another --junit")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _clean(text: str) -> str:
    """Without characters that XML 1.0 can't hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
