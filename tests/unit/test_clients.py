"""Clients: what users named cannot break them, and their preprocessing is edgekit's own."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgekit import clients
from edgekit.clients import _escape as escape
from edgekit.clients._template import fill
from edgekit.errors import BadData, UsageError
from edgekit.runtime.manifest import canonical_json
from edgekit.runtime.preprocess import ImagePreprocess, TextPreprocess
from edgekit.signature import Signature, TensorSpec

NASTY = (
    'plain "quoted" \'text\'', "two\nlines\r\n", "*/ /* // -->", "${name} $name \\(name) #{x}",
    "back\\slash \\", '"""', "'''", "??/ ??=", "\t\0\x7f\u2028", "Größe 漢字 \U0001f600", "@@HEAD@@",
    "%s {0} {{}}", "`code` <b> | [x](y)", "",
)  # fmt: skip
SHA = "0" * 64
TARGETS = ("tflite", "openvino", "onnxruntime", "executorch", "torch-mobile", "coreml", "null")


def manifest(
    preprocess: ImagePreprocess | TextPreprocess | None = None,
    labels: tuple[str, ...] = (),
    *,
    name: str = "net",
    inputs: tuple[TensorSpec, ...] | None = None,
    **artifact: Any,
) -> dict[str, Any]:
    """A bundle's manifest with an artifact for every target; ``artifact`` are further fields."""
    if inputs is None:
        shape = preprocess.shape if isinstance(preprocess, ImagePreprocess) else (1, 3, 8, 8)
        inputs = (TensorSpec("image", shape),)
    signature = Signature(inputs, (TensorSpec("scores", (1, max(len(labels), 1))),))
    paths = [f"artifacts/{target}/model" for target in TARGETS]
    return {
        "schema": "edgekit.bundle/1", "name": name, "version": "1", "edgekit": "0.1.0",
        "signature": signature.to_json(), "labels": list(labels) or None,
        "preprocess": None if preprocess is None else preprocess.to_json(),
        "golden": {"path": "golden.npz", "sha256": SHA, "n": 2},
        "artifacts": [
            {"id": f"{target}-w8a8", "target": target, "scheme": "w8a8", "path": path,
             "bytes": 1, "sha256": SHA, "verification": "runtime", **artifact}
            for target, path in zip(TARGETS, paths, strict=True)
        ],
        "files": [{"path": p, "bytes": 1, "sha256": SHA} for p in [*paths, "golden.npz"]],
    }  # fmt: skip


# -- what a user named --------------------------------------------------------------------------


def test_python_literals_are_read_back_as_they_were() -> None:
    for text in NASTY:
        assert ast.literal_eval(escape.python(text)) == text
        assert escape.python(text).isascii()


def test_literals_end_where_they_should() -> None:
    for text in NASTY:
        for write in (escape.cpp, escape.kotlin, escape.swift):
            literal = write(text)
            assert literal.isascii() and "\n" not in literal and "\0" not in literal
            # No quote within, and the last backslash does not swallow the one at the end.
            body = literal[1:-1].replace("\\\\", "")
            assert '"' not in body.replace('\\"', "") and not body.endswith("\\")
        assert "$" not in escape.kotlin(text)
    assert escape.cpp("é?1") == r'"\303\251\0771"'
    assert escape.kotlin("\U0001f600$") == r'"\ud83d\ude00\u0024"'
    assert escape.swift("é\\(x)") == r'"\u{e9}\u{5c}(x)"'


def test_comments_hold_one_harmless_line() -> None:
    for text in NASTY:
        line = escape.comment(text)
        assert line.isascii() and "\n" not in line
        assert not any(mark in line for mark in ("*/", '"', "\\", "//", "${", "@@"))


def test_numbers_are_read_back_to_the_bit_and_nan_is_refused() -> None:
    for value in (1 / 255, 0.485, 1e-05, 255.0, 1e22, 5e-324):
        assert float(escape.number(value)) == value
    with pytest.raises(BadData, match="nan"):
        escape.number(float("nan"))


def test_a_template_takes_all_its_fields_and_no_other() -> None:
    assert fill("a @@ONE@@ b", {"ONE": "@@TWO@@"}, what="x") == "a @@TWO@@ b"
    with pytest.raises(ValueError, match=r"template x: no value for TWO; no field for none"):
        fill("@@ONE@@ @@TWO@@", {"ONE": "1"}, what="x")
    with pytest.raises(ValueError, match=r"no value for none; no field for TWO"):
        fill("@@ONE@@", {"ONE": "1", "TWO": "2"}, what="x")


