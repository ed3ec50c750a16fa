"""Clients: what users named cannot break them, and their preprocessing is edgekit's own."""

from __future__ import annotations

import ast
import copy
import importlib
import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tree_sitter
import tree_sitter_kotlin
import tree_sitter_swift

from edgekit import clients
from edgekit.clients import _escape as escape
from edgekit.clients._template import fill
from edgekit.errors import BadData, UsageError
from edgekit.runtime import cpu
from edgekit.runtime.manifest import canonical_json
from edgekit.runtime.preprocess import (
    AudioPreprocess,
    ImagePreprocess,
    Preprocess,
    TextPreprocess,
)
from edgekit.signature import Signature, TensorSpec

NASTY = (
    'plain "quoted" \'text\'', "two\nlines\r\n", "*/ /* // -->", "${name} $name \\(name) #{x}",
    "back\\slash \\", '"""', "'''", "??/ ??=",
    "\t\0\x7f\u2028", "Größe 漢字 \U0001f600", "@@HEAD@@",
    "%s {0} {{}}", "`code` <b> | [x](y)", "",
)  # fmt: skip
SHA = "0" * 64
TARGETS = ("tflite", "openvino", "onnxruntime", "executorch", "torch-mobile", "coreml", "null")


def manifest(
    preprocess: Preprocess | None = None,
    labels: tuple[str, ...] = (),
    *,
    name: str = "net",
    inputs: tuple[TensorSpec, ...] | None = None,
    golden: Any = ...,
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
        "golden": {"path": "golden.npz", "sha256": SHA, "n": 2} if golden is ... else golden,
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


def test_other_literals_are_read_back_as_they_were() -> None:
    for text in NASTY:
        for write in (escape.cpp, escape.kotlin, escape.swift):
            literal = write(text)
            assert literal.isascii() and literal.isprintable() and literal.count('"') == 2
        # Every backslash begins one of these escapes, which the languages' references define.
        octal = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), escape.cpp(text)[1:-1])
        assert octal.encode("latin-1").decode() == text
        units = re.sub(r"\\u([0-9a-f]{4})", _character, escape.kotlin(text)[1:-1])
        assert units.encode("utf-16", "surrogatepass").decode("utf-16") == text
        assert re.sub(r"\\u\{([0-9a-f]+)\}", _character, escape.swift(text)[1:-1]) == text
        assert "$" not in escape.kotlin(text) and "??" not in escape.cpp(text)


def _character(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 16))


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
        if name.endswith(".py"):
            ast.parse(data.decode(), name)
    tree = ast.parse(found["python/labels.py"])
    assert isinstance(tree.body[-1], ast.Assign)
    assert ast.literal_eval(tree.body[-1].value) == labels


def test_written_python_is_as_clean_as_ours(tmp_path: Path) -> None:
    for number, stated in enumerate(variants()):
        for name, data in clients.render(stated, ["python"]).items():
            place = tmp_path / str(number) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    config = Path(__file__).resolve().parents[2] / "pyproject.toml"
    # Hashes and names make lines long; and which modules are ours can't be told from here.
    command = ["ruff", "check", "--no-cache", "--config", str(config), "--ignore", "E501,I001"]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


# -- what is written ----------------------------------------------------------------------------


def test_every_target_with_a_runtime_gets_its_clients() -> None:
    stated = manifest(ImagePreprocess(8, 8), ("a", "b"))
    found = clients.render(stated)
    wanted = {
        "python": "client coreml_w8a8 executorch_w8a8 labels onnxruntime_w8a8 openvino_w8a8 "
        "preprocess resample tflite_w8a8 torch_mobile_w8a8",
        "cpp": "CMakeLists client executorch_w8a8 labels main onnxruntime_w8a8 openvino_w8a8 "
        "preprocess tflite_w8a8 torch_mobile_w8a8",
        "kotlin": "ExecutorchW8a8 Files Labels OnnxruntimeW8a8 Preprocess TfliteW8a8 "
        "TorchMobileW8a8",
        "swift": "CoremlW8a8 ExecutorchW8a8 Files Labels OnnxruntimeW8a8 Preprocess TfliteW8a8",
    }
    for language, names in wanted.items():
        assert {Path(n).stem for n in found if n.startswith(f"{language}/")} == set(names.split())
    assert found == clients.render(copy.deepcopy(stated))
    assert {name: found[name] for name in clients.render(stated, ["swift"])}.keys() == {
        "README.md", *(name for name in found if name.startswith("swift/")),
    }  # fmt: skip


