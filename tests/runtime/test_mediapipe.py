"""MediaPipe Tasks, a reader that isn't ours, takes our file as it is and gives our label.

Its ImageClassifier runs from its own wheel in a virtual environment of its own, which is kept in
pytest's cache. Pictures have the model's size, so that how they are resized plays no part.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from edgekit import Bundle, ExportRequest, ImagePreprocess, Model, export_bundle
from edgekit.artifact import Store
from edgekit.targets import _tflite_metadata_file
from edgekit.targets._tflite_metadata import describe

pytestmark = [pytest.mark.runtime, pytest.mark.slow, pytest.mark.timeout(1500)]

MEDIAPIPE = "mediapipe==1.2.3"
SIDE, SHOWN = 16, 24
LABELS = tuple(f"digit {n}" for n in range(10))
UNEVEN = ImagePreprocess(
    SIDE, SIDE, resize="none", color="BGR", mean=(0.1, 0.3, 0.5), std=(0.2, 0.3, 0.25)
)
EVEN = ImagePreprocess(SIDE, SIDE, resize="none", layout="NHWC", mean=(0.5,) * 3, std=(0.25,) * 3)
FIRST = dataclasses.replace(EVEN, color="BGR", layout="NCHW", mean=(0.45,) * 3, std=(0.225,) * 3)


@pytest.fixture(scope="module")
def mediapipe_python(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with MediaPipe; skipped only where its wheel can't be had."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)
    folder = cache.mkdir("mediapipe") if cache else tmp_path_factory.mktemp("mediapipe")
    root = folder / MEDIAPIPE.replace("==", "-")
    python = root / "bin" / "python"
    if not (root / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(root)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", MEDIAPIPE]
        done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=900)
        absent = ("No matching distribution", "Connection", "connection", "resolve")
        if done.returncode and any(reason in done.stderr for reason in absent):
            pytest.skip(f"{MEDIAPIPE} can't be had here: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr[-4000:]
        (root / "whole").touch()
    return python


def digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """scikit-learn's digits in orange on blue, so that the order of colours matters."""
    data = load_digits()
    ink = np.repeat(np.repeat(data.images / 16, 2, 1), 2, 2)[..., None]
    colours = ink * np.array([255, 120, 10]) + (1 - ink) * np.array([10, 40, 160])
    return np.rint(colours).astype(np.uint8), data.target


def trained(preprocess: ImagePreprocess) -> Model:
    """A small network that knows the digits; the last 400 are not shown to it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = (
        *(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU6(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU6()),
        *(nn.Flatten(), nn.Linear(24 * 16, 10)),
    )
    net: nn.Module = nn.Sequential(*layers)
    if preprocess.layout == "NHWC":
        net = _Last(net)
    pictures, classes = digits()
    x = torch.from_numpy(np.concatenate([preprocess.apply(p) for p in pictures[:-400]]))
    y = torch.from_numpy(classes[:-400])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        for part in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    return Model.from_module(
        net.eval(),
        {"input": torch.zeros(preprocess.shape)},
        name="digits",
        preprocess=preprocess,
        labels=LABELS,
    )


class _Last(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.inner(input.permute(0, 3, 1, 2))


def exported(model: Model, ios: tuple[str, ...], folder: Path) -> Path:
    pictures, classes = digits()
    np.savez(folder / "calib.npz", input=pictures[:64])
    np.savez(folder / "eval.npz", input=pictures[-400:], y=classes[-400:])
    request = ExportRequest(
        targets=("tflite",),
        schemes=("w8a8", "fp32"),
        ios=ios,
        calib=str(folder / "calib.npz"),
        evaluation=str(folder / "eval.npz"),
        out=folder / "bundle",
        bench=False,
    )
    assert export_bundle(model, request, store=Store(folder / "store")).exit_code == 0
    return folder / "bundle"


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of blue first, channels first, with another mean and deviation for each channel."""
    return exported(trained(UNEVEN), ("float32", "uint8"), tmp_path_factory.mktemp("uneven"))


