"""Core ML off the Mac: packages that are the same each time, and proofs that say what they are."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.artifact import Artifact, Store, files_of, sha256_of
from edgekit.bench.subjects import bundle_requests, file_request
from edgekit.compress.graph import canonical
from edgekit.compress.quantize import quantize
from edgekit.errors import BadData, UnsupportedError
from edgekit.export import ExportRequest, export_bundle
from edgekit.model import Model
from edgekit.runtime import Bundle
from edgekit.runtime.session import open_session, read_signature, unavailable
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import _coreml_package, find
from edgekit.targets import open_session as open_here

pytestmark = [
    pytest.mark.runtime,
    pytest.mark.skipif(sys.platform == "darwin", reason="what is not so on a Mac"),
]

SIGNATURE = Signature((TensorSpec("image", (1, 3, 8, 8)),), (TensorSpec("scores", (1, 4)),))


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 4)).eval()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as w8a8."""
    x = torch.randn(1, 3, 8, 8)
    program = canonical(torch.export.export(network(), (x,), strict=False))
    plan = quantize(program, [(torch.randn(1, 3, 8, 8),) for _ in range(4)])
    folder = tmp_path_factory.mktemp("coreml")
    paths = [folder / name / "model.mlpackage" for name in ("one", "two")]
    for out in paths:
        out.parent.mkdir()
        assert find("coreml").convert(program, plan, SIGNATURE, out) == [out]
    first, second = ([sha256_of(f) for f in files_of(p)] for p in paths)
    assert first == second, "two conversions give the same bytes"
    return paths[0]


def test_a_package_holds_what_core_ml_wants_and_nothing_that_varies(package: Path) -> None:
    names = [f.relative_to(package).as_posix() for f in files_of(package)]
    data = "Data/com.apple.CoreML"
    assert names == [f"{data}/model.mlmodel", f"{data}/weights/weight.bin", "Manifest.json"]
    read = _coreml_package.read(package)
    assert not read.spec.description.metadata.userDefined
    assert "buildInfo" not in read.spec.mlProgram.attributes
    assert [i.name for i in read.spec.description.input] == ["image"]
    assert [o.name for o in read.spec.description.output] == ["scores"]


def test_its_signature_is_read_without_a_mac(package: Path) -> None:
    assert read_signature("coreml", package) == SIGNATURE


def test_core_ml_itself_is_refused_here(package: Path) -> None:
    assert "not macOS" in str(unavailable("coreml"))
    assert unavailable("onnxruntime") is None and unavailable("of-another-package") is None
    with pytest.raises(UnsupportedError, match="not macOS"):
        open_session("coreml", package, SIGNATURE)


def test_the_emulation_reads_the_file_alone(package: Path, tmp_path: Path) -> None:
    """Other weights in the file, other answers: the model it was made of plays no part."""
    copy = tmp_path / "model.mlpackage"
    shutil.copytree(package, copy)
    weights = copy / "Data/com.apple.CoreML/weights/weight.bin"
    feed = {"image": np.ones((1, 3, 8, 8), np.float32)}
    target = find("coreml")
    session = open_here(target, copy, SIGNATURE, 1)
    assert getattr(session, "emulated", False) and "emulated" in session.runtime_version
    before = session.run(feed)["scores"]
    data = bytearray(weights.read_bytes())
    integers = next(s for s in _blobs(data) if s[1] == 4 and s[2] == 3 * 3 * 3 * 8)
    for i in range(integers[0], integers[0] + integers[2]):
        data[i] ^= 0x40
    weights.write_bytes(data)
    assert not np.array_equal(before, open_here(target, copy, SIGNATURE, 1).run(feed)["scores"])


def _blobs(data: bytes) -> list[tuple[int, int, int]]:
    """Start, dtype and size of every constant in ``weight.bin``."""
    found, place = [], 64
    while place + 64 <= len(data):
        if data[place : place + 4] == b"\xef\xbe\xad\xde":
            size, start = (
                int.from_bytes(data[place + i : place + i + 8], "little") for i in (8, 16)
            )
            found.append((start, data[place + 4], size))
        place += 64
    return found


def _cut(folder: Path) -> None:
    file = folder / "Data/com.apple.CoreML/weights/weight.bin"
    file.write_bytes(file.read_bytes()[:-200])


def _scramble(folder: Path) -> None:
    file = folder / "Data/com.apple.CoreML/model.mlmodel"
    file.write_bytes(b"\xff" * 40 + file.read_bytes()[40:])


