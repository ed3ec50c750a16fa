"""The session's rules, on the null runtime and without any wheel."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BadData, UsageError
from edgekit.runtime.session import (
    Port,
    match,
    natural_key,
    open_session,
    read_signature,
    session_targets,
)
from edgekit.signature import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", (2, 2, 2)),), (TensorSpec("y", (2, 3)),))


def chain(path: Path) -> dict[str, np.ndarray]:
    """Writes a chain 4 -> 5 -> 3 and gives its arrays."""
    rng = np.random.default_rng(3)
    shapes = {"w0": (4, 5), "b0": (5,), "w1": (5, 3), "b1": (3,)}
    arrays = {name: rng.standard_normal(shape).astype("f") for name, shape in shapes.items()}
    np.savez(path, **arrays)
    return arrays


def test_targets_are_found_by_file_name() -> None:
    assert {"null", "tflite", "openvino", "onnxruntime", "executorch"} <= set(session_targets())


def test_the_null_runtime_computes_its_chain(tmp_path: Path) -> None:
    a = chain(tmp_path / "m.npz")
    session = open_session("null", tmp_path / "m.npz", SIGNATURE)
    x = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    hidden = np.maximum(x.reshape(2, 4) @ a["w0"] + a["b0"], 0)
    np.testing.assert_allclose(session.run({"x": x})["y"], hidden @ a["w1"] + a["b1"], rtol=1e-6)
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run({"x": x})
    stated = read_signature("null", tmp_path / "m.npz")
    assert (stated.inputs[0].shape, stated.outputs[0].shape) == ((1, 4), (1, 3))


def test_the_null_runtime_refuses_what_is_no_chain(tmp_path: Path) -> None:
    good = chain(tmp_path / "m.npz")
    pickled = {**good, "w0": np.array([None], object)}
    for arrays in (
        {},
        {"w0": good["w0"]},
        {**good, "w1": good["w0"]},
        {**good, "b1": good["b0"]},
        pickled,
    ):
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(BadData):
            open_session("null", tmp_path / "bad.npz", SIGNATURE)
    wide = Signature((TensorSpec("x", (2, 9)),), SIGNATURE.outputs)
    with pytest.raises(BadData, match="9 values"):
        open_session("null", tmp_path / "m.npz", wide)


def test_unknown_target_and_no_thread_are_usage_errors(tmp_path: Path) -> None:
    chain(tmp_path / "m.npz")
    with pytest.raises(UsageError, match="Did you mean 'tflite'"):
        open_session("tfilte", tmp_path / "m.npz", SIGNATURE)
    with pytest.raises(UsageError, match="at least 1"):
        open_session("null", tmp_path / "m.npz", SIGNATURE, threads=0)


@pytest.mark.parametrize(
    ("target", "wheel", "suffix"),
    [
        ("tflite", "ai-edge-litert", ".tflite"),
        ("openvino", "openvino", ".xml"),
        ("onnxruntime", "onnxruntime", ".onnx"),
        ("executorch", "executorch", ".pte"),
    ],
)
def test_a_missing_wheel_is_named_with_its_install_command(
    tmp_path: Path, target: str, wheel: str, suffix: str
) -> None:
    code = f"""
        import sys
        from pathlib import Path
        gone = {{
            "ai_edge_litert", "tflite_runtime", "tensorflow", "openvino", "onnxruntime",
            "executorch",
        }}
        class Gone:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in gone:
                    raise ModuleNotFoundError(name=name)
        sys.meta_path.insert(0, Gone())
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda n, p=None: None if n.split(".")[0] in gone else find(n, p)
        from edgekit.errors import MissingDependency
        from edgekit.runtime.session import preload
        try:
            preload({target!r})
        except MissingDependency as error:
            print(error.exit_code, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"3 {wheel} is not installed\n  pip install {wheel}\n"


def test_border_quantization_rounds_clips_and_inverts() -> None:
    port = Port(TensorSpec("x", (1, 5)), 0, np.dtype(np.int8), scale=0.5, zero_point=10)
    x = np.array([[-100.0, -0.5, 0.0, 0.6, 1000.0]], np.float32)
    q = port.encode(x)
    assert q.dtype == np.int8
    assert q.tolist() == [[-128, 9, 10, 11, 127]]
    assert port.decode(q, what="t").tolist() == [[-69.0, -0.5, 0.0, 0.5, 58.5]]


def test_border_integers_are_narrowed_only_where_they_fit() -> None:
    port = Port(TensorSpec("ids", (1, 2), "int64"), 0, np.dtype(np.int32))
    assert port.encode(np.array([[5, 2**31 - 1]])).dtype == np.int32
    for bad in (2**31, -(2**31) - 1):
        with pytest.raises(BadData, match=str(bad)):
            port.encode(np.array([[0, bad]]))
    assert port.decode(np.array([[1, 2]], np.int32), what="t").dtype == np.int64


def test_border_types_without_a_meaning_are_refused() -> None:
    for ours, theirs, scale in (
        ("float32", "int8", 0.0),
        ("int64", "float32", 0.0),
        ("bool", "uint8", 0.0),
    ):
        with pytest.raises(BadData, match=theirs):
            Port(TensorSpec("x", (1,), ours), 0, np.dtype(theirs), scale)


def test_outputs_of_another_shape_are_refused() -> None:
    port = Port(TensorSpec("y", (1, 4)), 0, np.dtype(np.float32))
    with pytest.raises(BadData, match=r"\(4, 1\)"):
        port.decode(np.zeros((4, 1), np.float32), what="t")


def test_tensors_are_matched_by_name_or_else_by_position() -> None:
    specs = (TensorSpec("ids", (1,)), TensorSpec("mask", (1,)))
    assert match(specs, ["mask", "ids"], what="t") == [1, 0]
    assert match(specs, ["a0", "a1"], what="t") == [0, 1]
    assert match(specs, ["ids", "attention"], what="t") == [0, 1]
    with pytest.raises(BadData, match="moved"):
        match(specs, ["attention", "ids"], what="t")
    with pytest.raises(BadData, match="has 2"):
        match(specs, ["ids"], what="t")


def test_numbered_names_sort_as_numbers() -> None:
    names = ["args_10", "args_2", "args_1", "x", "args_02b"]
    assert sorted(names, key=natural_key) == ["args_1", "args_2", "args_02b", "args_10", "x"]
