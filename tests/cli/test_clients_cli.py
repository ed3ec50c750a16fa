"""Client code in the bundles that an export writes, and by `edgekit bundle client`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]
Exported = tuple[Path, list[str], Any]


def own(bundle: dict[str, bytes]) -> dict[str, bytes]:
    """The clients in a bundle, by their names within their folder."""
    return {k.removeprefix("client/"): v for k, v in bundle.items() if k.startswith("client/")}


@pytest.mark.runtime
def test_an_export_packs_clients_that_run(int8: Exported, tree: Tree) -> None:
    bundle, _, _ = int8
    files = tree(bundle)
    found = own(files)
    assert {"README.md", "python/onnxruntime_w8a8.py", "python/onnxruntime_fp32.py",
            "cpp/onnxruntime_w8a8.hpp", "kotlin/OnnxruntimeW8a8.kt",
            "swift/OnnxruntimeW8a8.swift"} <= set(found)  # fmt: skip
    listed = {f["path"]: f for f in json.loads(files["manifest.json"])["files"]}
    for name, data in found.items():
        stated = listed[f"client/{name}"]
        assert stated["sha256"] == hashlib.sha256(data).hexdigest()
        assert stated["bytes"] == len(data)
    client = bundle / "client" / "python" / "onnxruntime_w8a8.py"
    command = [sys.executable, client, "--golden"]
    writing = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=writing)
    assert done.returncode == 0 and "at least 15 wanted" in done.stdout, done.stderr
    assert tree(bundle) == files, "running a client leaves nothing behind in the bundle"


def test_clients_can_be_left_out(
    edgekit: Run, shop: Path, plain: Path, tree: Tree, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    done = edgekit(
        "export", f"{shop}/m.py:mlp", "--device", f"{shop}/board.toml", "--target", "null",
        "--eval", f"{shop}/rows.npz", "--no-bench", "--no-clients", "-o", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    with_them, without = tree(plain), tree(out)
    assert own(with_them) and not own(without)
    rest = {k: v for k, v in with_them.items() if not k.startswith("client/")}
    assert {k for k, v in rest.items() if without.get(k) != v} == {"manifest.json"}


def test_a_bundle_that_is_there_gets_the_same_clients(
    edgekit: Run, int8: Exported, tree: Tree, tmp_path: Path
) -> None:
    bundle, _, _ = int8
    done = edgekit("bundle", "client", bundle, "-o", tmp_path / "all", "--json")
    assert done.code == 0, done.err
    written = tree(tmp_path / "all")
    assert written == own(tree(bundle))
    assert done.document["files"] == sorted(written)
    done = edgekit("bundle", "client", bundle, "-o", tmp_path / "two", "--lang", "kotlin")
    assert done.code == 0, done.err
    assert {name.partition("/")[0] for name in tree(tmp_path / "two")} == {"README.md", "kotlin"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all", "two"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--lang", "kotlyn"], 2, "Did you mean 'kotlin'?"),
        ([], 2, "is there already"),
    ],
)
def test_clients_are_not_written_over_anything(
    args: list[str], code: int, said: str, edgekit: Run, plain: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if not args:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    done = edgekit("bundle", "client", plain, "-o", out, *args)
    assert done.code == code and said in done.err
    assert [p.name for p in tmp_path.rglob("*")] == ([] if args else ["out", "mine.txt"])


def test_a_bundle_that_was_changed_gets_none(edgekit: Run, plain: Path, tmp_path: Path) -> None:
    changed = tmp_path / "bundle"
    changed.mkdir()
    for path in plain.rglob("*"):
        if path.is_file():
            place = changed / path.relative_to(plain)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    (changed / "client" / "README.md").write_text("changed")
    done = edgekit("bundle", "client", changed, "-o", tmp_path / "out")
    assert done.code == 6 and "client/README.md" in done.err
    assert not (tmp_path / "out").exists()
