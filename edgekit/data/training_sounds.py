"""Sets of sounds to learn from: recordings changed a little, and their features.

    learn = SoundSet(clips, labels, preprocess, how=SoundAugment(shift_ms=100, mask_bands=8))
    train(module, learn, TrainSettings(validation=0.1))

A batch without augmentation is what the device makes of the same recordings, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from edgekit.data.checks import check_labels
from edgekit.data.samples import Role, Samples, SampleSet, draw, sound_of
from edgekit.data.sounds import SoundSamples, read_sounds
from edgekit.data.training_pictures import split_by_name
from edgekit.errors import BadData
from edgekit.runtime.audio import AudioPreprocess
from edgekit.settings import Settings
from edgekit.signature import Signature, TensorSpec

__all__ = ["SoundAugment", "SoundSet", "clips_of", "recorded"]

Part = Literal["train", "test"]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class SoundAugment(Settings):
    """How recordings are changed; everything is off by default, and done in this order.

    Attributes:
        shift_ms: largest move in time, either way, in milliseconds; zeros come in.
        gain_db: largest change of loudness, either way, in dB.
        noise: how often noise is added, 0 to 1: a part of the set's noises, or white where it has
            none.
        noise_db: the least and the most that the noise lies below the recording, in dB.
        mask_frames: the most frames of a block that is blotted out with the mean (SpecAugment: Park
            et al., 2019, arXiv:1904.08779).
        mask_bands: the most bands of such a block.
        masks: how many blocks of each.
    """

    shift_ms: NotNegative = 0.0
    gain_db: NotNegative = 0.0
    noise: Share = 0.0
    noise_db: tuple[float, float] = (0.0, 20.0)
    mask_frames: Count = 0
    mask_bands: Count = 0
    masks: Count = 1


class SoundSet:
    """Recordings in memory, of which features are made batch by batch.

    Args:
        clips: int16 ``[n, samples]`` at the model's rate.
        labels: class indices ``[n]``.
        preprocess: what makes features of them.
        how: augmentation.
        noises: recordings of noise, int16 ``[samples]`` each, at the model's rate.
        name: of the model's input.
        classes: names of the classes.
        source: where the recordings come from, for people.

    Raises:
        BadData: no int16 clips, as many labels, or a label that is no class.
    """

    threaded = True

    def __init__(
        self,
        clips: npt.NDArray[np.int16],
        labels: npt.ArrayLike,
        preprocess: AudioPreprocess,
        *,
        how: SoundAugment | None = None,
        noises: Sequence[npt.NDArray[np.int16]] = (),
        name: str = "sound",
        classes: Sequence[str] = (),
        source: str = "memory",
    ) -> None:
        if clips.dtype != np.int16 or clips.ndim != 2 or not clips.size:
            raise BadData(f"{source}: clips are {clips.dtype} {clips.shape}; wanted int16 [n, m]")
        self.source, self.classes = source, tuple(classes)
        self.labels = torch.from_numpy(check_labels(labels, len(clips), None, source))
        self._clips, self._step, self._name = clips, preprocess, name
        self._how = how or SoundAugment()
        self._noises = [n for n in noises if len(n)]

    def __len__(self) -> int:
        return len(self._clips)

    @property
    def digest(self) -> str:
        """sha256 of clips, labels, noises, preprocessing and augmentation."""
        total = hashlib.sha256(repr((self._step, self._how.model_dump())).encode())
        for array in (self._clips, self.labels.numpy(), *self._noises):
            total.update(f"{array.dtype}{array.shape}".encode())
            total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """See `edgekit.compress.train.TrainSet`."""
        clips = [self._clips[i] for i in rows.tolist()]
        rng = None if generator is None else _rng(generator)
        made = [self._features(clip, rng) for clip in clips]
        features = torch.from_numpy(np.concatenate(made))
        return {self._name: features, "y": self.labels[rows], "row": rows}

    def _features(
        self, clip: npt.NDArray[np.int16], rng: np.random.Generator | None
    ) -> npt.NDArray[np.float32]:
        if rng is None:
            return self._step.apply(clip)
        made = self._step.apply(self._changed(clip, rng))
        if self._how.mask_frames or self._how.mask_bands:
            self._mask(made, rng)
        return made

    def _changed(
        self, clip: npt.NDArray[np.int16], rng: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        how, n = self._how, len(clip)
        sound = clip / 32768.0
        most = min(n - 1, int(how.shift_ms / 1000 * self._step.sample_rate))
        shift = int(rng.integers(-most, most + 1))
        moved = np.zeros(n)
        moved[max(0, shift) : n + min(0, shift)] = sound[max(0, -shift) : n - max(0, shift)]
        moved *= 10 ** (rng.uniform(-how.gain_db, how.gain_db) / 20)
        if rng.random() < how.noise:
            below = 10 ** (-rng.uniform(*how.noise_db) / 20)
            noise = self._noise(n, rng)
            moved += noise * (below * _power(moved) / max(1e-9, _power(noise)))
        return moved

    def _noise(self, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        if not self._noises:
            return rng.normal(size=n)
        noise = self._noises[int(rng.integers(len(self._noises)))]
        start = int(rng.integers(max(1, len(noise) - n)))
        return np.resize(noise[start : start + n] / 32768.0, n)

    def _mask(self, made: npt.NDArray[np.float32], rng: np.random.Generator) -> None:
        shape = (self._step.frames, self._step.mels)
        plane = made.reshape(shape[::-1]).T if self._step.layout == "NCT" else made.reshape(shape)
        mean = plane.mean()
        for _ in range(self._how.masks):
            for axis, most in enumerate((self._how.mask_frames, self._how.mask_bands)):
                width = int(rng.integers(min(most, shape[axis]) + 1))
                start = int(rng.integers(shape[axis] - width + 1))
                block = slice(start, start + width)
                plane[(block, slice(None)) if axis == 0 else (slice(None), block)] = mean


def recorded(
    path: str | Path,
    preprocess: AudioPreprocess,
    *,
    part: Part,
    labels: Sequence[str] = (),
    test: float = 0.2,
    limit: int | None = None,
) -> SoundSamples:
    """The recordings of one part of a folder or zip of WAV files (`edgekit.data.sounds`).

    Args:
        path: the folder or zip.
        preprocess: of the model that they are for.
        part: ``train`` or ``test``, by the folders or lists in it; where there are none, by
            `edgekit.data.training.split_by_name`.
        labels: the classes. Without, they are the class folders, in the order of names.
        test: the part of the recordings that is for testing, where their names decide.
        limit: at most so many, drawn without regard to order.

    Returns:
        Samples, with ``classes``.

    Raises:
        BadData: see `edgekit.data.load`; or none fall to the part.
        UsageError: ``limit`` is below 1.
    """
    shape = (1, len(labels)) if labels else (1,)
    scores = TensorSpec("scores", shape, labels=tuple(labels))
    signature = Signature((TensorSpec("sound", preprocess.shape),), (scores,))
    where = Path(path).expanduser()
    if not (where.is_dir() or where.suffix.lower() == ".zip"):
        raise BadData(f"{where} is no folder or zip of WAV files")
    role: Role = "calib" if part == "train" else "eval"
    samples, own = read_sounds(where, signature, preprocess, role)
    found: SampleSet = samples if own else split_by_name(samples, part, test)
    found = found if limit is None else draw(found, limit, 0)
    assert isinstance(found, SoundSamples)
    return found


def clips_of(
    samples: Samples, preprocess: AudioPreprocess
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Recordings with a class as clips of the model's rate and length.

    Args:
        samples: recordings (`edgekit.data.load` of a folder of WAV files).
        preprocess: of the model.

    Returns:
        int16 ``[n, samples]``, rounded where it was resampled, and classes int64 ``[n]``.

    Raises:
        BadData: a sample has no recording or no class, or a recording cannot be read.
    """
    clips = np.empty((len(samples), preprocess.samples), np.int16)
    labels = np.empty(len(samples), np.int64)
    for i in range(len(samples)):
        sound, label = sound_of(samples, i), samples.label(i)
        if sound is None or label is None:
            missing = "recording" if sound is None else "class"
            raise BadData(f"{samples.source}: sample {i} has no {missing}")
        clip = preprocess.clip(sound.samples, sound.rate)
        clips[i] = np.rint(clip * 32768).clip(-32768, 32767).astype(np.int16)
        labels[i] = label
    return clips, labels


def _rng(generator: torch.Generator) -> np.random.Generator:
    """Draws that follow from the generator's next number."""
    seed = torch.randint(0, 2**62, (1,), generator=generator)
    return np.random.default_rng(int(seed))


def _power(x: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(x).mean()))