def test_a_client_names_its_file_and_its_hash() -> None:
    stated = manifest(ImagePreprocess(8, 8), ("a", "b"))
    for number, entry in enumerate(stated["artifacts"]):
        entry["sha256"] = f"{number:064x}"
        next(f for f in stated["files"] if f["path"] == entry["path"])["sha256"] = entry["sha256"]
    found = clients.render(stated)
    for name in ("python/onnxruntime_w8a8.py", "kotlin/OnnxruntimeW8a8.kt",
                 "swift/OnnxruntimeW8a8.swift"):  # fmt: skip
        text = found[name].decode()
        assert "artifacts/onnxruntime/model" in text and f"{2:064x}" in text, name
    assert b"artifacts/onnxruntime/model" in found["cpp/onnxruntime_w8a8.hpp"]


def test_an_artifact_that_takes_pixels_is_fed_pixels() -> None:
    step = ImagePreprocess(6, 4, color="BGR")
    found = clients.render(manifest(step, ("a", "b"), io="uint8"))
    assert b'IO = "uint8"' in found["python/tflite_w8a8.py"]
    assert b'("image", (1, 6, 4, 3), "uint8")' in found["python/tflite_w8a8.py"]
    assert b"BORDER = Border::pixels" in found["cpp/tflite_w8a8.hpp"]
    assert b"Preprocess.pixels(bitmap)" in found["kotlin/ExecutorchW8a8.kt"]
    assert b"fromBlobUnsigned(input0" in found["kotlin/ExecutorchW8a8.kt"]
    assert b"Preprocess.pixels(image)" in found["swift/TfliteW8a8.swift"]
    assert b"CVPixelBuffer" in found["swift/CoremlW8a8.swift"]
    assert "take the picture itself" in found["README.md"].decode()


def test_an_artifact_that_takes_channels_last_is_fed_so() -> None:
    step = ImagePreprocess(6, 4, color="BGR")
    golden = {"path": "golden.npz", "sha256": SHA, "n": 2}
    more = {"float32-nhwc": {"path": "golden-float32-nhwc.npz", "sha256": SHA, "n": 2}}
    stated = manifest(step, ("a", "b"), golden={**golden, **more}, io="float32-nhwc")
    found = clients.render(stated)
    assert b'("image", (1, 6, 4, 3), "float32")' in found["python/tflite_w8a8.py"]
    assert b'"float32-nhwc": "golden-float32-nhwc.npz"}' in found["python/client.py"]
    assert b"BORDER = Border::channels_last" in found["cpp/tflite_w8a8.hpp"]
    assert b'? "golden-float32-nhwc.npz"' in found["cpp/main.cpp"]
    assert b"Preprocess.channelsLast(bitmap)" in found["kotlin/TfliteW8a8.kt"]
    assert b"Preprocess.channelsLast(image)" in found["swift/TfliteW8a8.swift"]
    readme = found["README.md"].decode()
    assert "take what the model takes with its channels last" in readme
    assert "`golden-float32-nhwc.npz` is the same for files that take the picture" in readme