def test_nasty_names_and_labels_leave_python_whole() -> None:
    labels = tuple(dict.fromkeys(NASTY))
    step = ImagePreprocess(8, 8)
    found = clients.render(manifest(step, labels, name='x"""\n*/ ${y}'), ["python"])
    for name, data in found.items():
        ast.parse(data.decode(), name)
    tree = ast.parse(found["python/labels.py"])
    assert isinstance(tree.body[-1], ast.Assign)
    assert ast.literal_eval(tree.body[-1].value) == labels


# -- what is written ----------------------------------------------------------------------------


def test_every_target_with_a_runtime_gets_a_client() -> None:
    found = clients.render(manifest(ImagePreprocess(8, 8), ("a", "b")), ["python"])
    assert sorted(found) == [
        f"python/{name}.py"
        for name in (
            "client", "coreml_w8a8", "executorch_w8a8", "labels", "onnxruntime_w8a8",
            "openvino_w8a8", "preprocess", "resample", "tflite_w8a8", "torch_mobile_w8a8",
        )
    ]  # fmt: skip
    assert found == clients.render(manifest(ImagePreprocess(8, 8), ("a", "b")), ["python"])


def test_artifacts_with_like_ids_get_files_of_their_own() -> None:
    stated = manifest()
    for entry, id in zip(stated["artifacts"][:3], ("Net-1", "net.1", "client"), strict=True):
        entry["id"] = id
    found = clients.render(stated, ["python"])
    assert {"python/net_1.py", "python/net_1_2.py", "python/client_2.py"} <= set(found)


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'cobol'.*cpp"):
        clients.render(manifest(), ["cobol"])


# -- preprocessing ------------------------------------------------------------------------------


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a Python client's module as it was written for a manifest."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = [Path(name).stem for name in ("preprocess", "resample", "tokenizer", "wordpiece")]

    def forget() -> None:
        for module in modules:
            sys.modules.pop(module, None)
        importlib.invalidate_caches()

    def load(stated: dict[str, Any], module: str) -> ModuleType:
        for name, data in clients.render(stated, ["python"]).items():
            (tmp_path / Path(name).name).write_bytes(data)
        forget()
        return importlib.import_module(module)

    yield load
    forget()


STEPS = [
    ImagePreprocess(16, 12),
    ImagePreprocess(12, 16, resize="bicubic", resize_mode="shorter-side", resize_size=18,
                    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    ImagePreprocess(16, 16, color="BGR", scale=1.0, mean=(103.9, 116.8, 123.7), layout="NHWC"),
    ImagePreprocess(9, 11, channels=1, color="GRAY", mean=(0.1,), std=(0.3,), resize="box"),
    ImagePreprocess(16, 12, antialias=False, color="BGR", std=(0.2, 0.3, 0.4)),
    ImagePreprocess(16, 12, antialias=False, resize="bicubic", resize_mode="shorter-side"),
    ImagePreprocess(13, 7, antialias=False, resize="box"),
    ImagePreprocess(13, 7, antialias=False, resize="nearest"),
    ImagePreprocess(13, 7, resize="nearest", scale=1 / 127.5, mean=(1.0, 1.0, 1.0)),
    ImagePreprocess(20, 24, resize="none"),
]  # fmt: skip


def pictures() -> list[np.ndarray[Any, Any]]:
    """Grey, RGB and RGBA, of which the first fits a preprocessing that does not resize."""
    rng = np.random.default_rng(3)
    shapes = [(20, 24, 3), (20, 24), (37, 41, 4), (9, 64, 3), (15, 13, 1)]
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_python_client_prepares_pictures_to_the_bit(step: ImagePreprocess, imported: Any) -> None:
    client = imported(manifest(step), "preprocess")
    for picture in pictures()[: 2 if step.resize == "none" else None]:
        wanted = step.apply(picture)
        got = client.feed(picture)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)


def test_the_python_client_tokenizes_as_edgekit_does(imported: Any, tmp_path: Path) -> None:
    vocab = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "!", "größe")
    step = TextPreprocess(vocab, max_length=8, types_name="types", dtype="int32")
    inputs = tuple(TensorSpec(n, (1, 8), "int32") for n in ("input_ids", "attention_mask", "types"))
    stated = manifest(step, inputs=inputs)
    (tmp_path / "manifest.json").write_bytes(canonical_json(stated))
    tokenize = imported(stated, "tokenizer").Tokenizer(tmp_path)
    for text in ("The cats sat!", "", "Größe [MASK] x" * 3, "the " * 20):
        wanted, got = step.apply(text), tokenize(text)
        assert list(got) == list(wanted)
        for name, row in wanted.items():
            np.testing.assert_array_equal(got[name], row)
            assert got[name].dtype == row.dtype
