"""Folders and zips of recordings: splits, classes, and errors that name the file."""

from __future__ import annotations

import io
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.data import ArraySamples, load, load_pair, sound_of
from edgekit.errors import BadData
from edgekit.model import Model
from edgekit.runtime.audio import AudioPreprocess

STEP = AudioPreprocess(samples=1600, mels=10)
WORDS = ("no", "yes")


def _model(labels: tuple[str, ...] = WORDS, step: AudioPreprocess = STEP) -> Model:
    inside = step.shape[2] * step.shape[3]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inside, len(labels)))
    example = {"input": torch.zeros(step.shape)}
    return Model.from_module(net, example, preprocess=step, labels=labels)


def _wav(seed: int, n: int = 1600, rate: int = 16_000) -> bytes:
    values = np.random.default_rng(seed).integers(-9000, 9000, n).astype("<i2")
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.tobytes())
    return sink.getvalue()


def _write(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_wav(seed))
    return root


def _labels(path: Path, split: str, labels: tuple[str, ...] = WORDS) -> list[int | None]:
    model = _model(labels)
    found = load(path, signature=model.signature, preprocess=model.preprocess, split=split)  # type: ignore[arg-type]
    return [found.label(i) for i in range(len(found))]


def test_split_folders_are_kept_in_folders_and_zips(tmp_path: Path) -> None:
    root = _write(
        tmp_path / "words",
        *(f"train/{w}/{i}.wav" for w in WORDS for i in range(3)),
        *(f"test/{w}/{i}.WAV" for w in WORDS for i in range(2)),
    )
    (root / "train/no/notes.txt").write_text("not a sound")
    zipped = Path(shutil.make_archive(str(tmp_path / "words"), "zip", root))
    for path in (root, zipped):
        assert _labels(path, "calib") == [0, 0, 0, 1, 1, 1]
        assert _labels(path, "eval") == [0, 0, 1, 1]
    model = _model()
    about = {"signature": model.signature, "preprocess": STEP, "split": "eval"}
    one, other = load(root, **about), load(zipped, **about)  # type: ignore[arg-type]
    assert one.digest == other.digest
    assert np.array_equal(one.feed(3)["input"], other.feed(3)["input"])
    want = STEP.apply(STEP.decode(root / "test/yes/1.WAV").samples)
    assert np.array_equal(one.feed(3)["input"], want)
    sound = sound_of(one, 3)
    assert sound is not None and sound.rate == 16_000 and sound.samples.shape == (1600, 1)


def test_without_splits_roles_have_nothing_in_common(tmp_path: Path) -> None:
    root = _write(tmp_path, *(f"{w}/{i}.wav" for w in WORDS for i in range(20)))
    model = _model()
    calib, held = load_pair(root, None, signature=model.signature, preprocess=STEP)
    assert len(calib) + len(held) == 40 and len(calib) < len(held)
    seen = {calib.feed(i)["input"].tobytes() for i in range(len(calib))}
    assert not seen & {held.feed(i)["input"].tobytes() for i in range(len(held))}


def test_speech_commands_layout(tmp_path: Path) -> None:
    root = _write(
        tmp_path / "sc",
        "_background_noise_/rain.wav",
        *(f"{w}/{i}.wav" for w in ("no", "tree", "yes") for i in range(4)),
    )
    (root / "validation_list.txt").write_text("no/0.wav\ntree/0.wav\n")
    (root / "testing_list.txt").write_text("yes/1.wav\ntree/1.wav\n")
    labels = ("no", "yes", "unknown")
    assert _labels(root, "eval", labels) == [2, 1]
    assert _labels(root, "calib", labels) == [0, 0, 0, 2, 2, 1, 1, 1]
    around = tmp_path / "around"
    shutil.copytree(root, around / "sc")
    assert _labels(around, "eval", labels) == [2, 1]
    with pytest.raises(BadData, match="'tree' is none of the model's 2 labels"):
        _labels(root, "eval")
    (root / "testing_list.txt").write_text("yes/1.wav\nyes/99.wav\n")
    with pytest.raises(BadData, match=r"lists 'yes/99.wav' \(1 such\), which is absent"):
        _labels(root, "eval", labels)
    (root / "testing_list.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(BadData, match="no UTF-8"):
        _labels(root, "eval", labels)


def test_a_broken_recording_is_named(tmp_path: Path) -> None:
    root = _write(tmp_path, "test/no/a.wav", "test/yes/b.wav")
    (root / "test/yes/b.wav").write_bytes(_wav(0)[:-7])
    model = _model()
    found = load(root, signature=model.signature, preprocess=STEP, split="eval")
    with pytest.raises(BadData, match=r"test/yes/b.wav: .* cut off: chunk 'data'"):
        found.feed(1)
    strict = AudioPreprocess(samples=1600, mels=10, resample="none")
    (root / "test/yes/b.wav").write_bytes(_wav(0, rate=8000))
    found = load(root, signature=model.signature, preprocess=strict, split="eval")
    with pytest.raises(BadData, match=r"test/yes/b.wav: the recording has 8000 Hz"):
        found.feed(1)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = _model()
    about = {"signature": model.signature, "preprocess": STEP, "split": "calib"}
    (tmp_path / "none").mkdir()
    (tmp_path / "none/a.mp3").write_bytes(b"x")
    with pytest.raises(BadData, match=r"holds no sounds \(.wav\)"):
        load(tmp_path / "none", **about)  # type: ignore[arg-type]
    _write(tmp_path / "typo", "yse/0.wav", "no/0.wav")
    with pytest.raises(BadData, match=r"'yse' is none of the model's 2 labels.*mean 'yes'"):
        load(tmp_path / "typo", **about)  # type: ignore[arg-type]
    _write(tmp_path / "loose", "no/0.wav", "stray.wav")
    with pytest.raises(BadData, match=r"stray.wav lies outside the class folders \(1 such sounds"):
        load(tmp_path / "loose", **about)  # type: ignore[arg-type]


def test_arrays_of_sounds_go_through_the_preprocessing() -> None:
    model = _model()
    sounds = np.random.default_rng(0).integers(-9000, 9000, (3, 1600)).astype(np.int16)
    about = {"signature": model.signature, "preprocess": STEP}
    found = ArraySamples({"input": sounds}, [0, 1, 0], **about)  # type: ignore[arg-type]
    assert np.array_equal(found.feed(1)["input"], STEP.apply(sounds[1]))
    sound = sound_of(found, 1)
    assert sound is not None and np.array_equal(sound.samples[:, 0], sounds[1])
    made = ArraySamples({"input": found.feed(1)["input"]}, **about)  # type: ignore[arg-type]
    assert sound_of(made, 0) is None
