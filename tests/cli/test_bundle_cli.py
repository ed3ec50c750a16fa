"""`edgekit bundle diff`: what changed, what got worse beyond its interval, and what is noise."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.runtime.golden import pack_golden, unpack_golden

Run = Callable[..., Any]
Contents = tuple[dict[str, bytes], dict[str, Any]]
Write = Callable[..., Path]

EVALUATION = {"source": "digits", "digest": "e" * 64, "n": 1000}


def evidence(**changes: Any) -> dict[str, Any]:
    """What an export states of an artifact; each change is a dotted path with __ for the dots."""
    stated: dict[str, Any] = {
        "verify": {"outputs": [{"sqnr_db": 41.0}]},
        "placement": {
            "float_ops": 1, "undelegated_ops": 0, "macs": {"total": 900}, "first_fallback": "Gemm",
        },
        "accuracy": {"value": 90.0, "drop_points": 0.2, "drop_ci95": [-0.4, 0.8]},
        "speed": {"ratio": 0.5, "ci95": [0.45, 0.55]},
        "bench": {"latency_ms": {"p50": 4.0}, "peak_memory_mib": 40.0},
    }  # fmt: skip
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = stated
        for key in parents:
            place = place[key]
        place[last] = value
    return stated


@pytest.fixture
def compare(bundle_contents: Contents, write_directory: Write, edgekit: Run, tmp_path: Path) -> Run:
    """Diffs a bundle with one that ``change`` made of it, and gives how the command ended."""
    files, manifest = bundle_contents
    manifest["lineage"] = {"evaluation": EVALUATION}
    manifest["artifacts"][1]["evidence"] = evidence()
    old = write_directory(tmp_path / "old", files, manifest)

    def run(change: Callable[[dict[str, bytes], dict[str, Any]], None], *args: str) -> Any:
        data, stated = dict(files), copy.deepcopy(manifest)
        change(data, stated)
        new = write_directory(tmp_path / f"new-{len(list(tmp_path.iterdir()))}", data, stated)
        return edgekit("bundle", "diff", old, new, *args)

    return run


def states(**changes: Any) -> Callable[[Any, dict[str, Any]], None]:
    """A change of the second artifact's evidence."""

    def change(_files: Any, manifest: dict[str, Any]) -> None:
        manifest["artifacts"][1]["evidence"] = evidence(**changes)

    return change


def changes_of(document: dict[str, Any], artifact: str = "null-w8a8") -> dict[str, dict[str, Any]]:
    [entry] = [a for a in document["artifacts"] if a["id"] == artifact]
    return {c["what"]: c for c in entry["changes"]}


def test_a_bundle_is_identical_to_itself(compare: Run) -> None:
    done = compare(states(), "--json", "--fail-on", "regressed")
    assert done.code == 0
    document = done.document
    assert document["identical"] is True
    assert document["bundle"] == [] and {a["change"] for a in document["artifacts"]} == {"same"}
    assert "identical" in compare(states()).out


@pytest.mark.parametrize(
    ("change", "what", "verdict"),
    [
        ({"accuracy__value": 85.0}, "accuracy", "worse"),
        ({"accuracy__value": 89.0}, "accuracy", "no difference shown"),
        ({"accuracy__value": 95.0}, "accuracy", "better"),
        ({"accuracy__drop_points": 2.0, "accuracy__drop_ci95": [1.2, 2.8]}, "drop_points", "worse"),
        (
            {"accuracy__drop_points": 0.7, "accuracy__drop_ci95": [0.1, 1.3]},
            "drop_points",
            "no difference shown",
        ),
        ({"speed__ratio": 0.7, "speed__ci95": [0.65, 0.75]}, "time_over_float", "worse"),
        (
            {"speed__ratio": 0.52, "speed__ci95": [0.4, 0.6]},
            "time_over_float",
            "no difference shown",
        ),
        ({"speed__ratio": 0.3, "speed__ci95": [0.25, 0.35]}, "time_over_float", "better"),
        ({"speed__ratio": 0.7, "speed__ci95": None}, "time_over_float", None),
        ({"placement__float_ops": 2}, "float_ops", "worse"),
        ({"placement__float_ops": None}, "float_ops", None),
        ({"placement__undelegated_ops": 3}, "undelegated_ops", "worse"),
        ({"placement__macs": {"total": 800}}, "macs", "better"),
        ({"placement__first_fallback": None}, "first_fallback", "changed"),
        ({"bench__latency_ms": {"p50": 9.0}}, "latency_p50_ms", None),
        ({"bench__peak_memory_mib": 90.0}, "peak_memory_mib", None),
        ({"verify": {"outputs": [{"sqnr_db": 39.5}]}}, "parity_sqnr_db", "changed"),
        ({"verify": ["nonsense"], "accuracy": 7, "speed": "fast"}, "accuracy", None),
    ],
    ids=str,
)
def test_each_figure_by_its_own_measure(
    change: dict[str, Any], what: str, verdict: str | None, compare: Run
) -> None:
    shown = compare(states(**change), "--json")
    assert shown.code == 0, shown.err
    found = changes_of(shown.document)[what]
    assert found["verdict"] == verdict
    if "ci95" in found:
        assert found["ci95"][0] < found["new"] - found["old"] < found["ci95"][1]
    worse = verdict == "worse"
    assert (f"null-w8a8: {what}" in shown.document["regressed"]) is worse
    assert compare(states(**change), "--fail-on", "regressed").code == int(worse)


