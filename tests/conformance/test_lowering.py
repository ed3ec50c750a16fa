"""What targets do to a file after conversion: exact where the pattern holds, nothing elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekit.compress.graph import canonical, save_program
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.compress.taps import tap
from edgekit.compress.unrounded import Unrounded
from edgekit.runtime.session import open_session
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import find, installed, worker

pytestmark = pytest.mark.runtime

Tensor = torch.Tensor
Array = np.ndarray[Any, Any]
REAL = ("tflite", "onnxruntime", "openvino")


class Block(nn.Module):
    """A mobile network in small: a stem, a depthwise block wired by a test, a head."""

    def __init__(self, wire: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.wire = wire
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 5, stride=2, groups=8)
        self.fit = nn.Conv2d(8, 8, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 5)
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        with torch.no_grad():
            self.wide.weight *= 8

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.stem(functional.pad(x, (0, 1, 0, 1))))
        result: Tensor = self.head(self.wire(self, y).mean((2, 3)))
        return result

    def gate(self, x: Tensor, curve: Callable[[Tensor], Tensor]) -> Tensor:
        """Squeeze and excite."""
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * curve(self.excite(functional.relu(self.squeeze(pooled))))


WIRES: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "same-padding": lambda m, x: functional.relu6(m.depthwise(functional.pad(x, (1, 2, 1, 2)))),
    "hard-swish": lambda m, x: functional.hardswish(m.wide(x)),
    "narrow-hard-swish": lambda m, x: functional.hardswish(m.fit(x)),
    "squeeze-excite": lambda m, x: m.gate(functional.relu(m.fit(x)), functional.hardsigmoid),
    "residual": lambda m, x: functional.relu(m.fit(x) + x),
    "silu-squeeze-excite": lambda m, x: m.gate(functional.silu(m.fit(x)), torch.sigmoid),
    "concatenation": lambda m, x: m.fit(torch.cat([m.fit(x)[:, :4], x[:, 4:]], 1)),
}

FLOAT = {
    ("tflite", "narrow-hard-swish"): 2,
    ("onnxruntime", "narrow-hard-swish"): 2,
}
"""How many operators between integers are known to compute in float, and faster so. A hard-swish is
taken as integers where the plan has -3 and 3 on the grid, which a range that ends far from them is
not widened for."""


@dataclass(frozen=True)
class Made:
    """One block in one target.

    Attributes:
        placement: as `edgekit.targets.Placement.to_json`.
        steps: the largest difference to the plan, in steps of the result.
    """

    placement: dict[str, Any]
    steps: float


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Made]:
    """Converts a block for a target and runs it."""
    subjects: dict[str, Any] = {}

    def subject(name: str) -> Any:
        if name not in subjects:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            feeds = [(torch.randn(1, 3, 32, 32),) for _ in range(12)]
            module = Block(WIRES[name]).eval()
            program = canonical(torch.export.export(module, feeds[0], strict=False))
            plan = quantize(program, feeds)
            save_program(program, folder / "program.pt2")
            (folder / "plan.json").write_text(json.dumps(plan.to_json()))
            np.savez(folder / "feeds.npz", x=np.stack([f[0].numpy() for f in feeds]))
            subjects[name] = (program, plan, feeds, folder)
        return subjects[name]

    def make(name: str, target: str) -> Made:
        if missing := [p for p, v in installed(find(target)).items() if v is None]:
            pytest.skip(f"{target}: {', '.join(missing)} not installed")
        program, plan, feeds, folder = subject(name)
        x, y = TensorSpec("x", (1, 3, 32, 32), "float32"), TensorSpec("y", (1, 5), "float32")
        about = {
            "artifact": str(folder / f"{target}{find(target).suffix}"),
            "out": str(folder / f"{target}{find(target).suffix}"),
            "signature": Signature((x,), (y,)).to_json(),
            "program": str(folder / "program.pt2"),
            "plan": str(folder / "plan.json"),
            "feeds": str(folder / "feeds.npz"),
            "outputs": str(folder / f"{target}.npz"),
        }
        tasks = [{**about, "op": op} for op in ("convert", "infer", "inspect", "unrounded")]
        for result in (results := worker.run(target, tasks)):
            if "error" in result:
                raise result["error"]
        left_out = Unrounded.from_json(results[3]["unrounded"])
        module = render(program, left_out.without(program, plan), "fake")
        with torch.no_grad():
            want = np.stack([_first(module(*feed)).numpy() for feed in feeds])
        with np.load(folder / f"{target}.npz") as data:
            off = np.abs(data["y"] - want)
        step = next(e.scale[0] for e in reversed(plan.edges) if e.kind == "activation")
        return Made(results[2]["placement"], float(off.max()) / step)

    return make


def _first(result: Any) -> Tensor:
    value: Tensor = result[0] if isinstance(result, tuple | list) else result
    return value


@pytest.mark.parametrize("target", REAL)
@pytest.mark.parametrize("name", WIRES)
def test_blocks_compute_the_plan_in_integers_alone(
    name: str, target: str, made: Callable[[str, str], Made]
) -> None:
    block = made(name, target)
    assert block.steps <= 2.01, block
    ops, waste = block.placement["ops"], dict(block.placement["waste"])
    assert not [k for k in ops if k.upper() in ("PAD", "PADV2")], block.placement
    # The quantization of the input itself is the one float operator that OpenVINO counts.
    known = FLOAT.get((target, name), int(target == "openvino"))
    assert block.placement["float_ops"] <= known, block.placement
    # At most one at either end, for the boundary in float and the layout of pictures, and one
    # either side of what is known to compute in float.
    moves = ("TRANSPOSE", "QUANTIZELINEAR", "DEQUANTIZELINEAR", "QUANTIZE", "DEQUANTIZE", "REORDER")
    assert all(k.upper() in moves and n <= 3 for k, n in waste.items()), block.placement


def test_layers_that_are_results_keep_their_axes_on_litert(tmp_path: Path) -> None:
    """What one reader wants with the channels last and another first was mixed up."""
    target = find("tflite")
    if None in installed(target).values():
        pytest.skip("tflite is not installed")
    torch.manual_seed(0)
    feeds = [(torch.randn(1, 3, 32, 32),) for _ in range(4)]
    module = Block(WIRES["same-padding"]).eval()
    program = canonical(torch.export.export(module, feeds[0], strict=False))
    tapped = tap(program, quantize(program, feeds))
    signature = tapped.signature([TensorSpec("x", (1, 3, 32, 32))])
    target.convert(tapped.program, tapped.plan, signature, tmp_path / "tapped.tflite")
    session = open_session("tflite", tmp_path / "tapped.tflite", signature)
    answers = session.run({"x": feeds[0][0].numpy()})
    session.close()
    with torch.no_grad():
        want = render(tapped.program, tapped.plan, "fake")(*feeds[0])
    for one, values in zip(tapped.taps, want, strict=True):
        assert one.edge is not None
        off = np.abs(answers[one.output] - values.numpy()).max()
        assert off <= 2.01 * one.edge.scale[0], one.layer


def padded(**change: Any) -> tuple[int, Array, Array]:
    """Pads left by `fold_pads` in a small ONNX file, and its answers before and after."""
    onnx = pytest.importorskip("onnx")
    import onnxruntime
    from onnx import helper, numpy_helper

    from edgekit.targets import _onnx_file

    ends = change.get("ends", [0, 0, 2, 0, 0, 0, 1, 3])
    rng = np.random.default_rng(0)
    values = {
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "ends": np.array(ends, np.int64),
        "zero": np.array(change.get("value", 0.0), np.float32),
    }
    mode = change.get("mode", "constant")
    pads = change.get("pads", [1, 0, 0, 1])
    inputs = ["x", "ends", "zero"] if mode == "constant" else ["x", "ends"]
    nodes = [
        helper.make_node("Pad", inputs, ["p"], mode=mode),
        helper.make_node("Conv", ["p", "w"], ["y"], **({"pads": pads} if pads else {})),
        *(helper.make_node(op, ["p"], ["z"]) for op in change.get("also", [])),
    ]
    outputs = ["y", *(["z"] if change.get("also") else []), *change.get("results", [])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 9, 9])],
        [helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(v, k) for k, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = rng.normal(size=(1, 3, 9, 9)).astype(np.float32)
    answers = []
    for fold in (False, True):
        if fold:
            _onnx_file.fold_pads(model)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        answers.append(session.run(["y"], {"x": x})[0])
    left = sum(n.op_type == "Pad" for n in model.graph.node)
    return left, answers[0], answers[1]


@pytest.mark.parametrize("pads", [None, [1, 0, 0, 1]], ids=["none", "own"])
def test_zeros_become_a_convolutions_own_padding(pads: Any) -> None:
    left, before, after = padded(pads=pads)
    assert left == 0
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"value": 0.5},
        {"mode": "edge"},
        {"mode": "reflect"},
        {"ends": [0, 0, -1, 0, 0, 0, 1, 3]},
        {"ends": [0, 1, 1, 1, 0, -1, 1, 1]},
        {"also": ["Relu"]},
        {"results": ["p"]},
    ],
    ids=["number", "edge", "reflect", "negative", "channels", "two-readers", "result"],
)
def test_other_pads_of_a_file_are_left(change: dict[str, Any]) -> None:
    left, before, after = padded(**change)
    assert left == 1
    assert np.array_equal(after, before)


class Tokens(nn.Module):
    """Linear layers between norms, on rows of tokens or of a picture."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(12)
        self.up, self.down = nn.Linear(8, 12, bias=bias), nn.Linear(12, 8, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.softmax(self.down(self.second(self.up(self.first(x)))), -1)
        return result


@pytest.mark.parametrize("shape", [(1, 5, 8), (1, 3, 4, 8), (5, 8)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
def test_layers_on_rows_are_integer_products_in_onnx_runtime(
    shape: tuple[int, ...], bias: bool, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    feeds = [(torch.randn(shape),) for _ in range(12)]
    module = Tokens(bias=bias).eval()
    program = canonical(torch.export.export(module, feeds[0], strict=False))
    plan = quantize(program, feeds)
    file = tmp_path / "net.onnx"
    signature = Signature((TensorSpec("x", shape),), (TensorSpec("y", shape),))
    target = find("onnxruntime")
    target.convert(program, plan, signature, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    module = render(program, Unrounded(results=True).without(program, plan), "fake")
    for feed in feeds:
        with torch.no_grad():
            want = _first(module(*feed)).numpy()
        (got,) = session.run(None, {"x": feed[0].numpy()})
        assert got.shape == shape
        np.testing.assert_allclose(got, want, atol=1e-4)
    ops = target.inspect(file).ops
    if bias:
        assert ops.get("QGemm") == 2, ops
        assert not {"MatMul", "Gemm", "DequantizeLinear"} & set(ops), ops
