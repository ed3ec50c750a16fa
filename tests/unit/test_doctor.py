"""The doctor reads ranges as pip does, believes only what ran, and says what to install."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement as PackagingRequirement
from packaging.version import Version

from edgekit import doctor, errors
from edgekit.cli.main import main
from edgekit.doctor import Package, Requirement, RoundTrip
from edgekit.names import EXTRAS, TARGETS

LINES = metadata.requires("edgekit") or []


def passes(target: str) -> RoundTrip:
    return RoundTrip(True, f"{target} ran one layer", 0.1)


def fails(target: str) -> RoundTrip:
    return RoundTrip(False, f"{target} died of SIGSEGV", 0.1)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Distributions to be taken for absent, whatever this machine has."""
    absent: set[str] = set()
    real = metadata.version

    def version(name: str) -> str:
        if name in absent:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    return absent


# -- requirements ---------------------------------------------------------------------------------


@pytest.mark.parametrize("line", LINES)
def test_every_requirement_of_ours_is_read_as_packaging_reads_it(line: str) -> None:
    ours, theirs = Requirement.parse(line), PackagingRequirement(line)
    assert ours.name == theirs.name
    assert {r.strip() for r in ours.ranges.split(",") if r} == {str(s) for s in theirs.specifier}
    assert (f'extra == "{ours.extra}"' if ours.extra else None) == (
        str(theirs.marker) if theirs.marker else None
    )


releases = st.lists(st.integers(0, 40), min_size=1, max_size=4).map(
    lambda numbers: ".".join(map(str, numbers))
)
operators = st.sampled_from([">=", "<=", ">", "<", "==", "!="])


@given(
    releases, st.lists(st.tuples(operators, releases), max_size=3), st.sampled_from(["", "+cpu"])
)
def test_ranges_hold_the_versions_that_pip_says_they_hold(
    version: str, ranges: list[tuple[str, str]], local: str
) -> None:
    line = f"torch{','.join(operator + bound for operator, bound in ranges)}"
    specifier = PackagingRequirement(line).specifier
    # The public version: packaging lets `==2.13` take 2.13+cpu, but `<=2.13` not always.
    assert Requirement.parse(line).allows(version + local) == specifier.contains(Version(version))


@pytest.mark.parametrize(
    "line", ["torch~=2.13", "torch>=2.13rc1", "torch @ file:torch.whl", "", ">=2"]
)
def test_a_requirement_that_cannot_be_read_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="requirement"):
        Requirement.parse(line)


def test_a_version_without_a_number_is_out_of_range() -> None:
    assert not Requirement("torch", ">=2").allows("unknown")


def test_requirements_cover_the_core_and_every_extra() -> None:
    found = doctor.requirements()
    assert tuple(found) == ("", *EXTRAS)
    assert {r.name for r in found[""]} == {"numpy", "click", "pydantic", "rich"}
    assert all(found.values())


def test_a_package_that_is_too_old_is_not_ok() -> None:
    real = metadata.version("numpy")
    assert doctor.package(Requirement("numpy", ">=999")) == Package("numpy", ">=999", real, False)
    assert doctor.package(Requirement("numpy", ">=1")) == Package("numpy", ">=1", real, True)
    assert doctor.package(Requirement("no-such-package", "")).version is None


# -- the round trip, in real processes ------------------------------------------------------------


def self_test(code: str, timeout: float = 20.0) -> RoundTrip:
    return doctor._run_self_test([sys.executable, "-c", code], timeout)


def test_the_last_line_of_stdout_is_the_answer() -> None:
    answer = json.dumps({"ok": True, "detail": "one convolution, 62.1 dB"})
    trip = self_test(f"print('loading'); print({answer!r})")
    assert trip.ok
    assert trip.detail == "one convolution, 62.1 dB"
    assert 0 < trip.seconds < 20


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ('print(\'{"ok": false, "detail": "12 dB"}\')', "12 dB"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
        ("import sys; sys.exit('no module named litert')", "exit code 1: no module named litert"),
        ("pass", "without an answer"),
        ("print('[1, 2]')", "without an answer"),
        ('print(\'{"ok": "yes", "detail": ""}\')', "without an answer"),
        ('print(\'{"ok": true, "detail": "fine"}\'); raise SystemExit(4)', "exit code 4: fine"),
    ],
)
def test_anything_but_a_clean_yes_is_a_failure(code: str, detail: str) -> None:
    trip = self_test(code)
    assert not trip.ok
    assert detail in trip.detail