def test_what_a_processor_must_have_is_asked_for() -> None:
    needs = {"isa": ["x86_64:avx_vnni|avx512_vnni"]}
    found = clients.render(manifest(requires=needs))
    assert (
        b'ISA: tuple[str, ...] = ("x86_64:avx_vnni|avx512_vnni",)'
        in found["python/openvino_w8a8.py"]
    )
    assert b"NEEDS_VNNI = true" in found["cpp/openvino_w8a8.hpp"]
    assert found["python/cpu.py"] == (Path(cpu.__file__)).read_bytes()
    setting = {"without_vnni": {"session.x64quantprecision": "1"}}
    found = clients.render(manifest(requires=setting))
    for name in ("python/onnxruntime_w8a8.py", "cpp/onnxruntime_w8a8.hpp",
                 "kotlin/OnnxruntimeW8a8.kt", "swift/OnnxruntimeW8a8.swift"):  # fmt: skip
        assert b'"session.x64quantprecision"' in found[name], name
    assert b"NEEDS_VNNI = false" in found["cpp/onnxruntime_w8a8.hpp"]


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'cobol'.*cpp, kotlin, python, swift"):
        clients.render(manifest(), ["cobol"])


# -- the README -----------------------------------------------------------------------------------


def test_the_readme_tells_what_the_manifest_knows() -> None:
    step = ImagePreprocess(6, 4, resize="bicubic", mean=(0.1, 0.2, 0.3), exif=False)
    stated = manifest(step, ("cat", "dog"), requires={"runtime": "x", "min_version": "2.3.0+cpu"})
    stated["artifacts"][5]["verification"] = "emulated"
    stated["artifacts"][5]["requires"] = {
        "runtime": "coreml",
        "min_version": None,
        "os": ["iOS 17"],
    }
    stated["artifacts"][0]["evidence"] = {
        "accuracy": {"value": 76.543, "drop_points": 0.41, "drop_ci95": [-0.1, 0.92]},
        "bench": {"latency_ms": {"p50": 4.06}},
    }
    stated["lineage"] = {"evaluation": {"source": "eval.npz", "n": 500}}
    text = clients.render(stated)["README.md"].decode()
    first = (
        "`artifacts/tflite/model` | 1 | any | runtime | 76.54 %, +0.41 lost (95 %: -0.10 to +0.92)"
    )
    assert f"| `tflite-w8a8` | {first} | 4.06 |" in text
    assert "| `coreml-w8a8` | `artifacts/coreml/model` | 1 | any | emulated |" in text
    assert "| `coreml-w8a8` | Core ML | - | iOS 17 | - |" in text
    assert "500 samples of eval.npz" in text and "not of any device in the table" in text
    assert "Bicubic resizing, anti-aliased as Pillow does it, to 6 x 4" in text
    assert "channel 1: (pixel * 0.00392156862745098 - 0.2) / 1.0" in text
    assert "EXIF turns are left as they are" in text
    assert "litert:2.3.0" in text and 'branch: "swiftpm-2.3.0"' in text
    assert "cat, dog" in text and "15 dB (`w8a8`)" in text


def test_the_readme_tells_of_texts_and_of_what_is_not_known() -> None:
    vocab = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat")
    inputs = tuple(TensorSpec(n, (1, 8), "int64") for n in ("input_ids", "attention_mask"))
    found = clients.render(manifest(TextPreprocess(vocab, max_length=8), inputs=inputs))
    text = found["README.md"].decode()
    assert "BERT's WordPiece with the 6 pieces" in text and "cut to 8 tokens" in text
    assert "python/wordpiece.py" in found and "cpp/preprocess.hpp" not in found
    text = clients.render(manifest(golden=None))["README.md"].decode()
    assert "no golden vectors" in text and "No accuracy was measured" in text
    assert "what they are made of is not told" in text and "--golden" not in text


def test_a_batch_of_pictures_is_fed_as_an_array() -> None:
    inputs = (TensorSpec("image", (4, 3, 8, 8)),)
    found = clients.render(manifest(ImagePreprocess(8, 8), ("a", "b"), inputs=inputs))
    assert b"an .npz with an array for each input" in found["python/client.py"]
    assert b"read_npz(source)" in found["cpp/main.cpp"]
    assert b"fun classify" not in found["kotlin/TfliteW8a8.kt"]


