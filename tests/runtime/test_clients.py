"""Clients run: each in its own process without edgekit, compared with the bundle's own session."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekit import clients
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.golden import pack_golden
from edgekit.runtime.manifest import canonical_json, directory_digest
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.signature import Signature, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = {
    "tflite": ["tflite"],
    "openvino": ["xml", "bin"],
    "onnxruntime": ["onnx"],
    "executorch": ["pte"],
    "torch-mobile": ["ptl"],
}
LABELS = ("ant", 'b"ee', "c\nat*/", "d${og}\\", "Größe 漢字")
STEP = ImagePreprocess(16, 16, color="BGR", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
TARGETS = list(SUFFIXES)
# The first two start fast; the rest import torch, or are as good as those.
SLOW = [
    pytest.param(target, marks=pytest.mark.slow if i > 1 else ())
    for i, target in enumerate(["onnxruntime", "tflite", "openvino", "executorch", "torch-mobile"])
]

# Runs a client on arrays and, with a second file, on a picture; edgekit can't be imported in it.
RUN = """
import importlib, sys
sys.modules["edgekit"] = None
folder, module, kind, bundle, arrays, picture, out = sys.argv[1:]
sys.path.insert(0, folder)
import numpy as np
model = getattr(importlib.import_module(module), kind)(bundle)
with np.load(arrays) as file:
    outputs = model.run({name: file[name] for name in file.files})
if picture:
    from client import feeds_of
    seen = model.run(feeds_of(picture, model.IO, bundle))
    outputs |= {f"picture.{name}": value for name, value in seen.items()}
np.savez(out, **outputs)
"""


def entry(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def make_bundle(artifacts: Path, name: str, root: Path, more: dict[str, Any]) -> Path:
    """A bundle of one of the models of `make_artifacts.py`, with its clients."""
    with np.load(artifacts / f"{name}.npz") as data:
        inputs = {t["name"]: data[f"in.{i}"] for i, t in enumerate(more["signature"]["inputs"])}
        outputs = {t["name"]: data[f"out.{i}"] for i, t in enumerate(more["signature"]["outputs"])}
    files = {"golden.npz": pack_golden(inputs, outputs)}
    stated = []
    for target, suffixes in SUFFIXES.items():
        mine = {f"{target}/{name}.{s}": (artifacts / f"{name}.{s}").read_bytes() for s in suffixes}
        parts = [entry(path, data) for path, data in mine.items()]
        digest = directory_digest((p["path"], p["sha256"]) for p in parts)
        stated.append(
            {"id": f"{target}-fp32", "target": target, "scheme": "fp32", "files": parts,
             "path": parts[0]["path"], "bytes": sum(p["bytes"] for p in parts),
             "sha256": parts[0]["sha256"] if len(parts) == 1 else digest}
        )  # fmt: skip
        files |= mine
    manifest = {
        "schema": "edgekit.bundle/1", "name": name, "version": "1", **more, "artifacts": stated,
        "golden": {**entry("golden.npz", files["golden.npz"]), "n": 1},
        "files": [entry(path, data) for path, data in files.items()],
    }  # fmt: skip
    del manifest["golden"]["bytes"]
    files |= {f"client/{path}": data for path, data in clients.render(manifest).items()}
    manifest["files"] = [entry(path, data) for path, data in files.items()]
    for path, data in {**files, "manifest.json": canonical_json(manifest)}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def pictures(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a model that takes a picture."""
    signature = Signature(
        (TensorSpec("image", (1, 3, 16, 16)),), (TensorSpec("scores", (1, 5), labels=LABELS),)
    )
    more = {
        "signature": signature.to_json(),
        "labels": list(LABELS),
        "preprocess": STEP.to_json(),
    }
    root = make_bundle(artifacts, "net", tmp_path_factory.mktemp("pictures") / "b", more)
    picture = np.random.default_rng(5).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    np.save(root.parent / "picture.npy", picture)
    return root


