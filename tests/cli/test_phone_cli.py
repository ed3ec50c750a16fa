"""Files that apps take as they are, through the real command line: export, inspect, verify."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.cli._metadata import metadata_of
from edgekit.runtime.manifest import canonical_json, parse_manifest

Run = Callable[..., Any]

MODEL = """
import torch
from edgekit import ImagePreprocess, Model

PREPROCESS = ImagePreprocess(
    height=16, width=16, color="BGR", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)

def build():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.ReLU6(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4),
    )
    return Model.from_module(
        net.eval(), {"input": torch.zeros(PREPROCESS.shape)}, name="insects", license="MIT",
        preprocess=PREPROCESS, labels=["ant", "bee", "cat", "dog"],
    )
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phone")
    (folder / "phone_model.py").write_text(MODEL)
    chance = np.random.default_rng(0)
    pictures = chance.integers(0, 256, (64, 20, 20, 3), dtype=np.uint8)
    np.savez(folder / "calib.npz", input=pictures[:32])
    np.savez(folder / "eval.npz", input=pictures[32:], y=chance.integers(0, 4, 32))
    return folder


@pytest.mark.slow
@pytest.mark.runtime
def test_both_files_are_made_shown_and_held_against_the_manifest(
    edgekit: Run, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    done = edgekit(
        *(
            "export",
            f"{files / 'phone_model.py'}:build",
            "--target",
            "tflite",
            "--target",
            "coreml",
        ),
        *("--io", "float32", "--io", "uint8", "--no-bench", "--max-float-ops", "0"),
        *("--calib", files / "calib.npz", "--eval", files / "eval.npz", "-o", out, "--json"),
    )
    assert done.code == 0, done.err
    made = {a["id"]: a for a in done.document["artifacts"]}
    assert {i: a["verification"] for i, a in made.items()} == {
        "tflite-w8a8": "runtime",
        "tflite-w8a8-uint8": "runtime",
        "coreml-w8a8": "emulated",
        "coreml-w8a8-uint8": "emulated",
    }
    for one in made.values():
        assert one["parity"]["identical"] and one["placement"]["float_ops"] == 0

    shown = edgekit("inspect", out, "--json").document
    told = {a["id"]: a["metadata"] for a in shown["artifacts"]}
    assert told["tflite-w8a8"]["inputs"][0]["color"] is None, "no app takes blue first"
    assert told["tflite-w8a8-uint8"]["inputs"][0]["mean"] == [0.0]
    assert told["tflite-w8a8-uint8"]["outputs"] == [{"name": "output", "image": False, "labels": 4}]
    assert told["coreml-w8a8"] is None
    assert told["coreml-w8a8-uint8"]["format"] == "Core ML image classifier"
    text = edgekit("inspect", out / made["tflite-w8a8-uint8"]["path"]).out
    assert "input is a picture, RGB: (pixel - 0) / 1" in text
    assert "output has 4 labels in labels.txt" in text

    checks = {c["name"]: c for c in edgekit("verify", out, "--json").document["checks"]}
    assert [n for n in checks if n.endswith("/metadata")] == [
        "tflite-w8a8/metadata",
        "tflite-w8a8-uint8/metadata",
        "coreml-w8a8-uint8/metadata",
    ]
    assert all(c["passed"] is not False for c in checks.values())
    other_labels(out, made["tflite-w8a8-uint8"]["path"])
    failed = edgekit("verify", out, "--artifact", "tflite-w8a8-uint8", "--json")
    assert failed.code == 1
    (entry,) = failed.document["artifacts"]
    assert "labels is ('ant', 'wasp'" in entry["reason"]


def other_labels(bundle: Path, path: str) -> None:
    """Puts another label into a file of the bundle, whose manifest then states what it is now."""
    file = bundle / path
    with zipfile.ZipFile(file) as archive:
        start = archive.getinfo("labels.txt").header_offset
    file.write_bytes(file.read_bytes()[:start])
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labels.txt", "ant\nwasp\ncat\ndog\n")
    manifest = dict(parse_manifest((bundle / "manifest.json").read_bytes()).data)
    from edgekit.artifact import sha256_of

    now = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    for entry in [*manifest["files"], *(f for a in manifest["artifacts"] for f in a["files"])]:
        if entry["path"] == path:
            entry |= now
    for artifact in manifest["artifacts"]:
        if artifact["path"] == path:
            artifact |= now
    shutil.copyfile(bundle / "manifest.json", bundle.parent / "manifest-before.json")
    (bundle / "manifest.json").write_bytes(canonical_json(manifest))


def test_a_manifest_may_state_anything_there() -> None:
    tensor = {"name": "x", "image": True, "color": None, "mean": [0.0], "labels": 4}
    fine = {"format": "TFLite Metadata", "name": "m", "licence": None, "files": ["labels.txt"]}
    fine |= {"inputs": [tensor], "outputs": []}
    assert metadata_of(fine) == fine
    wrong: list[object] = [None, [], "text", {}, fine | {"more": 1}, fine | {"files": [3]}]
    wrong += [fine | {"inputs": [tensor | change]} for change in ({"mean": ["a"]}, {"labels": -1})]
    wrong += [fine | {"inputs": [{"name": 3, "image": True}]}, fine | {"outputs": {"name": "x"}}]
    for stated in wrong:
        assert metadata_of(stated) is None
