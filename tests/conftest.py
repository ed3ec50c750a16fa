"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.runtime._silence import silence
from edgekit.runtime.golden import pack_golden
from edgekit.runtime.manifest import canonical_json
from edgekit.signature import Signature, TensorSpec

silence()  # some tests import OpenVINO themselves

BundleWriter = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leases and results of tests are theirs, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_STATE", str(tmp_path_factory.mktemp("state")))
        yield


def _npz(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def null_contents(depth: int = 2) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A whole bundle of two null artifacts: its files by name, and its manifest as an object.

    The model maps x [1, 2, 3] to y [1, 4] through ``depth`` linear layers. ``null-w8a8`` holds
    the weights rounded to 7 bits.
    """
    rng = np.random.default_rng(7)
    widths = [6, *[8] * (depth - 1), 4]
    layers = {}
    for i in range(depth):
        layers[f"w{i}"] = rng.standard_normal((widths[i], widths[i + 1])).astype(np.float32)
        layers[f"b{i}"] = rng.standard_normal(widths[i + 1]).astype(np.float32)
    rounded = {
        name: (np.rint(a * 127 / np.abs(a).max()) * np.abs(a).max() / 127).astype(np.float32)
        for name, a in layers.items()
    }
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    y = x.reshape(5, 6)
    for i in range(depth):
        y = (np.maximum(y, 0) if i else y) @ layers[f"w{i}"] + layers[f"b{i}"]
    files = {
        "null/fp32.npz": _npz(layers),
        "null/w8a8.npz": _npz(rounded),
        "golden.npz": pack_golden({"x": x}, {"y": y}),
    }
    signature = Signature(
        (TensorSpec("x", (1, 2, 3)),), (TensorSpec("y", (1, 4), labels=tuple("abcd")),)
    )
    artifacts = [
        {
            "id": f"null-{scheme}",
            "target": "null",
            "delegate": "cpu",
            "scheme": scheme,
            "io": "float32",
            "variant": None,
            "devices": devices,
            **_entry(path, files[path]),
            "files": [_entry(path, files[path])],
            "requires": {"runtime": "numpy", "min_version": "1.20"},
            "verification": "runtime",
            "evidence": {},
        }
        for scheme, path, devices in (
            ("fp32", "null/fp32.npz", []),
            ("w8a8", "null/w8a8.npz", ["raspberry-pi-5"]),
        )
    ]
    manifest = {
        "schema": "edgekit.bundle/1",
        "name": "chain",
        "version": "1.0",
        "edgekit": "0.1.0",
        "model": {"name": "chain", "digest": "0" * 64},
        "signature": signature.to_json(),
        "labels": list("abcd"),
        "preprocess": None,
        "golden": {**_entry("golden.npz", files["golden.npz"]), "n": 5},
        "reference_statistics": {},
        "artifacts": artifacts,
        "files": [_entry(name, data) for name, data in sorted(files.items())],
        "lineage": {},
    }
    del manifest["golden"]["bytes"]  # type: ignore[attr-defined]
    return files, manifest


def write_bundle_directory(root: Path, files: Mapping[str, bytes], manifest: object) -> Path:
    """Writes a bundle as a directory, whatever ``files`` and ``manifest`` are."""
    for name, data in files.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    root.mkdir(exist_ok=True)
    (root / "manifest.json").write_bytes(canonical_json(manifest))
    return root


def write_bundle_zip(path: Path, files: Mapping[str, bytes], manifest: object) -> Path:
    """Writes a bundle as a zip, deflated, with fixed times."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"manifest.json": canonical_json(manifest), **files}.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


@pytest.fixture
def bundle_contents() -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files and manifest of a good bundle, the test's own to spoil."""
    return null_contents()


@pytest.fixture
def write_directory() -> BundleWriter:
    """`write_bundle_directory`."""
    return write_bundle_directory


@pytest.fixture
def write_zip() -> BundleWriter:
    """`write_bundle_zip`."""
    return write_bundle_zip


@pytest.fixture
def null_bundle(tmp_path: Path) -> Path:
    """A good bundle of two null artifacts, as a directory."""
    return write_bundle_directory(tmp_path / "bundle", *null_contents())


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes one: a BERT of 4 layers with random weights, no classifier.

    Its vocabulary are letters and the commonest words of `edgekit.data.intents`.
    """
    from collections import Counter

    import torch

    from edgekit.data.intents import intents
    from edgekit.runtime.preprocess import TextPreprocess
    from edgekit.runtime.wordpiece import words
    from edgekit.sources.hugging_face import save_classifier, transformers

    said = Counter(w for text, _ in intents().train for w in words(text, True, True))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789'"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    pieces += [word for word, _ in said.most_common(400) if word not in letters]
    library = transformers()
    config = library.BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=40, initializer_range=0.1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = library.BertModel(config)
    folder = tmp_path_factory.mktemp("tiny-bert")
    return save_classifier(network, TextPreprocess(tuple(pieces), max_length=24), folder)