def _point_outside(folder: Path) -> None:
    file = folder / "Manifest.json"
    file.write_text(file.read_text().replace("com.apple.CoreML/model.mlmodel", "../model.mlmodel"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "Manifest.json").unlink(), "is no package"),
        (lambda f: (f / "Manifest.json").write_text("[]"), "its Manifest.json is none"),
        (_point_outside, "names other files"),
        (_scramble, "damaged"),
        (_cut, "cut off|the weights end"),
        (lambda f: shutil.rmtree(f / "Data"), "No such file"),
    ],
)
def test_a_damaged_package_is_refused(
    damage: Any, said: str, package: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model.mlpackage"
    shutil.copytree(package, copy)
    damage(copy)
    with pytest.raises(BadData, match=said):
        open_here(find("coreml"), copy, SIGNATURE, 1)


def test_a_directory_is_recorded_with_every_file_in_it(package: Path) -> None:
    made = Artifact.from_files([package], target="coreml", delegate="coreml", scheme="w8a8")
    assert made.path == package
    assert [r.path for r in made.files] == [
        f.relative_to(package.parent).as_posix() for f in files_of(package)
    ]
    assert made.bytes == sum(f.stat().st_size for f in files_of(package))


# -- what an export says of it --------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, Any], Path]:
    """An export for Core ML and ONNX Runtime, measured where it can be."""
    folder = tmp_path_factory.mktemp("export")
    pictures = np.random.default_rng(0).normal(size=(96, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "calib.npz", input=pictures)
    model = Model.from_module(network(), {"input": torch.zeros(1, 3, 8, 8)}, name="small")
    request = ExportRequest(
        devices=("host",),
        targets=("coreml", "onnxruntime"),
        calib=str(folder / "calib.npz"),
        out=folder / "bundle",
        bench_runs=20,
        bench_seconds=1.0,
        waive=("faster",),  # a network as small says nothing, beside other work
    )
    result = export_bundle(model, request, store=Store(folder / "store"))
    assert result.exit_code == 0
    return result.document, folder / "bundle"


def test_an_emulated_proof_is_called_so_everywhere(
    exported: tuple[Mapping[str, Any], Path],
) -> None:
    document, path = exported
    rows = {a["target"]: a for a in document["artifacts"]}
    assert rows["onnxruntime"]["verification"] == "runtime"
    mine = rows["coreml"]
    assert (mine["status"], mine["verification"]) == ("ok", "emulated")
    assert [mine[k] for k in ("latency_ms", "load_ms", "peak_memory_mib")] == [None] * 3
    assert mine["float"]["latency_p50_ms"] is None and mine["float"]["bytes"] > 0
    assert rows["onnxruntime"]["latency_ms"]["p50"] > 0
    [gate] = [g for g in document["gates"] if g["artifact"] == mine["id"] and g["name"] == "parity"]
    assert (gate["value"], gate["passed"]) == ("emulated", True)
    manifest = json.loads((path / "manifest.json").read_text())
    [entry] = [a for a in manifest["artifacts"] if a["target"] == "coreml"]
    assert entry["verification"] == entry["evidence"]["verification"] == "emulated"
    assert entry["evidence"]["bench"] is None
    assert entry["requires"] == {
        "runtime": "coreml",
        "min_version": None,
        "os": ["iOS 17", "macOS 14"],
    }
    assert entry["path"] == mine["path"] == "artifacts/coreml-w8a8/model.mlpackage"
    assert (path / entry["path"]).is_dir() and len(entry["files"]) == 3


def test_a_bundle_gives_the_package_whole(exported: tuple[Mapping[str, Any], Path]) -> None:
    with Bundle.open(exported[1]) as bundle:
        placed = bundle.place(bundle.artifact("coreml-w8a8"))
        session = open_here(find("coreml"), placed, bundle.signature, 1)
        feeds, _ = bundle.golden()
        assert session.run({"input": feeds["input"][:1]})
        with pytest.raises(UnsupportedError, match="not macOS"):
            bundle.session(bundle.artifact("coreml-w8a8"))


def test_an_emulation_is_not_measured(exported: tuple[Mapping[str, Any], Path]) -> None:
    with Bundle.open(exported[1]) as bundle:
        with pytest.raises(UnsupportedError, match="coreml-w8a8 can't be measured here") as refused:
            bundle_requests(bundle)
        assert "--artifact onnxruntime-w8a8" in refused.value.hint
        assert len(bundle_requests(bundle, ("onnxruntime-w8a8",))) == 1
        with pytest.raises(UnsupportedError, match="speed of an emulation says nothing"):
            file_request(bundle.place(bundle.artifact("coreml-w8a8")))


def test_an_emulated_proof_does_not_satisfy_require_verified() -> None:
    from edgekit.device import Job
    from edgekit.export.document import Row, gates_of
    from edgekit.export.proving import Proof

    request = ExportRequest(devices=("host",), require_verified=True)
    document = {"passed": True, "against": "plan", "outputs": []}
    for emulated, passed in ((True, False), (False, True)):
        proof = Proof(document, None, "x 1.0", Path(), emulated)
        row = Row(Job("coreml", "w8a8", "coreml", ("host",), 1), proof=proof)
        gates = {g["name"]: g for g in gates_of([row], request)}
        assert gates["parity"]["passed"] is True
        assert gates["verified"]["passed"] is passed
        assert gates["verified"]["value"] == row.verification


def test_the_host_makes_it_only_where_it_is_named() -> None:
    from edgekit.device import load, plan_targets

    host = load("host")
    assert "coreml" not in {job.target for job in plan_targets([host])}
    assert [job.target for job in plan_targets([host], ["coreml"])] == ["coreml"]