def ask(python: Path, files: list[Path], pictures: np.ndarray[Any, Any], folder: Path) -> list[Any]:
    np.save(folder / "pictures.npy", pictures)
    script = Path(__file__).with_name("classify_mediapipe.py")
    done = subprocess.run(
        [str(python), str(script), str(folder / "pictures.npy"), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def same(bundle: Bundle, id: str, answers: Any, pictures: np.ndarray[Any, Any]) -> int:
    """Asserts that MediaPipe's labels and scores are the session's; counts the right ones."""
    artifact = bundle.artifact(id=id)
    session, preprocess = bundle.session(artifact), bundle.preprocess()
    assert isinstance(preprocess, ImagePreprocess)
    _, classes = digits()
    right = 0
    for i, picture in enumerate(pictures):
        pixels = artifact.io == "uint8"
        taken = preprocess.for_io(artifact.io)
        feed = taken.pixels(picture) if pixels else taken.apply(picture)
        scores = session.run({"input": feed})["output"][0]
        theirs = dict(answers[i])
        assert answers[i][0][0] == LABELS[int(scores.argmax())]
        assert [theirs[label] for label in LABELS] == pytest.approx(scores, abs=2e-4)
        right += answers[i][0][0] == LABELS[classes[-SHOWN:][i]]
    session.close()
    return right


def test_it_takes_the_file_of_pixels_and_gives_our_label(
    mediapipe_python: Path, uneven: Path, tmp_path: Path
) -> None:
    pictures = digits()[0][-SHOWN:]
    ids = ("tflite-w8a8-uint8", "tflite-fp32-uint8", "tflite-w8a8")
    with Bundle.open(uneven) as bundle:
        files = [bundle.place(bundle.artifact(id=id)) for id in ids]
        planted = tmp_path / "channels-first.tflite"
        shutil.copyfile(files[-1], planted)
        told = dataclasses.replace(UNEVEN, color="RGB")
        signature = bundle.artifact(id="tflite-w8a8").signature
        _tflite_metadata_file.write(planted, describe(signature, told, name="digits"))
        *taken, blue, first = ask(mediapipe_python, [*files, planted], pictures, tmp_path)
        for id, found in zip(ids, taken, strict=False):
            assert "answers" in found, found
            assert same(bundle, id, found["answers"], pictures) > 0.8 * SHOWN
    # The model's own tensor has blue first and its channels first. The file tells of the one, and
    # MediaPipe sees the other for itself.
    assert "Only RGB" in blue["refused"]
    assert "1 x 3 x 16 x 16" in first["refused"]


def test_another_order_of_colours_is_seen(
    mediapipe_python: Path, uneven: Path, tmp_path: Path
) -> None:
    """The check can fail: pictures with red and blue swapped have other scores."""
    pictures = digits()[0][-SHOWN:]
    with Bundle.open(uneven) as bundle:
        file = bundle.place(bundle.artifact(id="tflite-w8a8-uint8"))
        (found,) = ask(mediapipe_python, [file], pictures[..., ::-1], tmp_path)
        with pytest.raises(AssertionError):
            same(bundle, "tflite-w8a8-uint8", found["answers"], pictures)


def test_it_makes_the_float_tensor_that_the_metadata_tells_of(
    mediapipe_python: Path, tmp_path: Path
) -> None:
    """One mean for all channels, and channels last: MediaPipe normalizes by NormalizationOptions.

    With other numbers for each channel it makes no float tensor; those models need io uint8.
    """
    model = trained(EVEN)
    pictures = digits()[0][-SHOWN:]
    bundles = [exported(model, ("float32",), tmp_path)]
    other = tmp_path / "other"
    other.mkdir()
    uneven = dataclasses.replace(EVEN, mean=(0.4, 0.5, 0.6))
    bundles.append(exported(dataclasses.replace(model, preprocess=uneven), ("float32",), other))
    with Bundle.open(bundles[0]) as bundle, Bundle.open(bundles[1]) as second:
        files = [b.place(b.artifact(id="tflite-w8a8")) for b in (bundle, second)]
        found, refused = ask(mediapipe_python, files, pictures, tmp_path)
        assert "answers" in found, found
        assert same(bundle, "tflite-w8a8", found["answers"], pictures) > 0.8 * SHOWN
    assert "Per-channel image normalization" in refused["refused"]


def test_it_takes_the_float_file_of_channels_last_and_gives_our_label(
    mediapipe_python: Path, tmp_path: Path
) -> None:
    """A model of blue first and channels first, by the file of io float32-nhwc.

    Without its NormalizationOptions it is refused, and with other numbers for each channel.
    """
    model = trained(FIRST)
    pictures = digits()[0][-SHOWN:]
    ids = ("tflite-fp32-float32-nhwc", "tflite-w8a8-float32-nhwc")
    other = tmp_path / "other"
    other.mkdir()
    uneven = dataclasses.replace(FIRST, mean=(0.4, 0.45, 0.5))
    second = exported(dataclasses.replace(model, preprocess=uneven), ("float32-nhwc",), other)
    with (
        Bundle.open(exported(model, ("float32-nhwc",), tmp_path)) as bundle,
        Bundle.open(second) as unlike,
    ):
        files = [bundle.place(bundle.artifact(id=id)) for id in ids]
        planted = tmp_path / "unnormalized.tflite"
        shutil.copyfile(files[0], planted)
        told = _tflite_metadata_file.read(planted)
        assert told is not None and told.inputs[0].mean == pytest.approx((0.45 * 255,) * 3)
        without = dataclasses.replace(told.inputs[0], mean=(), std=())
        _tflite_metadata_file.write(planted, dataclasses.replace(told, inputs=(without,)))
        files += [planted, unlike.place(unlike.artifact(id=ids[0]))]
        *taken, plain, channels = ask(mediapipe_python, files, pictures, tmp_path)
        for id, found in zip(ids, taken, strict=True):
            assert "answers" in found, found
            assert same(bundle, id, found["answers"], pictures) > 0.8 * SHOWN
        (swapped,) = ask(mediapipe_python, files[:1], pictures[..., ::-1], tmp_path)
        with pytest.raises(AssertionError):
            same(bundle, ids[0], swapped["answers"], pictures)
    assert "NormalizationOptions" in plain["refused"]
    assert "Per-channel image normalization" in channels["refused"]