def test_the_readme_survives_nasty_names() -> None:
    labels = tuple(dict.fromkeys(NASTY))
    stated = manifest(ImagePreprocess(8, 8), labels, name="x | y\n## z", id="a|b`\nc")
    for number, entry in enumerate(stated["artifacts"]):
        entry["id"] += str(number)
    lines = clients.render(stated)["README.md"].decode().splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        lines[0], "## Which file for which device", "## Inputs and outputs", "## Preprocessing",
        "## Check it on the device", "## Clients", "### Python", "### C++",
        "### Kotlin, for Android", "### Swift, for iOS and macOS",
    ]  # fmt: skip
    rows = [line for line in lines if line.startswith("| `a?b")]
    assert len(rows) == 7 + 7 + 6 + 5 + 4 + 4
    assert {line.count("|") for line in rows[:7]} == {8}


# -- what a parser finds --------------------------------------------------------------------------


def syntax_errors(name: str, source: bytes) -> list[str]:
    """What tree-sitter can't place, or misses, in a Kotlin or Swift file."""
    grammar = tree_sitter_kotlin if name.endswith(".kt") else tree_sitter_swift
    tree = tree_sitter.Parser(tree_sitter.Language(grammar.language())).parse(source)
    found, left = [], [tree.root_node]
    while left:
        node = left.pop()
        if node.is_error or node.is_missing:
            found.append(f"{name}:{node.start_point.row + 1}: {node.type}")
        left += node.children
    assert bool(found) == tree.root_node.has_error
    return found


def variants() -> Iterator[dict[str, Any]]:
    """Manifests that make different code: pictures, pixels, texts, several tensors, no labels."""
    labels = tuple(dict.fromkeys(NASTY))
    yield manifest(ImagePreprocess(8, 8), labels, name='"""\n*/ ${x}')
    yield manifest(
        ImagePreprocess(6, 4, channels=1, color="GRAY", resize="nearest"), ("a", "b"), io="uint8"
    )
    yield manifest(ImagePreprocess(6, 4, color="BGR"), ("a", "b"), io="float32-nhwc")
    yield manifest(
        ImagePreprocess(6, 4, resize_mode="shorter-side", layout="NHWC"), labels * 200, golden=None
    )
    yield manifest(ImagePreprocess(6, 4, resize="none", antialias=False), ("a",))
    sound = AudioPreprocess(mels=12)
    yield manifest(sound, ("a", "b"), inputs=(TensorSpec("sound", sound.shape),))
    tensors = (TensorSpec("ids", (1, 8), "int64"), TensorSpec("a*/b", (1, 8), "int32"),
               TensorSpec('x"$y', (1, 2, 2)))  # fmt: skip
    yield manifest(inputs=tensors, requires={"without_vnni": {"session.x64quantprecision": "1"}})


def test_kotlin_and_swift_parse() -> None:
    count = 0
    for stated in variants():
        for name, data in clients.render(stated, ["kotlin", "swift"]).items():
            if not name.endswith(".md"):
                assert syntax_errors(name, data) == []
                count += 1
    assert count > 50


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("kotlin/TfliteW8a8.kt", b"fun run(", b"fun run(("),
        ("kotlin/Labels.kt", b"\\u0022quoted", b'"quoted'),
        ("kotlin/Preprocess.kt", b"for (c in 0 until CHANNELS) {", b"for (c in 0 until CHANNELS {"),
        ("swift/CoremlW8a8.swift", b"return Outputs(", b"return Outputs(("),
        ("swift/Labels.swift", b"\\u{22}quoted", b'"quoted'),
        ("swift/Preprocess.swift", b"guard made else {", b"guard made els {"),
    ],
)
def test_the_parser_finds_a_planted_error(name: str, right: bytes, wrong: bytes) -> None:
    data = clients.render(next(variants()))[name]
    assert right in data and syntax_errors(name, data) == []
    assert syntax_errors(name, data.replace(right, wrong, 1))