def test_a_round_trip_that_hangs_ends_with_its_children(tmp_path: object) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open(r'{tmp_path}/pid', 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    start = time.perf_counter()
    trip = self_test(code, timeout=1.5)
    assert time.perf_counter() - start < 15
    assert not trip.ok
    assert trip.detail == "no answer within 1.5 s"
    with open(f"{tmp_path}/pid") as file:  # noqa: PTH123
        child = int(file.read())
    for _ in range(50):
        if not _alive(child):
            break
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.runtime
def test_the_null_target_makes_the_round_trip_for_real() -> None:
    trip = doctor.round_trip("null")
    assert trip.ok, trip.detail
    assert trip.detail
    assert trip.seconds < 120


# -- the report -----------------------------------------------------------------------------------


def test_the_facts_are_of_this_machine() -> None:
    facts = doctor.machine_facts()
    assert facts["cores"] >= 1
    assert facts["memory_mib"]["total"] > 100
    assert facts["disk_free_mib"] >= 0
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "arch" not in (facts["isa"] or {})


def test_all_installed_and_running_passes() -> None:
    told: list[str] = []
    report = doctor.diagnose(run=passes, tell=told.append)
    assert report["passed"]
    assert report["missing"] == []
    assert told == [t["id"] for t in report["targets"] if t["installed"]]
    assert set(report["extras"]) == {"core", *EXTRAS}
    assert all(t["round_trip"]["ok"] for t in report["targets"] if t["installed"])


def test_a_runtime_that_does_not_run_fails_and_names_the_remedy() -> None:
    report = doctor.diagnose(["onnxruntime"], run=fails)
    assert not report["passed"]
    [check] = [c for c in report["checks"] if c["name"] == "run onnxruntime"]
    assert check == {
        "name": "run onnxruntime",
        "passed": False,
        "detail": "onnxruntime died of SIGSEGV",
        "hint": "pip install --force-reinstall 'edgekit[onnxruntime]'",
    }


def test_an_extra_that_is_absent_is_no_fault_unless_asked_for(installed: set[str]) -> None:
    installed.add("openvino")
    report = doctor.diagnose(run=passes)
    assert report["passed"]
    assert report["missing"] == []
    assert report["install"] == "pip install 'edgekit[openvino]'"
    [check] = [c for c in report["checks"] if c["name"] == "extra openvino"]
    assert check["passed"] is None
    assert check["detail"] == "not installed: openvino"

    asked = doctor.diagnose(["openvino"], run=passes)
    assert not asked["passed"]
    assert asked["missing"] == ["openvino"]
    assert asked["targets"] == [{"id": "openvino", "installed": False, "round_trip": None}]


def test_one_command_installs_everything_that_is_missing(installed: set[str]) -> None:
    installed |= {"openvino", "ai-edge-litert", "transformers"}
    report = doctor.diagnose(run=passes)
    assert report["install"] == "pip install 'edgekit[tflite,openvino,text]'"


def test_a_core_package_out_of_range_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.requires("edgekit") or []
    monkeypatch.setattr(metadata, "requires", lambda name: [*real, "click>=999"])
    report = doctor.diagnose(["null"], run=passes)
    assert not report["passed"]
    assert report["checks"][0]["name"] == "core"
    assert "is not >=999" in report["checks"][0]["detail"]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="Did you mean 'tflite'"):
        doctor.diagnose(["tflight"], run=passes)


def test_edgekit_itself_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    with pytest.raises(errors.MissingDependency, match="not installed") as caught:
        doctor.diagnose(run=passes)
    assert "pip install -e ." in caught.value.hint


# -- the verb -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "absent", "trip", "code"),
    [
        (["--target", "onnxruntime"], set(), passes, 0),
        (["--target", "onnxruntime"], set(), fails, 1),
        (["--target", "onnxruntime"], {"onnxruntime"}, passes, 3),
        (["--target", "onnxruntime", "--target", "openvino"], {"openvino"}, fails, 3),
        (
            [],
            {"openvino", "ai-edge-litert", "onnxruntime", "executorch", "torch", "coremltools"},
            fails,
            0,
        ),
        (["--target", "nothing"], set(), passes, 2),
    ],
)
def test_exit_codes_and_one_document(
    args: list[str],
    absent: set[str],
    trip: object,
    code: int,
    installed: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from edgekit import schemas

    installed |= absent
    real = doctor.diagnose
    monkeypatch.setattr(doctor, "diagnose", lambda t, **kw: real(t, **{**kw, "run": trip}))
    assert main(["doctor", *args, "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    if code in (0, 1, 3):
        assert document["schema"] == "edgekit.doctor/1"
        schemas.validate(document)
    else:
        assert document["schema"] == "edgekit.error/1"


def test_the_text_says_what_ran_and_what_to_install(
    installed: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed.add("openvino")
    real = doctor.diagnose
    monkeypatch.setattr(doctor, "diagnose", lambda t, **kw: real(t, **{**kw, "run": passes}))
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert any(line.split()[:3] == ["run", "onnxruntime", "ok"] for line in lines)
    assert any(line.split()[:3] == ["extra", "openvino", "absent"] for line in lines)
    assert lines[-1] == "to install what is missing: pip install 'edgekit[openvino]'"
    assert "running one layer in onnxruntime" in err


def test_the_targets_it_tries_are_the_ones_that_ship() -> None:
    assert [t["id"] for t in doctor.diagnose(run=passes)["targets"]] == list(TARGETS)
