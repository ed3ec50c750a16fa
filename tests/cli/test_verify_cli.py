"""`edgekit verify` through the real command line, on good, wrong, damaged and foreign bundles."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.cli.verify import _of_few
from edgekit.parity import TOLERANCES, Check, ParityAccumulator
from edgekit.runtime.golden import pack_golden, unpack_golden
from edgekit.runtime.manifest import canonical_json, directory_digest
from edgekit.signature import TensorSpec

Run = Callable[..., Any]
Contents = tuple[dict[str, bytes], dict[str, Any]]


def restate(files: dict[str, bytes], manifest: dict[str, Any]) -> dict[str, Any]:
    """Makes the manifest state what the files now are, as whoever forges a bundle would."""

    def entry(path: str) -> dict[str, Any]:
        data = files[path]
        return {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    for artifact in manifest["artifacts"]:
        artifact["files"] = [entry(f["path"]) for f in artifact["files"]]
        pairs = [(f["path"], f["sha256"]) for f in artifact["files"]]
        one = artifact["files"][0]["sha256"] if len(pairs) == 1 else directory_digest(pairs)
        artifact |= {"bytes": sum(f["bytes"] for f in artifact["files"]), "sha256": one}
    if manifest["golden"] is not None:
        manifest["golden"]["sha256"] = entry("golden.npz")["sha256"]
    manifest["files"] = [entry(path) for path in sorted(files)]
    return manifest


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


# -- what passes ----------------------------------------------------------------------------------


def test_every_artifact_is_run_and_judged(edgekit: Run, null_bundle: Path) -> None:
    done = edgekit("verify", null_bundle, "--json")
    assert done.code == 0
    document = done.document
    assert document["bundle"] == str(null_bundle)
    assert document["passed"] is True
    float_, quantized = document["artifacts"]
    assert (float_["id"], float_["against"], float_["n"]) == ("null-fp32", "plan", 5)
    assert float_["runtime"] == f"numpy {np.__version__}"
    assert float_["verification"] == "runtime"
    assert float_["parity"]["agreement"] == 1.0
    # This bundle does not say what the plan of w8a8 answers: only the gist can be judged.
    assert (quantized["against"], quantized["parity"]) == ("float", None)
    names = [check["name"] for check in document["checks"]]
    assert len(set(names)) == len(names)
    by_name = {check["name"]: check for check in document["checks"]}
    assert by_name["null-fp32/repeatable"]["value"] == 1
    assert by_name["null-fp32/self-test"]["passed"] is True
    assert document["self_test"] == {"null-fp32": True}
    assert by_name["null-w8a8/golden:y"]["value"] > by_name["null-w8a8/golden:y"]["limit"]
    assert [o["name"] for o in document["outputs"]] == ["null-fp32/y"]


def test_the_text_is_a_table_and_a_verdict(edgekit: Run, null_bundle: Path) -> None:
    done = edgekit("verify", null_bundle)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split()[:4] == ["artifact", "runtime", "against", "n"]
    assert lines[1].split()[0] == "null-fp32"
    assert lines[1].split()[-1] == "runtime"
    assert lines[-1] == "every file is what the manifest says; every artifact passed"
    assert "verifying 2 artifacts" in done.err


def test_one_artifact_of_a_zip(
    edgekit: Run, bundle_contents: Contents, write_zip: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = write_zip(tmp_path / "b.zip", *bundle_contents)
    done = edgekit("verify", bundle, "--artifact", "null-w8a8", "--json")
    assert done.code == 0
    assert [a["id"] for a in done.document["artifacts"]] == ["null-w8a8"]
    wrong = edgekit("verify", bundle, "--artifact", "null-w8a9")
    assert wrong.code == 2
    assert "Did you mean 'null-w8a8'?" in wrong.err


def test_what_an_artifact_answered_when_it_was_proven_goes_before_the_plan(
    edgekit: Run, bundle_contents: Contents, write_directory: Callable[..., Path], tmp_path: Path
) -> None:
    files, manifest = bundle_contents
    feeds, _ = unpack_golden(files["golden.npz"])
    with np.load(io.BytesIO(files["null/w8a8.npz"])) as data:
        layers = {name: data[name] for name in data.files}
    hidden = np.maximum(feeds["x"].reshape(5, 6) @ layers["w0"] + layers["b0"], 0)
    answers = {"y": hidden @ layers["w1"] + layers["b1"]}
    files["golden-w8a8.npz"] = pack_golden(feeds, {"y": answers["y"] + 100})
    files["golden-null-w8a8.npz"] = pack_golden(feeds, answers)
    bundle = write_directory(tmp_path / "b", files, restate(files, manifest))
    done = edgekit("verify", bundle, "--artifact", "null-w8a8", "--json")
    assert done.code == 0
    (entry,) = done.document["artifacts"]
    assert entry["against"] == "itself when it was proven"
    assert entry["parity"]["identical"] or entry["parity"]["sqnr_db"] > 100
    del files["golden-null-w8a8.npz"]
    bundle = write_directory(tmp_path / "c", files, restate(files, manifest))
    done = edgekit("verify", bundle, "--artifact", "null-w8a8", "--json")
    assert done.code == 1
    assert done.document["artifacts"][0]["against"] == "plan"


# -- what does not --------------------------------------------------------------------------------


def test_other_answers_fail_and_are_told(
    edgekit: Run, bundle_contents: Contents, write_directory: Callable[..., Path], tmp_path: Path
) -> None:
    files, manifest = bundle_contents
    feeds, outputs = unpack_golden(files["golden.npz"])
    wrong = {"y": outputs["y"].copy()}
    wrong["y"][2] = wrong["y"][2][::-1]
    files["golden.npz"] = pack_golden(feeds, wrong)
    bundle = write_directory(tmp_path / "b", files, restate(files, manifest))
    done = edgekit("verify", bundle, "--artifact", "null-fp32", "--json")
    assert done.code == 1
    document = done.document
    (entry,) = document["artifacts"]
    assert (entry["passed"], entry["verification"]) == (False, "none")
    failed = {c["name"] for c in document["checks"] if c["passed"] is False}
    assert {"null-fp32/sqnr:y", "null-fp32/worst-sample:y", "null-fp32/close:y"} <= failed
    text = edgekit("verify", bundle).out
    assert "null-fp32 failed: sqnr:y is " in text
    assert "1 of 2 artifacts failed" in text or "2 of 2 artifacts failed" in text


def test_an_artifact_that_its_runtime_cannot_read_fails_alone(
    edgekit: Run, bundle_contents: Contents, write_directory: Callable[..., Path], tmp_path: Path
) -> None:
    files, manifest = bundle_contents
    files["null/w8a8.npz"] = npz(nothing=np.zeros(3))
    bundle = write_directory(tmp_path / "b", files, restate(files, manifest))
    done = edgekit("verify", bundle, "--json")
    assert done.code == 1
    float_, broken = done.document["artifacts"]
    assert float_["passed"] is True
    assert broken["passed"] is False
    assert broken["runtime"] is None
    assert "holds no array w0" in broken["reason"]
    names = [c["name"] for c in done.document["checks"] if c["passed"] is False]
    assert names == ["null-w8a8/runs"]


def test_a_tampered_bundle_is_refused_before_anything_runs(edgekit: Run, null_bundle: Path) -> None:
    weights = null_bundle / "null" / "fp32.npz"
    data = bytearray(weights.read_bytes())
    data[200] ^= 1
    weights.write_bytes(data)
    done = edgekit("verify", null_bundle, "--json")
    assert done.code == 6
    assert done.document["error"]["kind"] == "TrustError"
    assert "null/fp32.npz" in done.err
    assert "verifying" not in done.err


def test_an_unlisted_file_is_refused(edgekit: Run, null_bundle: Path) -> None:
    (null_bundle / "extra.py").write_text("print('hello')")
    done = edgekit("verify", null_bundle)
    assert done.code == 6
    assert "extra.py" in done.err


def test_no_bundle_is_bad_data(edgekit: Run, tmp_path: Path) -> None:
    assert edgekit("verify", tmp_path / "absent").code == 7
    (tmp_path / "empty").mkdir()
    assert edgekit("verify", tmp_path / "empty").code == 7


def test_a_bundle_without_golden_vectors_cannot_be_verified(
    edgekit: Run, bundle_contents: Contents, write_directory: Callable[..., Path], tmp_path: Path
) -> None:
    files, manifest = bundle_contents
    del files["golden.npz"]
    manifest["golden"] = None
    bundle = write_directory(tmp_path / "b", files, restate(files, manifest))
    done = edgekit("verify", bundle)
    assert done.code == 7
    assert "carries no golden vectors" in done.err


def test_golden_vectors_of_another_signature(
    edgekit: Run, bundle_contents: Contents, write_directory: Callable[..., Path], tmp_path: Path
) -> None:
    files, manifest = bundle_contents
    files["golden.npz"] = pack_golden({"x": np.zeros((5, 7))}, {"y": np.zeros((5, 4))})
    bundle = write_directory(tmp_path / "b", files, restate(files, manifest))
    done = edgekit("verify", bundle)
    assert done.code == 7
    assert "do not fit the bundle's signature" in done.err


@pytest.mark.parametrize(
    "evidence",
    [
        {"steps": 3, "floor": "low"},
        {"steps": {"y": "wide"}, "floor": {"sqnr_db": [], "within_fraction": None}},
        {"steps": {"y": -1.0}, "floor": {"sqnr_db": -500.0}},
        {"steps": {"z": 1.0}, "floor": []},
    ],
    ids=range(4),
)
def test_evidence_that_makes_no_sense_changes_nothing(
    evidence: dict[str, Any],
    edgekit: Run,
    bundle_contents: Contents,
    write_directory: Callable[..., Path],
    tmp_path: Path,
) -> None:
    files, manifest = bundle_contents
    manifest["artifacts"][0]["evidence"] = evidence
    bundle = write_directory(tmp_path / "b", files, manifest)
    done = edgekit("verify", bundle, "--artifact", "null-fp32", "--json")
    assert done.code == 0, done.err
    limits = {c["name"]: c["limit"] for c in done.document["checks"]}
    assert limits["null-fp32/sqnr:y"] == 60.0


# -- runtimes that are not here -------------------------------------------------------------------


@pytest.fixture
def mixed(
    bundle_contents: Contents, write_directory: Callable[..., Path], tmp_path: Path
) -> Callable[[str], Path]:
    """A bundle whose second artifact is for another target."""

    def make(target: str) -> Path:
        files, manifest = bundle_contents
        manifest["artifacts"][1] |= {"id": f"{target}-w8a8", "target": target, "requires": {}}
        return write_directory(tmp_path / "mixed", files, manifest)

    return make


@pytest.fixture
def without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if its distribution were not installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.usefixtures("without_onnxruntime")
def test_a_missing_runtime_names_its_install_command(
    edgekit: Run, mixed: Callable[[str], Path]
) -> None:
    bundle = mixed("onnxruntime")
    done = edgekit("verify", bundle, "--json")
    assert done.code == 3
    assert "pip install 'edgekit[onnxruntime]'" in done.document["error"]["hint"]
    assert "verifying" not in done.err
    assert edgekit("verify", bundle, "--artifact", "null-fp32").code == 0


@pytest.mark.usefixtures("without_onnxruntime")
def test_keep_going_verifies_the_others(edgekit: Run, mixed: Callable[[str], Path]) -> None:
    done = edgekit("verify", mixed("onnxruntime"), "--keep-going", "--json")
    assert done.code == 1
    here, missing = done.document["artifacts"]
    assert here["passed"] is True
    assert missing["passed"] is False
    assert "pip install 'edgekit[onnxruntime]'" in missing["reason"]


def test_a_target_of_the_future_is_unsupported(edgekit: Run, mixed: Callable[[str], Path]) -> None:
    done = edgekit("verify", mixed("someday"))
    assert done.code == 5
    assert "is for someday, which this edgekit does not know" in done.err


def test_a_runtime_older_than_required(
    edgekit: Run, bundle_contents: Contents, write_directory: Callable[..., Path], tmp_path: Path
) -> None:
    files, manifest = bundle_contents
    manifest["artifacts"][1]["requires"]["min_version"] = "99.0"
    bundle = write_directory(tmp_path / "b", files, manifest)
    done = edgekit("verify", bundle)
    assert done.code == 5
    assert "pip install 'numpy>=99.0'" in done.err
    kept = edgekit("verify", bundle, "--keep-going", "--json")
    assert kept.code == 1
    assert [a["passed"] for a in kept.document["artifacts"]] == [True, False]


# -- the real road --------------------------------------------------------------------------------


@pytest.mark.runtime
def test_an_exported_bundle_verifies(int8: tuple[Path, list[str], Any], edgekit: Run) -> None:
    done = edgekit("verify", int8[0], "--json")
    assert done.code == 0, done.out
    entries = {a["id"]: a for a in done.document["artifacts"]}
    assert set(entries) == {"onnxruntime-w8a8", "onnxruntime-fp32"}
    # The last layer of the int8 file gives float, which the plan rounds.
    assert entries["onnxruntime-w8a8"]["against"] == "itself when it was proven"
    assert entries["onnxruntime-fp32"]["against"] == "plan"
    for entry in entries.values():
        assert entry["n"] == 8
        assert entry["runtime"].startswith("onnxruntime ")
    steps = [c for c in done.document["checks"] if c["name"].endswith("w8a8/within-steps:output")]
    assert steps[0]["passed"] is True, "the output's step comes from the bundle"


@pytest.mark.runtime
def test_weights_that_were_swapped_with_right_hashes_fail(
    int8: tuple[Path, list[str], Any], edgekit: Run, tmp_path: Path
) -> None:
    import json

    import onnx
    from onnx import numpy_helper

    root = tmp_path / "b"
    shutil.copytree(int8[0], root)
    manifest = json.loads((root / "manifest.json").read_text())
    name = next(a["path"] for a in manifest["artifacts"] if a["scheme"] == "w8a8")
    model = onnx.load(root / name)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.int8 and values.ndim == 2:
            swapped = numpy_helper.from_array(values[::-1].copy(), tensor.name)
            tensor.CopyFrom(swapped)
    onnx.save(model, root / name)
    files = {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    (root / "manifest.json").write_bytes(canonical_json(restate(files, manifest)))
    done = edgekit("verify", root, "--artifact", "onnxruntime-w8a8", "--json")
    assert done.code == 1
    assert "sqnr:output" in done.document["artifacts"][0]["reason"]


# -- few elements ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "passed"), [(1, True), (3, True), (4, False)])
def test_a_thousandth_of_a_few_elements_is_three_of_them(wrong: int, passed: bool) -> None:
    spec = TensorSpec("y", (1, 100))
    accumulator = ParityAccumulator((spec,), TOLERANCES["w8a8"], 0.1)
    reference = np.linspace(-10, 10, 100, dtype=np.float32)[None]
    candidate = reference.copy()
    candidate[0, :wrong] += 0.3
    accumulator.add({"y": reference}, {"y": candidate})
    report = accumulator.report()
    (check,) = [c for c in report.checks if c.name == "within-steps:y"]
    assert check.passed is False
    assert _of_few(check, report).passed is passed
    others = [c for c in report.checks if c is not check]
    assert [_of_few(c, report) for c in others] == others
    plenty = Check("within-steps:y", False, 0.9, 0.96)
    assert _of_few(plenty, report).limit == 0.96, "never stricter or laxer than it need be"