def test_artifacts_with_like_ids_get_files_of_their_own() -> None:
    stated = manifest()
    for entry, id in zip(stated["artifacts"][:3], ("Net-1", "net.1", "client"), strict=True):
        entry["id"] = id
    found = clients.render(stated, ["python"])
    assert {"python/net_1.py", "python/net_1_2.py", "python/client_2.py"} <= set(found)


# -- preprocessing ------------------------------------------------------------------------------


MODULES = ("preprocess", "resample", "tokenizer", "wordpiece", "features", "logmel", "wav")


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a Python client's module as it was written for a manifest."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = [Path(name).stem for name in MODULES]

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
def test_the_python_client_prepares_pictures_to_the_bit(
    step: ImagePreprocess, imported: Any
) -> None:
    client = imported(manifest(step), "preprocess")
    for picture in pictures()[: 2 if step.resize == "none" else None]:
        wanted = step.apply(picture)
        got = client.feed(picture)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)
        color = "GRAY" if step.channels == 1 else "RGB"
        plain = replace(step, color=color, scale=1.0, mean=(), std=(), layout="NHWC")
        pixels = client.feed(picture, "uint8")
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, np.rint(plain.apply(picture)).clip(0, 255))
        last = client.feed(picture, "float32-nhwc")
        assert last.dtype == np.float32
        np.testing.assert_array_equal(last, step.for_io("float32-nhwc").apply(picture))


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


SOUNDS = [
    AudioPreprocess(mels=20, mean=(-4.0,), std=(3.0,)),
    AudioPreprocess(8000, 6000, window=200, hop=80, fft=256, mels=12, scale="slaney", area=True,
                    framing="centered", fit="start", power=1, layout="NCT", log_offset=1e-3,
                    mean=tuple(range(12)), std=tuple(range(1, 13))),
]  # fmt: skip


@pytest.mark.parametrize("step", SOUNDS, ids=str)
def test_the_python_client_prepares_sounds_to_the_bit(
    step: AudioPreprocess, imported: Any, tmp_path: Path
) -> None:
    spec = TensorSpec("sound", step.shape)
    client = imported(manifest(step, ("a", "b"), inputs=(spec,)), "features")
    rng = np.random.default_rng(0)
    for rate, shape in ((step.sample_rate, (20_000,)), (11_025, (5000, 2)), (48_000, (99_000, 1))):
        sound = rng.integers(-9000, 9000, shape).astype(np.int16)
        got = client.feed(sound, rate)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, step.apply(sound, rate))
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 11_025, 0, "NONE", ""))
        file.writeframes(rng.integers(-9000, 9000, (5000, 2)).astype("<i2").tobytes())
    wav = step.decode(tmp_path / "a.wav")
    samples, rate = client.decode(tmp_path / "a.wav")
    assert rate == wav.rate == 11_025
    np.testing.assert_array_equal(samples, wav.samples)
    with pytest.raises(ValueError, match="NaN"):
        client.feed(np.array([np.nan]))


def test_the_readme_tells_how_sounds_are_prepared() -> None:
    step = SOUNDS[1]
    found = clients.render(manifest(step, ("a", "b"), inputs=(TensorSpec("s", step.shape),)))
    assert {"python/features.py", "python/logmel.py", "python/wav.py"} <= set(found)
    assert b"from a WAV file" in found["python/client.py"]
    text = found["README.md"].decode()
    assert "6000 samples (0.75 s): the first are kept" in text
    assert (
        "12 triangular bands from 20 to 4000 Hz" in text and "(Slaney's), each with an area" in text
    )
    assert "float32 [1, 12 bands, 76 frames]" in text
