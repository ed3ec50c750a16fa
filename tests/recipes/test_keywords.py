"""The keyword recipe: its own words, folders of WAV files, and its bundle as a device has it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import wave
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgekit import AudioPreprocess, Bundle
from edgekit.data import speech
from edgekit.schemas import validate

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "keywords.py"
EDGEKIT = (sys.executable, "-m", "edgekit.cli.main")
SMALL = ("recordings.train_each=24", "recordings.test_each=8", "train.epochs=3", "bench=false",
         "network.channels=32", "network.blocks=2", "max_drop=8",
         'targets=["tflite","onnxruntime"]')  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.runtime]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    store = str(tmp_path_factory.mktemp("store"))
    return os.environ | {"EDGEKIT_STORE": store, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}


def call(*words: object, environment: Mapping[str, str], code: int = 0) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def write(path: Path, samples: np.ndarray[Any, Any], rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


@pytest.fixture(scope="module")
def made(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a small run wrote."""
    out = tmp_path_factory.mktemp("keyword")
    options = [word for setting in SMALL for word in ("-s", setting)]
    call(*EDGEKIT, "run", RECIPE, *options, "--device", "pixel-8", "-o", out,
         environment=environment)  # fmt: skip
    return out


def test_the_run_is_told_and_every_check_held(made: Path) -> None:
    document = json.loads((made / "run.json").read_text())
    validate(document)
    gates = {g["name"]: g["passed"] for s in document["stages"] for g in s["gates"]}
    assert gates and False not in gates.values()
    assert gates["golden tflite-w8a8"] is True
    assert gates["parity onnxruntime-w8a8"] is True


def test_the_same_run_again_makes_nothing(made: Path, environment: Mapping[str, str]) -> None:
    options = [word for setting in SMALL for word in ("-s", setting)]
    shown = call(*EDGEKIT, "run", RECIPE, *options, "--device", "pixel-8", "--dry-run", "--json",
                 environment=environment)  # fmt: skip
    assert {s["state"] for s in json.loads(shown)["stages"]} == {"cached"}


def test_the_bundle_carries_its_features_and_recordings(
    made: Path, environment: Mapping[str, str]
) -> None:
    root = made / "exported" / "bundle"
    manifest = json.loads((root / "manifest.json").read_text())
    validate(manifest)
    assert manifest["golden"]["source"] == "sounds" and manifest["golden"]["sounds"]["n"] == 4
    shown = json.loads(
        call(*EDGEKIT, "verify", root, "--artifact", "tflite-w8a8", "--json",
             environment=environment)
    )  # fmt: skip
    checks = {c["name"]: c["passed"] for c in shown["checks"]}
    assert checks["tflite-w8a8/sounds:sound"] is True


def test_the_python_client_hears_what_the_bundle_hears(
    made: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    root = made / "exported" / "bundle"
    clips, _ = speech.spoken("test", 1)
    with Bundle.open(root) as bundle:
        step = bundle.preprocess()
        assert isinstance(step, AudioPreprocess)
        session = bundle.session(bundle.artifact(id="onnxruntime-w8a8"))
        client = root / "client" / "python" / "onnxruntime_w8a8.py"
        assert "dB" in call(sys.executable, "-B", client, "--golden", environment=environment)
        for i in (0, 5):
            write(tmp_path / "a.wav", clips[i])
            call(sys.executable, "-B", client, tmp_path / "a.wav", "--save", tmp_path / "o.npz",
                 environment=environment)  # fmt: skip
            want = session.run({"sound": step.apply(clips[i])})
            with np.load(tmp_path / "o.npz") as got:
                for name, value in want.items():
                    np.testing.assert_array_equal(got[name], value)
        session.close()


def _folder(root: Path, names: Mapping[str, tuple[str, int]]) -> None:
    """WAV files of words, by ``folder -> (label, how many)``."""
    clips, classes = speech.spoken("train", 12)
    for folder, (label, count) in names.items():
        mine = clips[classes == speech.LABELS.index(label)][:count]
        for i, clip in enumerate(mine):
            write(root / folder / f"{i}.wav", clip)


def test_exporting_with_a_folder_of_recordings(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    _folder(
        tmp_path / "words",
        {f"{split}/{w}": (w, 9) for split in ("train", "test") for w in ("no", "yes")},
    )
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from edgekit import AudioPreprocess, Model\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    step = AudioPreprocess(mels=16, mean=(-6.0,), std=(3.0,))\n"
        "    net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, 2), torch.nn.ReLU(),\n"
        "        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 2))\n"
        "    return Model.from_module(net, {'input': torch.zeros(step.shape)}, preprocess=step,\n"
        "                             labels=['no', 'yes'])\n"
    )
    shown = json.loads(
        call(*EDGEKIT, "export", f"{tmp_path / 'net.py'}:build", "--target", "onnxruntime",
             "--calib", tmp_path / "words", "-o", tmp_path / "b", "--no-bench", "--json",
             environment=environment)
    )  # fmt: skip
    assert shown["reference"]["n"] == 18
    with Bundle.open(tmp_path / "b") as bundle:
        assert len(bundle.golden_sounds()) == 4
        assert isinstance(bundle.preprocess(), AudioPreprocess)
    (tmp_path / "words" / "train" / "no" / "0.wav").write_bytes(b"RIFF")
    done = subprocess.run(
        [*EDGEKIT, "quantize", f"{tmp_path / 'net.py'}:build", "--calib", str(tmp_path / "words"),
         "-o", str(tmp_path / "plan")],
        env=dict(environment), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 7 and "train/no/0.wav" in done.stderr


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("keywords_recipe", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["keywords_recipe"] = module
    spec.loader.exec_module(module)
    return module


class _Run:
    def note(self, message: str) -> None:
        pass


def test_speech_commands_as_it_is_unpacked(recipe: ModuleType, tmp_path: Path) -> None:
    names = {"yes": ("yes", 10), "no": ("no", 10), "bed": ("unknown", 10), "up": ("up", 10)}
    _folder(tmp_path, names)
    rng = np.random.default_rng(0)
    for name in ("rain", "tap"):
        write(tmp_path / "_background_noise_" / f"{name}.wav", rng.integers(-900, 900, 40_000))
    lines = [f"{word}/{i}.wav" for word in names for i in range(3)]
    (tmp_path / "testing_list.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "validation_list.txt").write_text("yes/3.wav\n")
    whole = recipe.recordings(recipe.Config(), tmp_path, _Run())
    assert whole["labels"] == ["bed", "no", "up", "yes"]
    assert len(whole["test"]) == 12 and len(whole["train"]) == 27
    asked = recipe.Config(recordings=recipe.Recordings(words=("yes", "no")))
    some = recipe.recordings(asked, tmp_path, _Run())
    assert some["labels"] == ["yes", "no", "silence", "unknown"]
    # Unknown words are thinned out, silence is cut from the noises; the same every time.
    assert np.bincount(some["test_y"]).tolist() == [3, 3, 3, 3]
    assert np.bincount(some["train_y"]).tolist() == [6, 7, 6, 6]
    again = recipe.recordings(asked, tmp_path, _Run())
    assert all(np.array_equal(some[k], again[k]) for k in ("train", "test", "test_y"))
