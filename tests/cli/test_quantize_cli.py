"""`edgekit quantize`, and `--max-drop` where a layer has to stay in float."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.compress.graph import program_digest
from edgekit.compress.plan import QuantPlan
from edgekit.compress.render import render
from edgekit.names import METHODS

Run = Callable[..., Any]

MODELS = '''
import torch
from torch import nn


def planted():
    """One channel of the depthwise layer is 3000 times as large as what the next layer reads."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )
    with torch.no_grad():
        net[2].weight[0] *= 3000
        net[3].weight[:, 0] = 0
        for layer in (0, 2, 3, 5, 9):
            net[layer].bias.zero_()
    return net.eval(), {"input": torch.zeros(1, 3, 8, 8)}


def heavy():
    """Weights that are large, and always meet zeros, leave no integers for the others beside them.
    """
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 40, 1), nn.ReLU(), nn.Conv2d(40, 40, 1), nn.ReLU(), nn.Conv2d(40, 40, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 4),
    )
    with torch.no_grad():
        net[0].weight[0], net[0].bias[0] = 0, -1
        net[2].weight[:, 0] = 200
        net[7].bias -= net(torch.randn(64, 3, 8, 8)).mean(0)  # so that all classes come up
    return net.eval(), {"input": torch.zeros(1, 3, 8, 8)}


def one():
    """The planted layer, with nothing else but a layer that reads it."""
    first = planted()[0][2]
    last = nn.Linear(288, 4)
    with torch.no_grad():
        last.weight[:, :36] = 0
    return nn.Sequential(first, nn.Flatten(), last).eval(), {
        "input": torch.zeros(1, 8, 8, 8)
    }
