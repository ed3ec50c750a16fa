"""Sets of sounds to learn from: what augmentation does, and what it does not."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.train import TrainSettings, train
from edgekit.data import ArraySamples
from edgekit.data.training_sounds import SoundAugment, SoundSet, clips_of, recorded
from edgekit.errors import BadData
from edgekit.runtime.audio import AudioPreprocess
from edgekit.signature import Signature, TensorSpec

STEP = AudioPreprocess(samples=3200, mels=10)
ROWS = torch.tensor([4, 0, 2])


def _clips(n: int = 6) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(-9000, 9000, (n, 3200)).astype(np.int16)


def _set(how: SoundAugment | None = None, **more: Any) -> SoundSet:
    return SoundSet(_clips(), [0, 1, 0, 1, 0, 1], STEP, how=how, **more)


def _drawn(how: SoundAugment, seed: int = 0, **more: Any) -> torch.Tensor:
    return _set(how, **more).batch(ROWS, torch.Generator().manual_seed(seed))["sound"]


def test_without_a_generator_a_batch_is_what_a_device_makes() -> None:
    batch = _set(SoundAugment(shift_ms=50, noise=1.0)).batch(ROWS, None)
    want = np.concatenate([STEP.apply(_clips()[i]) for i in ROWS])
    assert np.array_equal(batch["sound"].numpy(), want)
    assert batch["y"].tolist() == [0, 0, 0] and batch["row"].tolist() == [4, 0, 2]


def test_augmentation_follows_from_the_generator() -> None:
    how = SoundAugment(shift_ms=50, gain_db=6, noise=0.5, mask_frames=3, mask_bands=3)
    assert torch.equal(_drawn(how), _drawn(how))
    assert not torch.equal(_drawn(how), _drawn(how, seed=1))
    assert torch.equal(_drawn(SoundAugment()), _set().batch(ROWS, None)["sound"])


def test_each_change_does_what_it_says() -> None:
    plain = _set().batch(ROWS, None)["sound"]
    louder = _drawn(SoundAugment(gain_db=6)) - plain
    # One factor for all of a clip: the same step in every logarithm.
    assert (louder.flatten(1).std(1) < 0.01).all() and (louder.abs() > 0.01).any()
    limit = 2 * 6 / 20 * np.log(10)
    assert float(louder.abs().max()) <= limit + 1e-3
    noisy = _drawn(SoundAugment(noise=1.0, noise_db=(0.0, 0.0)))
    assert 0.4 < float((noisy - plain).mean()) < 1.0  # twice the power: ln 2
    tone = (9000 * np.sin(np.arange(8000) * 0.3)).astype(np.int16)
    hummed = _drawn(SoundAugment(noise=1.0, noise_db=(-20.0, -20.0)), noises=[tone])
    band = int((hummed - plain).mean((0, 1, 2)).argmax())
    assert float((hummed - plain)[..., band].mean()) > 3
    moved = _drawn(SoundAugment(shift_ms=100))
    quiet = (moved < -12).all(dim=3).squeeze(1).sum(1)
    assert quiet.max() > 0 and quiet.max() <= 6
    masked = _drawn(SoundAugment(mask_frames=4, mask_bands=4, masks=2))
    means = plain.mean((1, 2, 3), keepdim=True)
    blotted = (masked != plain).float().mean()
    assert 0 < float(blotted) < 0.9
    assert torch.equal((masked != plain), (masked != plain) & ((masked - means).abs() < 1e-4))


def test_digests_tell_sets_apart() -> None:
    first = _set().digest
    assert first == _set().digest
    assert (
        len({first, _set(SoundAugment(noise=0.5)).digest, _set(noises=[_clips()[0]]).digest}) == 3
    )


def test_clips_come_out_of_samples_with_classes() -> None:
    signature = Signature((TensorSpec("sound", STEP.shape),), (TensorSpec("scores", (1, 2)),))
    about: dict[str, Any] = {"signature": signature, "preprocess": STEP}
    clips, labels = clips_of(ArraySamples({"sound": _clips()}, [0, 1] * 3, **about), STEP)
    assert np.array_equal(clips, _clips()) and labels.tolist() == [0, 1] * 3
    with pytest.raises(BadData, match="sample 0 has no class"):
        clips_of(ArraySamples({"sound": _clips()}, **about), STEP)
    with pytest.raises(BadData, match="wanted int16"):
        SoundSet(_clips() / 1.0, [0] * 6, STEP)  # type: ignore[arg-type]
    with pytest.raises(BadData, match="labels are"):
        SoundSet(_clips(), [0] * 5, STEP)


def test_recordings_of_a_folder_are_divided_by_name(tmp_path: Path) -> None:
    for word in ("no", "yes"):
        (tmp_path / word).mkdir()
        for i, clip in enumerate(_clips(30)):
            with wave.open(str(tmp_path / word / f"{i}.wav"), "wb") as file:
                file.setparams((1, 2, 16_000, 0, "NONE", ""))
                file.writeframes(clip.tobytes())
    learn, judge = (recorded(tmp_path, STEP, part=p) for p in ("train", "test"))  # type: ignore[arg-type]
    assert learn.classes == judge.classes == ("no", "yes")
    assert len(learn) + len(judge) == 60 and 2 <= len(judge) <= 22
    names = {learn.name(i) for i in range(len(learn))} & {judge.name(i) for i in range(len(judge))}
    assert not names
    few = recorded(tmp_path, STEP, part="train", labels=("yes", "no", "silence"), limit=5)
    assert len(few) == 5 and few.classes == ("yes", "no", "silence")
    assert {few.label(i) for i in range(5)} <= {0, 1}
    with pytest.raises(BadData, match="no folder or zip"):
        recorded(tmp_path / "no" / "0.wav", STEP, part="train")


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(STEP.frames * STEP.mels, 2)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        return self.linear(sound.flatten(1))


def test_training_on_sounds_is_repeatable_and_learns(tmp_path: Path) -> None:
    rng, t = np.random.default_rng(0), np.arange(3200) / 16_000
    tones = [np.sin(2 * np.pi * (400 + 1200 * (i % 2)) * t) * rng.uniform(0.1, 0.4)
             for i in range(32)]  # fmt: skip
    clips = (np.array(tones) * 32767).astype(np.int16)
    how = SoundAugment(shift_ms=20, noise=0.5)
    states = []
    for folder in ("one", "two"):
        data = SoundSet(clips, [i % 2 for i in range(32)], STEP, how=how)
        torch.manual_seed(0)
        module = _Net()
        settings = TrainSettings(epochs=4, batch=8, rate=1e-2, validation=0.25)
        made = train(module, data, settings, folder=tmp_path / folder)
        states.append(made.state)
        assert made.best == 100.0
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
