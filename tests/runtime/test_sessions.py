"""Every runtime, on real files, behind one session."""

from __future__ import annotations

import importlib
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.metrics import sqnr_db
from edgekit.runtime.session import open_session, read_signature
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import find

pytestmark = pytest.mark.runtime

SUFFIX = {
    "tflite": ".tflite",
    "openvino": ".xml",
    "onnxruntime": ".onnx",
    "executorch": ".pte",
    "torch-mobile": ".ptl",
}
SIGNATURES = {
    "net": Signature((TensorSpec("image", (1, 3, 16, 16)),), (TensorSpec("scores", (1, 5)),)),
    "txt": Signature(
        (TensorSpec("ids", (1, 6), "int64", high=49), TensorSpec("mask", (1, 6), "int64")),
        (TensorSpec("scores", (1, 3)), TensorSpec("pooled", (1, 4))),
    ),
    "many": Signature(
        tuple(TensorSpec(f"in{i}", (1, 2)) for i in range(12)), (TensorSpec("total", (1, 2)),)
    ),
}
Arrays = dict[str, np.ndarray[Any, Any]]


def expected(folder: Path, name: str) -> tuple[Arrays, Arrays]:
    """The feeds and eager PyTorch's outputs, by the names in the signature."""
    with np.load(folder / f"{name}.npz") as data:
        signature = SIGNATURES[name]
        feeds = {spec.name: data[f"in.{i}"] for i, spec in enumerate(signature.inputs)}
        outputs = {spec.name: data[f"out.{i}"] for i, spec in enumerate(signature.outputs)}
    return feeds, outputs


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("target", SUFFIX)
def test_gives_what_eager_pytorch_gives(artifacts: Path, target: str, name: str) -> None:
    feeds, outputs = expected(artifacts, name)
    session = open_session(target, artifacts / f"{name}{SUFFIX[target]}", SIGNATURES[name])
    got = session.run(feeds)
    assert list(got) == list(outputs)
    for key, value in outputs.items():
        assert got[key].dtype == np.float32
        np.testing.assert_allclose(got[key], value, rtol=1e-5, atol=1e-6)
    assert session.target == target
    assert session.runtime_version.split()[-1][0].isdigit()
    session.close()


