"""The recipe that `make demo` runs: its data, its training, and the whole of it but measuring."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from edgekit import Bundle, Store
from edgekit.names import TARGETS
from edgekit.schemas import validate

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "mobilenet.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mobilenet_recipe", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """A store of its own, which the tests below share as a user's runs do."""
    return os.environ | {"EDGEKIT_STORE": str(tmp_path_factory.mktemp("store")), "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def demo(
    environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str]:
    """Where the recipe wrote, its stdout and its stderr."""
    out = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, str(RECIPE), "--out", str(out), "--no-bench"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout, done.stderr


# -- data and training ----------------------------------------------------------------------------


def test_the_test_pictures_are_in_no_other_set(recipe: ModuleType) -> None:
    everything, classes = recipe.pictures()
    train_x, train_y = recipe.training()
    (calib, calib_y), (held_out, held_y) = recipe.calibration(), recipe.evaluation()
    assert len(train_x) + len(held_out["x"]) == len(everything) == 1797
    assert np.array_equal(np.concatenate([train_x, held_out["x"]]), everything)
    assert np.array_equal(np.concatenate([train_y, held_y]), classes)
    assert np.array_equal(calib["x"], train_x[: len(calib["x"])])
    assert set(calib_y) == set(held_y) == set(range(10))
    assert not {p.tobytes() for p in calib["x"]} & {p.tobytes() for p in held_out["x"]}


def test_pictures_are_stored_in_eight_bits(recipe: ModuleType) -> None:
    pictures, _ = recipe.pictures()
    assert pictures.dtype == np.uint8
    assert pictures.shape == (1797, 8, 8)
    assert (pictures.min(), pictures.max()) == (0, 255)
    assert len(np.unique(pictures)) == 17


def test_mean_and_deviation_are_those_of_the_training_pictures(recipe: ModuleType) -> None:
    pictures, _ = recipe.training()
    mean, std = (pictures / 255).mean(), (pictures / 255).std()
    assert np.allclose(recipe.PREPROCESS.mean, mean, atol=5e-5)
    assert np.allclose(recipe.PREPROCESS.std, std, atol=5e-5)


def test_augmented_pictures_stay_pictures(recipe: ModuleType) -> None:
    pictures, _ = recipe.training()
    x = torch.from_numpy(np.concatenate([recipe.PREPROCESS.apply(p) for p in pictures[:32]]))
    torch.manual_seed(3)
    moved = recipe.augment(x)
    torch.manual_seed(3)
    assert torch.equal(moved, recipe.augment(x))
    assert moved.shape == x.shape
    assert x.min() - 1e-5 <= moved.min() and moved.max() <= x.max() + 1e-5
    assert all(not torch.equal(a, b) for a, b in zip(moved, x, strict=True))


