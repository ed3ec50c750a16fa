"""Layers counted from ONNX files, as a bundle's are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.bench.artifact_layers import onnx_layers
from edgekit.errors import UnsupportedError


def file_of(
    folder: Path, nodes: list[onnx.NodeProto], stored: dict[str, tuple[int, ...]], out: str
) -> Path:
    """A model of x [1, 3, 8, 8]; constants are float, scales and zero points apart."""
    constants = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in stored.items()]
    constants.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def test_quantized_and_float_files_give_the_same_layers(tmp_path: Path) -> None:
    def quantized(name: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_d"]),
        ]

    def body(x: str, y: str, w: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Conv", [x, w], ["c"], pads=[1, 1, 1, 1], name="conv"),
            helper.make_node("Relu", ["c"], ["y"]),
            *(quantized("y") if y == "y_d" else []),
            helper.make_node("Conv", [y, "deep"], ["d"], group=16, name="deep"),
            helper.make_node("GlobalAveragePool", ["d"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "head"], ["out"], transB=1, name="head"),
        ]

    stored = {"w": (16, 3, 3, 3), "deep": (16, 1, 3, 3), "head": (5, 16), "scale": ()}
    plain = onnx_layers(file_of(tmp_path, body("x", "y", "w"), stored, "out"), "m")
    nodes = [*quantized("x"), *quantized("w"), *body("x_d", "y_d", "w_d")]
    integer = onnx_layers(file_of(tmp_path, nodes, stored, "out"), "m")
    assert integer == plain
    layers, numbers, live = plain
    assert [(a.kind, a.macs, a.read, a.written) for a in layers] == [
        ("stem", 16 * 27 * 64, 192, 1024),
        ("depthwise", 16 * 9 * 36, 1024, 576),
        ("pool", 0, 576, 16),
        ("linear", 80, 16, 5),
    ]
    assert numbers == 16 * 27 + 16 * 9 + 80
    assert live == 1024 + 576


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    path = file_of(tmp_path, [helper.make_node("Det", ["x"], ["out"], name="odd")], {}, "out")
    with pytest.raises(UnsupportedError, match="Det"):
        onnx_layers(path, "m")