def test_the_interval_of_a_difference_of_accuracies(compare: Run) -> None:
    """Newcombe's hybrid score interval, worked out by hand: Wilson's of 900 and 850 of 1000 are
    [88.0, 91.7] and [82.7, 87.1]."""
    done = compare(states(accuracy__value=85.0), "--json")
    low, high = changes_of(done.document)["accuracy"]["ci95"]
    assert (low, high) == (pytest.approx(-7.90, abs=0.02), pytest.approx(-2.10, abs=0.02))


def test_accuracies_on_other_data_are_not_judged(compare: Run) -> None:
    def change(_files: Any, manifest: dict[str, Any]) -> None:
        manifest["artifacts"][1]["evidence"] = evidence(accuracy__value=50.0)
        manifest["lineage"]["evaluation"]["digest"] = "f" * 64

    document = compare(change, "--json").document
    found = changes_of(document)["accuracy"]
    assert (found["verdict"], found["detail"]) == (None, "judged on other data")
    assert "evaluation data" in [c["what"] for c in document["bundle"]]


def test_artifacts_that_come_go_and_change_their_scheme(compare: Run) -> None:
    def gone(_files: Any, manifest: dict[str, Any]) -> None:
        del manifest["artifacts"][0]

    def rescaled(_files: Any, manifest: dict[str, Any]) -> None:
        manifest["artifacts"][1] |= {"id": "null-w8", "scheme": "w8", "verification": "none"}
        manifest["artifacts"][1]["requires"] = {"runtime": "numpy", "min_version": "2.0"}

    done = compare(gone, "--json", "--fail-on", "removed")
    assert done.code == 1
    assert done.document["removed"] == ["null-fp32"]
    assert compare(gone, "--fail-on", "regressed", "--fail-on", "contract").code == 0
    assert "removed (--fail-on): null-fp32" in compare(gone, "--fail-on", "removed").out
    done = compare(rescaled, "--json")
    entry = done.document["artifacts"][1]
    assert (entry["id"], entry["was"], entry["change"]) == ("null-w8", "null-w8a8", "changed")
    found = changes_of(done.document, "null-w8")
    assert (found["scheme"]["old"], found["scheme"]["new"]) == ("w8a8", "w8")
    assert (found["verification"]["verdict"], found["requires min_version"]["new"]) == (
        "worse",
        "2.0",
    )


def test_what_an_app_is_written_against(compare: Run) -> None:
    def change(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        feeds, outputs = unpack_golden(files["golden.npz"])
        data = pack_golden(feeds, {"y": outputs["y"] + np.float32(0.5)})
        files["golden.npz"] = data
        digest = hashlib.sha256(data).hexdigest()
        manifest["golden"]["sha256"] = digest
        for entry in manifest["files"]:
            if entry["path"] == "golden.npz":
                entry |= {"sha256": digest, "bytes": len(data)}
        manifest["labels"][1] = "beta"
        manifest["signature"]["inputs"][0]["layout"] = "NHC"
        manifest["preprocess"] = {"kind": "image", "mean": [0.5]}

    done = compare(change, "--json", "--fail-on", "contract")
    assert done.code == 1
    document = done.document
    found = {c["what"]: c for c in document["bundle"]}
    assert document["contract"] == [
        "signature input 0", "labels", "preprocess kind", "preprocess mean",
    ]  # fmt: skip
    assert found["labels"]["detail"] == "the first: 1, 'b' to 'beta'"
    assert found["preprocess mean"]["new"] == "[0.5]"
    assert "y: 0.5 apart at most" in found["golden answers"]["detail"]
    assert "the same class for 5 of 5" in found["golden answers"]["detail"]
    assert document["regressed"] == []
    text = compare(change)
    assert text.code == 0
    assert "contract: signature input 0, labels" in text.out


def test_a_bundle_that_was_tampered_with_is_refused(
    compare: Run, edgekit: Run, null_bundle: Path, tmp_path: Path
) -> None:
    def tampered(files: dict[str, bytes], _manifest: Any) -> None:
        files["null/fp32.npz"] += b"x"

    assert compare(tampered).code == 6
    assert edgekit("bundle", "diff", null_bundle, tmp_path / "absent").code == 7
    assert edgekit("bundle", "diff", null_bundle).code == 2