def test_the_network_is_a_mobilenet_with_eleven_blocks(recipe: ModuleType) -> None:
    module = recipe.network().eval()
    blocks = [m for m in module.modules() if type(m).__name__ == "InvertedResidual"]
    assert len(blocks) == 11
    with torch.no_grad():
        features = module.features(torch.zeros(2, 3, 32, 32))
        assert features.shape[2:] == (4, 4)
        assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_training_gives_the_same_weights_again_and_leaves_torch_its_threads(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, classes = recipe.training()
    monkeypatch.setattr(recipe, "training", lambda: (images[:192], classes[:192]))
    threads = torch.get_num_threads()
    one, two = recipe.train(1), recipe.train(1)
    assert torch.get_num_threads() == threads
    assert one.keys() == two.keys() == recipe.network().state_dict().keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["features.1.conv.1.weight"].is_contiguous()


def test_weights_are_trained_once(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEKIT_STORE", str(tmp_path))
    asked: list[int] = []

    def train(epochs: int) -> dict[str, torch.Tensor]:
        asked.append(epochs)
        return {"weight": torch.full((2,), float(epochs))}

    monkeypatch.setattr(recipe, "train", train)
    first = recipe.weights(3)
    assert recipe.weights(3) == first
    assert first.suffix == ".safetensors" and first.is_relative_to(Store().root)
    assert recipe.weights(4) != first
    assert asked == [3, 4]


# -- the whole of it ------------------------------------------------------------------------------


def test_make_runs_this_recipe() -> None:
    rule = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert rule is not None
    assert "$(BIN)/python recipes/mobilenet.py --out out/demo" in rule.group(1)


@pytest.mark.runtime
def test_the_demo_exports_to_every_runtime_and_loses_nothing(demo: tuple[Path, str, str]) -> None:
    out, said, _ = demo
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    validate(report)
    assert report["devices"] == ["pixel-8", "iphone-15-pro", "raspberry-pi-5", "x86-server"]
    assert report["reference"]["n"] == 360
    assert report["reference"]["value"] >= 97
    assert {a["target"] for a in report["artifacts"]} == set(TARGETS)
    for artifact in report["artifacts"]:
        assert artifact["scheme"] == "w8a8"
        emulated = artifact["target"] == "coreml" and sys.platform != "darwin"
        assert artifact["status"] == "ok"
        assert artifact["verification"] == ("emulated" if emulated else "runtime")
        assert artifact["drop_points"] <= 1
        # Without measuring no float file is made: the float model's numbers alone take more.
        assert artifact["float"] is None
        [smaller] = [
            g for g in report["gates"] if (g["artifact"], g["name"]) == (artifact["id"], "smaller")
        ]
        assert smaller["passed"] is True and artifact["bytes"] < smaller["limit"]
        assert artifact["id"] in said
    # Nothing was measured, so nothing is said of speed; all else is judged, and holds.
    assert {g["name"] for g in report["gates"]} >= {"parity", "smaller", "faster", "weights"}
    assert all(g["passed"] is (None if g["name"] == "faster" else True) for g in report["gates"])
    assert all(f"gate {gate['name']}: " in said for gate in report["gates"])
    assert report["bundle"] in said and str(out / "report.json") in said


@pytest.mark.runtime
def test_the_demo_shows_its_steps_in_plain_lines(demo: tuple[Path, str, str]) -> None:
    _, said, progress = demo
    assert "training for 16 epochs" in progress
    assert "\x1b" not in said + progress
    assert "Warning" not in progress


@pytest.mark.runtime
@pytest.mark.parametrize("target", ["tflite", "openvino", "onnxruntime", "executorch"])
def test_a_device_reads_digits_with_the_demos_bundle(
    demo: tuple[Path, str, str], recipe: ModuleType, target: str
) -> None:
    held_out, classes = recipe.evaluation()
    with Bundle.open(demo[0] / "bundle") as bundle:
        preprocess = bundle.preprocess()
        assert preprocess == recipe.PREPROCESS
        assert bundle.labels == tuple("0123456789")
        session = bundle.session(bundle.artifact(target=target, device="raspberry-pi-5"))
        assert bundle.check_golden(session).passed
        read = [
            bundle.labels[int(session.run({"x": preprocess.apply(p)})["output"].argmax())]
            for p in held_out["x"]
        ]
        session.close()
    assert np.mean([a == str(b) for a, b in zip(read, classes, strict=True)]) >= 0.96


@pytest.mark.slow
@pytest.mark.runtime
def test_the_command_line_exports_the_recipes_model(
    demo: tuple[Path, str, str], environment: Mapping[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "edgekit.cli.main", "export", f"{RECIPE}:model"]
    command += ["--device", "pixel-8", "--no-bench", "-o", str(tmp_path / "bundle"), "--json"]
    command += ["--calib", f"{RECIPE}:calibration", "--eval", f"{RECIPE}:evaluation"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    validate(document)
    demos = json.loads((demo[0] / "report.json").read_text())
    assert document["reference"] == demos["reference"]
    found = {a["id"]: a["value"] for a in document["artifacts"]}
    # The same model and data: neither trained nor converted again, and the same answers.
    assert "training" not in done.stderr
    assert found == {a["id"]: a["value"] for a in demos["artifacts"] if a["id"] in found}
    targets = ("tflite", "onnxruntime", "executorch", "torch-mobile")
    assert set(found) == {f"{target}-w8a8" for target in targets}