'''

PLAIN = [part for method in METHODS for part in ("--without", method)]


@pytest.fixture(scope="module")
def ruined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that int8 ruins in one layer, and data that their float answers are the labels of.

    Of the 72 samples 24 calibrate where no others are named to evaluate on.
    """
    root = tmp_path_factory.mktemp("ruined")
    (root / "m.py").write_text(MODELS)
    space: dict[str, Any] = {}
    exec(MODELS, space)
    for name in ("planted", "heavy", "one"):
        with torch.random.fork_rng(devices=[]):
            net, examples = space[name]()
        shape = (192, *examples["input"].shape[1:])
        pictures = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        with torch.no_grad():
            labels = net(torch.from_numpy(pictures)).argmax(1).numpy()
        np.savez(root / f"{name}-calib.npz", input=pictures[:72])
        np.savez(root / f"{name}-eval.npz", input=pictures[72:], y=labels[72:])
    return root


@pytest.fixture(scope="module")
def quantize(ruined: Path, edgekit: Run) -> Run:
    def run(*args: object, model: str = "planted") -> Any:
        calib = ["--calib", ruined / f"{model}-calib.npz"]
        return edgekit("quantize", f"{ruined}/m.py:{model}", *calib, *PLAIN, *args)

    return run


def test_a_plan_with_its_table(quantize: Run, edgekit: Run, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    done = quantize("--sensitivity", "-o", out, "--json")
    assert done.code == 0, done.err
    document = done.document
    assert (document["metric"], document["drop_points"], document["kept_for_accuracy"]) == (
        None, None, [],
    )  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == ["plan.json", "program.pt2"]
    plan = QuantPlan.from_json(json.loads((out / "plan.json").read_text()))
    program = torch.export.load(out / "program.pt2")
    assert plan.digest() == document["plan"]["digest"]
    assert plan.program_digest == program_digest(program)
    render(program, plan, "fake")
    first, *others = document["sensitivity"]["layers"]
    assert first["layer"] == "2 (conv2d_1)" and first["sqnr_alone_db"] < 5
    assert all(row["sqnr_alone_db"] > 35 for row in others)
    assert (document["sensitivity"]["n"], document["sensitivity"]["metric"]) == (24, "agreement")
    shown = edgekit("inspect", out, "--json")
    assert shown.code == 0
    assert shown.document["kind"] == "plan"
    assert shown.document["plan"]["sensitivity"] == document["sensitivity"]
    text = edgekit("inspect", out).out
    table = text[text.index("SQNR dB alone") :].splitlines()
    assert table[1].startswith("2 (conv2d_1) ") and len(table) == 1 + len(others) + 1
    # Once more into the same folder, as text, and from the store.
    again = quantize("--sensitivity", "-o", out)
    assert again.code == 0 and table[1] in again.out
    assert "measuring layers" not in again.err


def test_without_the_table(quantize: Run, edgekit: Run, tmp_path: Path) -> None:
    done = quantize("-o", tmp_path / "plan", "--json")
    assert done.code == 0
    assert done.document["sensitivity"] is None
    assert "sensitivity" not in json.loads((tmp_path / "plan" / "plan.json").read_text())
    shown = edgekit("inspect", tmp_path / "plan" / "plan.json", "--json")
    assert "sensitivity" not in shown.document["plan"]


def test_just_the_ruined_layer_stays_in_float(quantize: Run, ruined: Path, tmp_path: Path) -> None:
    data = ["--eval", ruined / "planted-eval.npz"]
    bad = quantize(*data, "-o", tmp_path / "bad", "--json").document
    assert bad["drop_points"] > 20
    done = quantize(*data, "--max-drop", 2, "-o", tmp_path / "plan", "--json")
    assert done.code == 0, done.err
    document = done.document
    [kept] = document["kept_for_accuracy"]
    assert (kept["units"], kept["limit"], kept["n"]) == (["2 (conv2d_1)"], 2, 120)
    assert kept["drop_before"] == bad["drop_points"]
    assert kept["drop_after"] == document["drop_points"] <= 2
    # The layer that reads what is not quantized any more is in float with it.
    assert kept["layers"] == 2 < 5
    reasons = {k["node"]: k["reason"] for k in document["plan"]["kept_float"]}
    assert reasons["conv2d_1"] == "kept in float to lose at most 2 points"
    assert reasons["conv2d_2"] == f"beside 2 (conv2d_1): {reasons['conv2d_1']}"
    assert document["plan"]["edges"] == bad["plan"]["edges"] - 5
    assert document["sensitivity"]["layers"][0]["layer"] == "2 (conv2d_1)"


def test_a_plan_that_holds_keeps_its_bytes(quantize: Run, ruined: Path, tmp_path: Path) -> None:
    data = ["--eval", ruined / "planted-eval.npz"]
    quantize(*data, "-o", tmp_path / "free")
    done = quantize(*data, "--max-drop", 90, "-o", tmp_path / "held", "--json")
    assert done.document["kept_for_accuracy"] == []
    for name in ("plan.json", "program.pt2"):
        assert (tmp_path / "free" / name).read_bytes() == (tmp_path / "held" / name).read_bytes()


@pytest.mark.parametrize(
    "scheme",
    ["w8", *(pytest.param(s, marks=pytest.mark.slow) for s in ("w4", "w8a8-dyn"))],
)
def test_a_plan_of_weights_keeps_the_ruined_layer_in_float(
    scheme: str, quantize: Run, ruined: Path, edgekit: Run, tmp_path: Path
) -> None:
    data = ["--eval", ruined / "heavy-eval.npz", "--scheme", scheme]
    done = quantize(*data, "--max-drop", 20, "-o", tmp_path / "plan", "--json", model="heavy")
    assert done.code == 0, done.err
    document = done.document
    [kept] = document["kept_for_accuracy"]
    assert (kept["scheme"], kept["of"]) == (scheme, 4)
    assert kept["drop_before"] > 50 and document["drop_points"] <= 20
    assert kept["drop_after"] == pytest.approx(document["drop_points"])
    assert "2 (conv2d_1)" in kept["units"]
    if scheme != "w4":  # of which others lose a little too
        # 1,600 weights, multiplied on integers where the layer's input is quantized too.
        assert (kept["units"], kept["bytes"]) == (["2 (conv2d_1)"], 1600 * 3)
        assert document["plan"]["edges"] == 3
    assert (kept["macs_share"] > 0.4) == (scheme == "w8a8-dyn")
    reasons = {k["node"]: k["reason"] for k in document["plan"]["kept_float"]}
    assert reasons["conv2d_1"] == "kept in float to lose at most 20 points"
    assert document["sensitivity"]["layers"][0]["layer"] == "2 (conv2d_1)"
    plan = QuantPlan.from_json(json.loads((tmp_path / "plan" / "plan.json").read_text()))
    assert all(d.node != "conv2d_1" for d in plan.dynamic)
    render(torch.export.load(tmp_path / "plan" / "program.pt2"), plan, "fake")
    assert "2 (conv2d_1)" in edgekit("inspect", tmp_path / "plan").out


def test_a_plan_of_weights_needs_no_data(ruined: Path, edgekit: Run, tmp_path: Path) -> None:
    model = f"{ruined}/m.py:heavy"
    done = edgekit("quantize", model, "--scheme", "w8", "-o", tmp_path / "plan", "--json")
    assert done.code == 0, done.err
    assert (done.document["plan"]["edges"], done.document["drop_points"]) == (4, None)
    for more in (["--sensitivity"], []):
        scheme = "w8" if more else "w8a8"
        done = edgekit("quantize", model, "--scheme", scheme, *more, "-o", tmp_path / "other")
        assert done.code == 2 and "--calib DATA" in done.err
        assert not (tmp_path / "other").exists()


def test_a_limit_that_only_float_holds(quantize: Run, ruined: Path, tmp_path: Path) -> None:
    """Nothing is written: with both of its layers in float this would be no int8 model."""
    data = ["--eval", ruined / "one-eval.npz", "--max-drop", 2]
    done = quantize(*data, "-o", tmp_path / "out", "--json", model="one")
    assert done.code == 1
    assert done.document["error"]["kind"] == "GateFailed"
    assert "only with every layer in float" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--max-drop", "1"], 2, "--eval DATA"),
        (["--max-drop", "nan"], 2, "--max-drop"),
        (["--scheme", "w9"], 2, "'w9'"),
        (["--scheme", "fp32"], 5, "quantizes nothing"),
        (["--without", "roundin"], 2, "Did you mean 'rounding'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_wrong_requests(
    args: list[str], code: int, said: str, quantize: Run, tmp_path: Path
) -> None:
    done = quantize(*args, "-o", tmp_path / "out", "--json")
    assert done.code == code
    assert said in done.err
    assert done.document["error"]["exit_code"] == code
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(quantize: Run, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    done = quantize("-o", tmp_path)
    assert done.code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
    file = tmp_path / "letter.txt"
    assert quantize("-o", file).code == 2
    assert file.read_text() == "dear"


# -- export ---------------------------------------------------------------------------------------


@pytest.mark.runtime
@pytest.mark.parametrize(
    "target",
    ["onnxruntime", *(pytest.param(t, marks=pytest.mark.slow) for t in ("tflite", "openvino"))],
)
def test_an_export_keeps_the_layer_in_float_and_proves_it(
    target: str, ruined: Path, edgekit: Run, tmp_path: Path
) -> None:
    pytest.importorskip({"tflite": "ai_edge_litert"}.get(target, target))
    request = [
        "export", f"{ruined}/m.py:planted", "--target", target, "--scheme", "w8a8", "--no-bench",
        "--calib", ruined / "planted-calib.npz", "--eval", ruined / "planted-eval.npz",
        "--max-drop", 2, "--require-verified", *PLAIN,
    ]  # fmt: skip
    done = edgekit(*request, "-o", tmp_path / "bundle", "--json")
    assert done.code == 0, done.err
    document = done.document
    [kept] = document["kept_for_accuracy"]
    assert kept["units"] == ["2 (conv2d_1)"] and kept["drop_before"] > 20
    [artifact] = document["artifacts"]
    assert artifact["verification"] == "runtime"
    assert artifact["drop_points"] <= 2
    assert artifact["placement"]["float_ops"] >= 2
    assert [g["passed"] for g in document["gates"] if g["name"] == "max-drop"] == [True]
    plan = QuantPlan.from_json(json.loads((tmp_path / "bundle" / "plan.json").read_text()))
    assert "conv2d_1" in dict(plan.kept_float)
    shown = edgekit("inspect", tmp_path / "bundle", "--json")
    assert shown.document["sensitivity"]["layers"][0]["layer"] == "2 (conv2d_1)"
    assert "SQNR dB alone" in edgekit("inspect", tmp_path / "bundle").out
    again = edgekit(*request, "-o", tmp_path / "again")
    assert "nothing was converted anew" in again.err
    assert "2 (conv2d_1)" in again.out


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize(
    ("target", "scheme"),
    [
        *((t, s) for t in ("tflite", "openvino", "onnxruntime", "coreml") for s in ("w8",)),
        *((t, s) for t in ("openvino", "onnxruntime", "coreml") for s in ("w4",)),
        *((t, "w8a8-dyn") for t in ("tflite", "onnxruntime", "executorch", "torch-mobile")),
    ],
)
def test_an_export_of_weights_keeps_the_layer_in_float(
    target: str, scheme: str, ruined: Path, edgekit: Run, tmp_path: Path
) -> None:
    done = edgekit(
        "export", f"{ruined}/m.py:heavy", "--target", target, "--scheme", scheme, "--no-bench",
        "--calib", ruined / "heavy-calib.npz", "--eval", ruined / "heavy-eval.npz",
        "--max-drop", 20, *PLAIN, "-o", tmp_path / "bundle", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    [kept] = done.document["kept_for_accuracy"]
    assert "2 (conv2d_1)" in kept["units"] and kept["drop_before"] > 50
    [artifact] = done.document["artifacts"]
    assert artifact["verification"] == ("emulated" if target == "coreml" else "runtime")
    assert artifact["drop_points"] <= 20
    assert [g["passed"] for g in done.document["gates"] if g["name"] == "max-drop"] == [True]


@pytest.mark.runtime
def test_activations_of_16_bits_all_the_way(shop: Path, edgekit: Run, tmp_path: Path) -> None:
    """Planned, converted, proven, looked at and proven again."""
    pytest.importorskip("ai_edge_litert")
    calib, scheme = ["--calib", f"{shop}/pictures.npz"], ["--scheme", "w8a16"]
    plan, bundle = tmp_path / "plan", tmp_path / "bundle"
    done = edgekit("quantize", f"{shop}/m.py:cnn", *calib, *scheme, "-o", plan, "--json")
    assert done.code == 0, done.err
    assert done.document["scheme"] == "w8a16"
    done = edgekit(
        "export", f"{shop}/m.py:cnn", "--target", "tflite", *scheme, *calib, "--require-verified",
        "--max-float-ops", "0", "--no-bench", "-o", bundle, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (artifact,) = done.document["artifacts"]
    assert (artifact["id"], artifact["verification"]) == ("tflite-w8a16", "runtime")
    assert artifact["parity"]["sqnr_db"] is None or artifact["parity"]["sqnr_db"] > 50
    assert edgekit("verify", bundle).code == 0
    shown = edgekit("inspect", bundle, "--json").document
    assert shown["artifacts"][0]["placement"]["float_ops"] == 0
    done = edgekit("export", f"{shop}/m.py:cnn", "--target", "openvino", *scheme, *calib)
    assert done.code == 5 and "host runs" in done.err


@pytest.mark.slow
def test_a_plan_is_given_to_an_export(shop: Path, edgekit: Run, tmp_path: Path) -> None:
    plan, calib = tmp_path / "plan", ["--calib", f"{shop}/pictures.npz"]
    made = edgekit("quantize", f"{shop}/m.py:cnn", *calib, "-o", plan, "--json")
    assert made.code == 0, made.err
    args: list[object] = [
        "--target",
        "onnxruntime",
        "--no-bench",
        "--no-clients",
        "--waive",
        "smaller",
        "--json",
    ]
    # An activation's scale needs no samples any more.
    out = ["--scheme", "w8a8", "-o", tmp_path / "bundle"]
    done = edgekit("export", f"{shop}/m.py:cnn", *args, "--plan", plan, *out)
    assert done.code == 0, done.err
    digest = made.document["plan"]["digest"]
    assert done.document["plans_given"] == [{"scheme": "w8a8", "digest": digest, "training": None}]
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert made.document["plan"]["program_digest"] in json.dumps(manifest["lineage"])
    done = edgekit("export", f"{shop}/m.py:mlp", *args, "--plan", plan, *out)
    assert done.code == 2 and "not made from 'mlp' as it is" in done.err