@pytest.fixture(scope="module")
def texts(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a model with two int64 inputs and two outputs."""
    signature = Signature(
        (TensorSpec("ids", (1, 6), "int64"), TensorSpec("mask", (1, 6), "int64")),
        (TensorSpec("scores", (1, 3)), TensorSpec("pooled", (1, 4))),
    )
    more = {"signature": signature.to_json()}
    return make_bundle(artifacts, "txt", tmp_path_factory.mktemp("texts") / "b", more)


def wanted(root: Path, target: str, picture: Path | None) -> dict[str, np.ndarray[Any, Any]]:
    """What the bundle's own session gives for the golden inputs, and for a picture."""
    with Bundle.open(root) as bundle:
        session = bundle.session(bundle.artifact(target=target))
        outputs = session.run(bundle.golden()[0])
        if picture is not None:
            step = bundle.preprocess()
            assert isinstance(step, ImagePreprocess)
            feeds = {"image": step.apply(step.decode(picture))}
            outputs |= {f"picture.{k}": v for k, v in session.run(feeds).items()}
        session.close()
    return outputs


def names(target: str) -> tuple[str, str]:
    """Module and class of a client."""
    module = f"{target.replace('-', '_')}_fp32"
    return module, "".join(part.capitalize() for part in module.split("_"))


def call(*words: object, code: int = 0, limit: int = 300, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore", **environment},
    )
    assert done.returncode == code, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


# -- Python ---------------------------------------------------------------------------------------


@pytest.mark.runtime
@pytest.mark.parametrize("target", SLOW)
@pytest.mark.parametrize("which", ["pictures", "texts"])
def test_a_python_client_gives_the_bundles_answers(
    which: str, target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root: Path = request.getfixturevalue(which)
    picture = root.parent / "picture.npy" if which == "pictures" else None
    with Bundle.open(root) as bundle:
        np.savez(tmp_path / "in.npz", **bundle.golden()[0])
    call(
        sys.executable, "-B", "-c", RUN, root / "client" / "python", *names(target), root,
        tmp_path / "in.npz", picture or "", tmp_path / "out.npz",
    )  # fmt: skip
    with np.load(tmp_path / "out.npz") as file:
        got = {name: file[name] for name in file.files}
    expected = wanted(root, target, picture)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)


@pytest.mark.runtime
def test_a_python_client_checks_golden_vectors_files_and_shows_labels(
    pictures: Path, tmp_path: Path
) -> None:
    root = tmp_path / "b"
    shutil.copytree(pictures, root)
    client = root / "client" / "python" / "onnxruntime_fp32.py"
    assert "dB, at least 60 wanted" in call(sys.executable, client, "--golden")
    shown = call(sys.executable, client, pictures.parent / "picture.npy", "--top", "5")
    assert len(shown.splitlines()) == 5 and "c?at*/" in shown and "Größe 漢字" in shown
    with np.load(root / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(root / "golden.npz", **arrays | {"output.scores": arrays["output.scores"] + 1})
    call(sys.executable, client, "--golden", code=1)
    model = root / "onnxruntime" / "net.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    call(sys.executable, client, "--golden", code=1)


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    """A folder as a bundle has it, of a file that takes pixels, with its golden pictures."""
    step, root = replace(STEP, color="RGB"), tmp_path / "b"
    rng = np.random.default_rng(8)
    pictures = {f"picture.{i}": rng.integers(0, 256, (19 + i, 33, 3), np.uint8) for i in (0, 2)}
    taken = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    plain = replace(step, scale=1.0, mean=(), std=(), layout="NHWC")
    for name, picture in pictures.items():
        taken[int(name[-1])] = plain.apply(picture)[0].astype(np.uint8)
    model = pixel_model(root / "artifacts" / "onnxruntime-fp32-uint8" / "model.onnx")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores = np.concatenate([session.run(None, {"image": row[None]})[0] for row in taken])
    arrays = {"golden-uint8.npz": pack_golden({"image": taken}, {"scores": scores}),
              "golden.npz": b"tensors, which this test has none of"}  # fmt: skip
    for name, data in arrays.items():
        (root / name).write_bytes(data)
    np.savez_compressed(root / "golden-pictures.npz", **pictures)
    spec = TensorSpec("image", (1, 16, 16, 3), "uint8", "NHWC")
    outputs = (TensorSpec("scores", (1, 3)),)
    parts = [entry(str(model.relative_to(root)), model.read_bytes())]
    files = {name: (root / name).read_bytes() for name in [*arrays, "golden-pictures.npz"]}
    golden = {name: {"path": name, "sha256": entry(name, data)["sha256"], "n": 3}
              for name, data in files.items()}  # fmt: skip
    manifest = {
        "name": "pixels", "version": "1", "labels": ["a", "b", "c"], "preprocess": step.to_json(),
        "signature": Signature((TensorSpec("image", step.shape),), outputs).to_json(),
        "golden": {**golden["golden.npz"], "source": "pictures",
                   "pictures": golden["golden-pictures.npz"], "uint8": golden["golden-uint8.npz"]},
        "files": parts,
        "artifacts": [
            {"id": "onnxruntime-fp32-uint8", "target": "onnxruntime", "scheme": "fp32",
             "io": "uint8", "signature": Signature((spec,), outputs).to_json(), "files": parts,
             **parts[0]}
        ],
    }  # fmt: skip
    for name, data in clients.render(manifest).items():
        place = root / "client" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return root


def pixel_model(path: Path) -> Path:
    """Writes an ONNX model: the mean of each channel of uint8 ``image`` [1, 16, 16, 3]."""
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [1, 16, 16, 3])
    scores = onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [1, 3])
    axes = onnx.numpy_helper.from_array(np.array([1, 2]), "axes")
    nodes = [
        onnx.helper.make_node("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("ReduceMean", ["float", "axes"], ["scores"], keepdims=0),
    ]
    graph = onnx.helper.make_graph(nodes, "pixels", [image], [scores], [axes])
    opset = [onnx.helper.make_opsetid("", 18)]
    path.parent.mkdir(parents=True)
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def spoil_picture(root: Path) -> None:
    """Changes one golden picture, so that the preprocessing makes another input of it."""
    with np.load(root / "golden-pictures.npz") as file:
        pictures = {name: file[name] for name in file.files}
    pictures["picture.2"] = pictures["picture.2"][:, :, ::-1]
    np.savez(root / "golden-pictures.npz", **pictures)


@pytest.mark.runtime
def test_a_python_client_feeds_pixels_and_checks_golden_pictures(
    pixels: Path, tmp_path: Path
) -> None:
    client = pixels / "client" / "python" / "onnxruntime_fp32_uint8.py"
    assert "scores: inf dB" in call(sys.executable, client, "--golden")
    with np.load(pixels / "golden-pictures.npz") as file:
        np.save(tmp_path / "picture.npy", file["picture.2"])
    out = tmp_path / "out.npz"
    call(sys.executable, client, tmp_path / "picture.npy", "--save", out)
    with np.load(out) as got, np.load(pixels / "golden-uint8.npz") as golden:
        np.testing.assert_array_equal(got["scores"], golden["output.scores"][2:])
    spoil_picture(pixels)
    call(sys.executable, client, "--golden", code=1)


@pytest.mark.runtime
@pytest.mark.slow
def test_a_cpp_client_feeds_pixels_and_checks_golden_pictures(
    pixels: Path, headers: Path, tmp_path: Path
) -> None:
    build(pixels, tmp_path / "cpp", headers)
    program = tmp_path / "cpp" / "build" / "onnxruntime_fp32_uint8"
    path = {"LD_LIBRARY_PATH": str(tmp_path / "cpp" / "links")}
    assert "scores: inf dB" in call(program, pixels, "--golden", **path)
    spoil_picture(pixels)
    call(program, pixels, "--golden", code=3, **path)


# -- C++ ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to include from: declarations of the interfaces whose wheels bring no headers."""
    folder = tmp_path_factory.mktemp("include")
    ours = Path(__file__).with_name("declarations")
    shutil.copy(ours / "onnxruntime.h", folder / "onnxruntime_c_api.h")
    (folder / "litert" / "c").mkdir(parents=True)
    shutil.copy(ours / "litert.h", folder / "litert" / "c" / "declarations.h")
    for name in ("common", "compiled_model", "environment", "model", "options", "tensor_buffer",
                 "tensor_buffer_requirements"):  # fmt: skip
        file = folder / "litert" / "c" / f"litert_{name}.h"
        file.write_text('#include "litert/c/declarations.h"\n', encoding="utf-8")
    return folder


def package(name: str) -> Path:
    """Where a wheel lies."""
    found = metadata.distribution(name).locate_file(name.replace("-", "_"))
    return Path(str(found))


def build(root: Path, folder: Path, headers: Path) -> None:
    """Configures and compiles every C++ client of a bundle with the wheels' own libraries."""
    [onnxruntime] = (package("onnxruntime") / "capi").glob("libonnxruntime.so.*")
    # The wheel has the library under its full name alone, and programs look for its short one.
    links = folder / "links"
    links.mkdir(parents=True)
    (links / ".".join(onnxruntime.name.split(".")[:3])).symlink_to(onnxruntime)
    wheels = [package("openvino") / "cmake", package("executorch"), package("torch")]
    cmake = Path(sys.executable).with_name("cmake")
    configured = call(
        cmake, "-S", root / "client" / "cpp", "-B", folder / "build",
        f"-DCMAKE_PREFIX_PATH={';'.join(map(str, wheels))}", "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror=return-type -O0 -g0",
        f"-DLITERT_INCLUDE={headers}",
        f"-DLITERT_LIBRARY={package('ai-edge-litert') / 'libLiteRt.so'}",
        f"-DONNXRUNTIME_INCLUDE={headers}", f"-DONNXRUNTIME_LIBRARY={onnxruntime}",
    )  # fmt: skip
    assert "left out" not in configured
    call(cmake, "--build", folder / "build", limit=1400)


@pytest.fixture(scope="module")
def built(
    pictures: Path, texts: Path, headers: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Where the programs of both bundles lie; minutes."""
    folders = {"pictures": tmp_path_factory.mktemp("cpp"), "texts": tmp_path_factory.mktemp("cpp")}
    build(pictures, folders["pictures"], headers)
    build(texts, folders["texts"], headers)
    return folders


@pytest.mark.runtime
@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("which", ["pictures", "texts"])
def test_a_cpp_client_gives_the_bundles_answers(
    which: str,
    target: str,
    built: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    root: Path = request.getfixturevalue(which)
    program = built[which] / "build" / names(target)[0]
    path = {"LD_LIBRARY_PATH": str(built[which] / "links")}
    with Bundle.open(root) as bundle:
        np.savez(tmp_path / "in.npz", **bundle.golden()[0])
        specs = bundle.signature.outputs
    source = tmp_path / "in.npz" if which == "texts" else root.parent / "picture.npy"
    assert "dB, at least 60 wanted" in call(program, root, "--golden", **path)
    shown = call(program, root, source, "--save", tmp_path / "out", **path)
    if which == "pictures":
        assert "Größe 漢字" in shown
    prefix = "picture." if which == "pictures" else ""
    expected = wanted(root, target, source if which == "pictures" else None)
    for i, spec in enumerate(specs):
        got = np.load(tmp_path / f"out{i}.npy")
        assert got.dtype == expected[prefix + spec.name].dtype
        np.testing.assert_array_equal(got, expected[prefix + spec.name])


@pytest.mark.runtime
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_cpp_client_finds_wrong_golden_vectors(
    pictures: Path, built: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "b"
    shutil.copytree(pictures, root)
    with np.load(root / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(root / "golden.npz", **arrays | {"output.scores": arrays["output.scores"] + 1})
    path = {"LD_LIBRARY_PATH": str(built["pictures"] / "links")}
    program = built["pictures"] / "build" / "onnxruntime_fp32"
    call(program, root, "--golden", code=1, **path)
    (root / "golden.npz").write_bytes((root / "golden.npz").read_bytes()[:300])
    call(program, root, "--golden", code=3, **path)


FEED = """
#include "preprocess.hpp"
using namespace edge_client;
int main(int, char** words) {
  const Tensors pictures = read_npz(words[1]);
  for (const auto& entry : pictures) {
    const Tensor& p = entry.second;
    const int channels = p.shape.size() == 2 ? 1 : static_cast<int>(p.shape.at(2));
    const Picture picture{static_cast<int>(p.shape.at(0)), static_cast<int>(p.shape.at(1)),
                          channels, p.bytes.data()};
    write_npy(words[2] + entry.first + ".tensor.npy", feed(picture));
    write_npy(words[2] + entry.first + ".pixels.npy", feed(picture, Border::pixels));
    write_npy(words[2] + entry.first + ".last.npy", feed(picture, Border::channels_last));
  }
}
"""


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEPS = [
    ImagePreprocess(16, 12, mean=MEAN, std=STD),
    ImagePreprocess(12, 16, resize="bicubic", resize_mode="shorter-side", resize_size=18),
    ImagePreprocess(16, 16, color="BGR", scale=1.0, mean=(103.9, 116.8, 123.7), layout="NHWC"),
    ImagePreprocess(9, 11, channels=1, color="GRAY", mean=(0.1,), std=(0.3,), resize="box"),
    ImagePreprocess(13, 7, resize="nearest", scale=1 / 127.5, mean=(1.0, 1.0, 1.0)),
    ImagePreprocess(16, 12, antialias=False, color="BGR", std=STD),
    ImagePreprocess(16, 12, antialias=False, resize="bicubic", resize_mode="shorter-side"),
    ImagePreprocess(13, 7, antialias=False, resize="box", layout="NHWC"),
    ImagePreprocess(13, 7, antialias=False, resize="nearest"),
    ImagePreprocess(20, 24, resize="none"),
]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_cpp_client_prepares_pictures_to_the_bit(step: ImagePreprocess, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shapes = [(20, 24, 3), (20, 24), (37, 41, 4), (9, 64, 3), (150, 13, 1), (64, 64, 3)]
    pictures = {str(i): rng.integers(0, 256, s, dtype=np.uint8) for i, s in enumerate(shapes)}
    # Noise, runs, and short and long repetitions: all kinds of deflate's blocks and distances.
    pictures["wide"] = np.resize(np.arange(251, dtype=np.uint8) // 3, (40, 3000, 3))
    pictures["flat"] = np.full((64, 64, 3), 200, np.uint8)
    pictures["tiny"] = np.full((1, 1, 3), 9, np.uint8)
    if step.resize == "none":
        pictures = {name: pictures[name] for name in "01"}
    np.savez_compressed(tmp_path / "pictures.npz", **pictures)
    signature = Signature((TensorSpec("image", step.shape),), (TensorSpec("scores", (1, 1)),))
    stated = {
        "name": "x", "version": "1", "signature": signature.to_json(), "files": [],
        "preprocess": step.to_json(),
        "artifacts": [{"id": "a", "target": "tflite", "scheme": "fp32", "path": "a", "bytes": 1,
                       "sha256": "0" * 64}],
    }  # fmt: skip
    for name, data in clients.render(stated, ["cpp"]).items():
        (tmp_path / Path(name).name).write_bytes(data)
    (tmp_path / "feed.cpp").write_text(FEED, encoding="utf-8")
    # The flags of CMakeLists.txt that count here.
    flags = re.findall(r"-f[a-z=-]+", (tmp_path / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert flags == ["-ffp-contract=off"]
    call("c++", "-std=c++20", "-O1", *flags, "-Wall", "-Wextra", "-Werror", tmp_path / "feed.cpp",
         "-o", tmp_path / "feed")  # fmt: skip
    call(tmp_path / "feed", tmp_path / "pictures.npz", f"{tmp_path}/")
    # What an artifact takes that has scale, mean, std and the model's order inside.
    color = "GRAY" if step.channels == 1 else "RGB"
    plain = replace(step, color=color, scale=1.0, mean=(), std=(), layout="NHWC")
    for name, picture in pictures.items():
        tensor = np.load(tmp_path / f"{name}.tensor.npy")
        np.testing.assert_array_equal(tensor, step.apply(picture))
        pixels = np.load(tmp_path / f"{name}.pixels.npy")
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, np.rint(plain.apply(picture)).clip(0, 255))
        last = np.load(tmp_path / f"{name}.last.npy")
        np.testing.assert_array_equal(last, step.for_io("float32-nhwc").apply(picture))