@pytest.mark.parametrize("target", SUFFIX)
def test_outputs_are_the_callers_to_keep(artifacts: Path, target: str) -> None:
    feeds, outputs = expected(artifacts, "net")
    session = open_session(target, artifacts / f"net{SUFFIX[target]}", SIGNATURES["net"])
    first = session.run(feeds)["scores"]
    kept = first.copy()
    feeds["image"].flags.writeable = False
    second = session.run({"image": -feeds["image"]})["scores"]
    assert not np.shares_memory(first, second)
    assert not np.array_equal(kept, second)
    session.close()
    np.testing.assert_array_equal(first, kept)
    first += 1.0  # writable, and touching nothing else
    np.testing.assert_allclose(outputs["scores"], kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", SUFFIX)
def test_a_transposed_view_is_read_in_logical_order(artifacts: Path, target: str) -> None:
    feeds, outputs = expected(artifacts, "net")
    view = np.asfortranarray(feeds["image"])
    assert not view.flags.c_contiguous
    session = open_session(target, artifacts / f"net{SUFFIX[target]}", SIGNATURES["net"])
    got = session.run({"image": view})["scores"]
    session.close()
    np.testing.assert_allclose(got, outputs["scores"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", SUFFIX)
def test_refuses_feeds_that_do_not_fit(artifacts: Path, target: str) -> None:
    session = open_session(target, artifacts / f"net{SUFFIX[target]}", SIGNATURES["net"])
    image = np.zeros((1, 3, 16, 16), np.float32)
    for feeds, words in (
        ({"image": image.astype(np.float64)}, "float64"),
        ({"image": image[:, :, :8]}, r"\(1, 3, 8, 16\)"),
        ({"image": np.full_like(image, np.nan)}, "NaN"),
        ({"picture": image}, "missing image"),
        ({"image": image, "mask": image}, "unknown mask"),
    ):
        with pytest.raises(BadData, match=words):
            session.run(feeds)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run({"image": image})


@pytest.mark.parametrize("target", SUFFIX)
def test_refuses_a_signature_that_is_not_the_files(artifacts: Path, target: str) -> None:
    path = artifacts / f"net{SUFFIX[target]}"
    one = TensorSpec("image", (1, 3, 16, 16))
    scores = TensorSpec("scores", (1, 5))
    for signature in (
        Signature((one,), (TensorSpec("scores", (1, 6)),)),
        Signature((TensorSpec("image", (1, 4, 16, 16)),), (scores,)),
        Signature((TensorSpec("image", (3, 16, 16)),), (scores,)),
        Signature((TensorSpec("image", (1, 3, 16, 16), "int32"),), (scores,)),
        Signature((one, TensorSpec("mask", (1, 6))), (scores,)),
        Signature((one,), (scores, TensorSpec("pooled", (1, 5)))),
    ):
        with pytest.raises((BadData, UnsupportedError)):
            open_session(target, path, signature)


@pytest.mark.parametrize("target", SUFFIX)
def test_refuses_damaged_files(artifacts: Path, target: str, tmp_path: Path) -> None:
    whole = (artifacts / f"net{SUFFIX[target]}").read_bytes()
    path = tmp_path / f"net{SUFFIX[target]}"
    shutil.copy(artifacts / "net.bin", tmp_path / "net.bin")
    for data in (b"", b"not a model at all", whole[: len(whole) // 3]):
        path.write_bytes(data)
        with pytest.raises((BadData, UnsupportedError)):
            open_session(target, path, SIGNATURES["net"])
    with pytest.raises(BadData, match="not a file"):
        open_session(target, tmp_path / "absent", SIGNATURES["net"])


def test_openvino_needs_its_weights_beside_it(artifacts: Path, tmp_path: Path) -> None:
    shutil.copy(artifacts / "net.xml", tmp_path / "net.xml")
    with pytest.raises(BadData, match=r"net\.bin"):
        open_session("openvino", tmp_path / "net.xml", SIGNATURES["net"])


def test_tflite_takes_int64_ids_as_int32_and_refuses_those_that_do_not_fit(
    artifacts: Path,
) -> None:
    feeds, _ = expected(artifacts, "txt")
    session = open_session("tflite", artifacts / "txt.tflite", SIGNATURES["txt"])
    feeds["ids"] = np.full((1, 6), 2**31, np.int64)
    with pytest.raises(BadData, match="2147483648"):
        session.run(feeds)
    session.close()


def test_an_int8_border_takes_and_gives_the_signatures_floats(artifacts: Path) -> None:
    path = artifacts / "net-int8.tflite"
    stated = read_signature("tflite", path)
    assert stated.inputs[0].dtype == stated.outputs[0].dtype == "int8"
    feeds, outputs = expected(artifacts, "net")
    session = open_session("tflite", path, SIGNATURES["net"])
    got = session.run(feeds)["scores"]
    session.close()
    assert got.dtype == np.float32
    assert sqnr_db(outputs["scores"], got) > 15

    # The same by hand, through the integers of the file's own border.
    details = importlib.import_module("ai_edge_litert.interpreter").Interpreter(str(path))
    scale, zero = details.get_input_details()[0]["quantization"]
    steps = np.rint(feeds["image"] / np.float32(scale)) + zero
    raw = open_session("tflite", path, stated)
    integers = raw.run({"args_0": np.clip(steps, -128, 127).astype(np.int8)})["output_0"]
    raw.close()
    scale, zero = details.get_output_details()[0]["quantization"]
    np.testing.assert_array_equal(got, (integers.astype(np.float32) - zero) * np.float32(scale))


@pytest.mark.parametrize(
    ("target", "inputs", "outputs"),
    [
        ("tflite", [("args_0", "int32"), ("args_1", "int32")], ["output_0", "output_1"]),
        ("onnxruntime", [("ids", "int64"), ("mask", "int64")], ["scores", "pooled"]),
        ("executorch", [("input0", "int64"), ("input1", "int64")], ["output0", "output1"]),
    ],
)
def test_a_bare_file_states_its_own_signature(
    artifacts: Path, target: str, inputs: list[tuple[str, str]], outputs: list[str]
) -> None:
    stated = read_signature(target, artifacts / f"txt{SUFFIX[target]}")
    assert [(spec.name, spec.dtype) for spec in stated.inputs] == inputs
    assert [spec.name for spec in stated.outputs] == outputs
    assert stated.inputs[0].shape == (1, 6)


def test_inputs_past_the_tenth_keep_their_order(artifacts: Path) -> None:
    stated = read_signature("tflite", artifacts / "many.tflite")
    assert [spec.name for spec in stated.inputs] == [f"args_{i}" for i in range(12)]


def test_a_bare_openvino_file_with_free_dimensions_is_refused(artifacts: Path) -> None:
    with pytest.raises(UnsupportedError, match="no fixed shape"):
        read_signature("openvino", artifacts / "net.xml")


@pytest.mark.parametrize("target", SUFFIX)
def test_more_threads_give_the_same_answer(artifacts: Path, target: str) -> None:
    feeds, outputs = expected(artifacts, "net")
    path = artifacts / f"net{SUFFIX[target]}"
    session = open_session(target, path, SIGNATURES["net"], threads=2)
    assert session.threads == 2
    got = session.run(feeds)["scores"]
    session.close()
    np.testing.assert_allclose(got, outputs["scores"], rtol=1e-5, atol=1e-6)


def test_an_optimization_that_trips_over_its_own_result_is_left_out(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 on x86 with int8 before a reshape in a file of opset 21."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    arrays = {
        "scale": np.float32(0.1), "zero": np.int8(0), "shape": np.array([1, 8], np.int64),
        "stored": np.full((8, 4), 10, np.int8), "bias": np.zeros(4, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("Reshape", ["dq", "shape"], ["view"]),
        helper.make_node("DequantizeLinear", ["stored", "scale", "zero"], ["w"]),
        helper.make_node("Gemm", ["view", "w", "bias"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 8, 1, 1]), ("y", [1, 4]))
    ]
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    one, two = TensorSpec("x", (1, 8, 1, 1)), TensorSpec("y", (1, 4))
    for opset in (20, 21):
        path = tmp_path / f"{opset}.onnx"
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
        )
        onnx.save(made, path)
        session = open_session("onnxruntime", path, Signature((one,), (two,)))
        got = session.run({"x": np.full((1, 8, 1, 1), 0.5, np.float32)})["y"]
        np.testing.assert_allclose(got, np.full((1, 4), 4.0), rtol=1e-6)
        trips = opset == 21 and ort.__version__.startswith("1.32.") and _is_x86()
        without = " without QDQPropagationTransformer" if trips else ""
        assert session.runtime_version == f"onnxruntime {ort.__version__}{without}"
        session.close()
        assert read_signature("onnxruntime", path) == Signature((one,), (two,))
        assert find("onnxruntime").inspect(path).float_ops >= 1


def _is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")
