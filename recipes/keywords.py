"""Trains a keyword spotter (DS-CNN on log-mel features) and exports it, in int8.

    edgekit run keywords
    edgekit run keywords --data speech_commands/ -s 'recordings.words=["yes","no","stop"]'
    edgekit run keywords --data my-sounds/ --device pixel-8 -s train.epochs=30

Without ``--data`` the words are synthesized (`edgekit.data.speech`): ten keywords, silence, and
other words, by speakers of whom the test set knows none. That shows that everything works, not how
well people are understood. ``--data`` takes a folder or zip of WAV files by class, with ``train/``
and ``test/`` in it or without, or Speech Commands as it is unpacked.

The features (window, bands, mean and standard deviation) are part of the model: they go into the
bundle, and a device computes the same. References: Zhang et al., "Hello Edge: Keyword Spotting on
Microcontrollers", 2017 (arXiv:1711.07128); Warden, "Speech Commands", 2018 (arXiv:1804.03209); Park
et al., "SpecAugment", 2019 (arXiv:1904.08779).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit import AudioPreprocess, Bundle, Device, ExportRequest, Model, Settings, stage
from edgekit.compress.state import state_of
from edgekit.compress.train import TrainSettings, accuracy, train
from edgekit.data import ArraySamples, speech
from edgekit.data.sounds import NOISE
from edgekit.data.training_sounds import SoundAugment, SoundSet, clips_of, recorded
from edgekit.errors import BadData, EdgekitError
from edgekit.recipe import Run, export
from edgekit.report import collect

INPUT = "sound"


class Recordings(Settings):
    """What is learned from and judged by.

    Attributes:
        words: of the classes in ``--data`` these, ``silence`` and ``unknown`` for all others; for
            Speech Commands' layout. Empty takes every class folder.
        limit: recordings of a split at most; in memory a second takes 32 kB.
        train_each, test_each: synthesized recordings of each class, where there is no ``--data``.
    """

    words: tuple[str, ...] = ()
    limit: int = 30_000
    train_each: int = 150
    test_each: int = 50


class Features(Settings):
    """What the network sees; see `AudioPreprocess`. ``clip_ms``, ``window_ms`` and ``hop_ms`` are
    milliseconds."""

    sample_rate: int = 16_000
    clip_ms: int = 1000
    window_ms: int = 40
    hop_ms: int = 20
    mels: int = 40


class Network(Settings):
    """DS-CNN: channels, and depthwise separable blocks after the first convolution."""

    channels: int = 64
    blocks: int = 4
    dropout: float = 0.2


class Config(Settings):
    """All settings of the recipe.

    Attributes:
        devices: what it is exported for, unless ``--device`` says.
        targets: runtimes to export for; empty means all that the devices run.
        max_drop: gate: accuracy lost to int8, in points at most.
        bench: whether latency and memory are measured.
    """

    recordings: Recordings = Recordings()
    features: Features = Features()
    network: Network = Network()
    augment: SoundAugment = SoundAugment(
        shift_ms=100, gain_db=6, noise=0.5, noise_db=(5, 25), mask_frames=8, mask_bands=6
    )
    train: TrainSettings = TrainSettings(
        epochs=14, batch=64, rate=5e-3, schedule="one-cycle", smoothing=0.05, channels_last=True
    )
    devices: tuple[str, ...] = ("pixel-8", "raspberry-pi-5", "android-low-end", "iphone-15-pro")
    targets: tuple[str, ...] = ()
    max_drop: float = 1.0
    bench: bool = True


# -- data -----------------------------------------------------------------------------------------


@stage
def recordings(cfg: Config, data: Path | None, run: Run) -> dict[str, Any]:
    """Clips and classes of both splits, and noises to mix in."""
    step = preprocess(cfg.features)
    if data is None:
        return synthesized(cfg.recordings, step)
    train_x, train_y, labels = read(data, step, cfg.recordings, "train")
    test_x, test_y, found = read(data, step, cfg.recordings, "test")
    if labels != found:
        raise BadData(f"{data}: the splits differ in their classes: {labels} and {found}")
    noises = read_noises(data, step)
    if cfg.recordings.words and noises:
        train_x, train_y = with_silence(train_x, train_y, labels, noises[::2], seed=0)
        test_x, test_y = with_silence(test_x, test_y, labels, noises[1::2] or noises, seed=1)
    run.note(f"{len(train_x)} recordings to learn from, {len(test_x)} to judge by")
    return {
        "train": train_x, "train_y": train_y, "test": test_x, "test_y": test_y,
        "labels": list(labels), "noises": noises[::2],
    }  # fmt: skip


def preprocess(features: Features) -> AudioPreprocess:
    """The features without their statistics."""
    rate = features.sample_rate
    window, hop = (rate * ms // 1000 for ms in (features.window_ms, features.hop_ms))
    return AudioPreprocess(
        sample_rate=rate,
        samples=rate * features.clip_ms // 1000,
        window=window,
        hop=hop,
        fft=1 << (window - 1).bit_length(),
        mels=features.mels,
    )


def synthesized(settings: Recordings, step: AudioPreprocess) -> dict[str, Any]:
    """Words spoken by nobody, at the model's rate and length."""
    made: dict[str, Any] = {"labels": list(speech.LABELS)}
    for split, each in (("train", settings.train_each), ("test", settings.test_each)):
        clips, made[f"{split}_y"] = speech.spoken(split, each)
        sounds = (step.clip(clip, speech.RATE) for clip in clips)
        made[split] = np.stack([as_int16(sound) for sound in sounds])
    rng = np.random.default_rng(2)
    noises = [speech.background(4 * speech.RATE, rng) * 0.05 for _ in range(12)]
    whole = replace(step, samples=4 * step.sample_rate)
    return made | {"noises": [as_int16(whole.clip(noise, speech.RATE)) for noise in noises]}


def read(
    data: Path, step: AudioPreprocess, settings: Recordings, part: Any
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The clips, classes and labels of one part of a folder or zip."""
    labels = (*settings.words, "silence", "unknown") if settings.words else ()
    samples = recorded(data, step, part=part, labels=labels, limit=settings.limit)
    clips, classes = clips_of(samples, step)
    if labels:
        clips, classes = with_fewer_unknown(clips, classes, labels.index("unknown"))
    return clips, classes, samples.classes


def with_fewer_unknown(
    clips: np.ndarray, classes: np.ndarray, unknown: int
) -> tuple[np.ndarray, np.ndarray]:
    """As many words of the class ``unknown`` as there are of a keyword on average."""
    others = classes != unknown
    each = max(1, int(others.sum()) // max(1, len(set(classes[others].tolist()))))
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(~others))[:each]
    kept = np.sort(np.concatenate([np.flatnonzero(others), chosen]))
    return clips[kept], classes[kept]


def with_silence(
    clips: np.ndarray, classes: np.ndarray, labels: tuple[str, ...], noises: list[Any], *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """With parts of the noises as a class, as many as there are of the others on average."""
    rng, length = np.random.default_rng(seed), clips.shape[1]
    each = len(clips) // max(1, len(set(classes.tolist())))
    quiet = np.empty((each, length), np.int16)
    for row in quiet:
        noise = noises[int(rng.integers(len(noises)))]
        start = int(rng.integers(max(1, len(noise) - length)))
        row[:] = np.resize(noise[start : start + length] * rng.random(), length)
    silence = np.full(each, labels.index("silence"))
    return np.concatenate([clips, quiet]), np.concatenate([classes, silence])


def read_noises(data: Path, step: AudioPreprocess) -> list[np.ndarray]:
    """Recordings in ``_background_noise_``, whole, at the model's rate; none in a zip."""
    noises = []
    for file in sorted(data.glob(f"**/{NOISE}/*.wav")) if data.is_dir() else ():
        wav = step.decode(file)
        length = -(-len(wav.samples) * step.sample_rate // wav.rate)
        whole = replace(step, samples=max(length, step.samples))
        noises.append(as_int16(whole.clip(wav.samples, wav.rate)))
    return noises


def as_int16(sound: np.ndarray) -> np.ndarray:
    """Samples of -1 to 1 as 16-bit integers."""
    return np.rint(sound * 32768).clip(-32768, 32767).astype(np.int16)


# -- model ----------------------------------------------------------------------------------------


def network(settings: Network, classes: int) -> nn.Module:
    """An untrained DS-CNN for features ``[N, 1, frames, bands]``; gives scores ``[N, classes]``."""
    width = settings.channels

    def layer(before: int, kernel: tuple[int, int], **options: Any) -> list[nn.Module]:
        convolution = nn.Conv2d(before, width, kernel, bias=False, **options)
        return [convolution, nn.BatchNorm2d(width), nn.ReLU()]

    layers = layer(1, (10, 4), stride=2, padding=(5, 1))
    for _ in range(settings.blocks):
        layers += layer(width, (3, 3), padding=1, groups=width)
        layers += layer(width, (1, 1))
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(settings.dropout)]
    return nn.Sequential(*layers, *pooled, nn.Linear(width, classes))


class Spotter(nn.Module):
    """The network, which takes its input by name."""

    def __init__(self, settings: Network, classes: int) -> None:
        super().__init__()
        self.net = network(settings, classes)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.net(sound)
        return scores


@stage(threads=1)
def trained(recordings: dict[str, Any], cfg: Config, run: Run) -> dict[str, Any]:
    """The network, trained, with the statistics of its features."""
    step, labels = preprocess(cfg.features), recordings["labels"]
    clips = recordings["train"]
    # A few hundred recordings tell the mean and the deviation of all.
    some = np.stack([step.apply(clip) for clip in clips[:: max(1, len(clips) // 500)]])
    step = replace(step, mean=(round(float(some.mean()), 4),), std=(round(float(some.std()), 4),))
    learn = SoundSet(
        clips,
        recordings["train_y"],
        step,
        how=cfg.augment,
        noises=recordings["noises"],
        name=INPUT,
        classes=labels,
    )
    torch.manual_seed(cfg.train.seed)
    module = Spotter(cfg.network, len(labels))
    train(module, learn, cfg.train, folder=run.folder, watch=run)
    judge = SoundSet(recordings["test"], recordings["test_y"], step, name=INPUT)
    top1 = accuracy(module, judge, torch.arange(len(judge)))
    run.note(f"float: {top1:.2f} % of {len(judge)} test recordings")
    return {"state": state_of(module), "preprocess": step.to_json(), "labels": labels, "top1": top1}


def model_of(trained: Mapping[str, Any], settings: Network) -> Model:
    """The trained network with its features and labels."""
    step = AudioPreprocess.from_json(trained["preprocess"])
    module = Spotter(settings, len(trained["labels"]))
    module.load_state_dict(trained["state"])
    return Model.from_module(
        module.eval(),
        {INPUT: torch.zeros(step.shape)},
        name="keyword",
        preprocess=step,
        labels=trained["labels"],
    )


# -- export ---------------------------------------------------------------------------------------


def samples(model: Model, recordings: Mapping[str, Any], part: str) -> ArraySamples:
    """The clips of a part as what the model is calibrated with or judged by."""
    return ArraySamples(
        {INPUT: recordings[part]},
        recordings[f"{part}_y"],
        signature=model.signature,
        preprocess=model.preprocess,
        source=f"recordings, {part}",
    )


@stage
def exported(
    trained: dict[str, Any],
    recordings: dict[str, Any],
    cfg: Config,
    devices: tuple[Device, ...],
    run: Run,
) -> Path:
    """The bundle: quantized once, converted, run in every runtime, held against float, measured."""
    model = model_of(trained, cfg.network)
    export(
        model,
        ExportRequest(
            devices=tuple(device.id for device in devices),
            targets=cfg.targets,
            calib=samples(model, recordings, "train"),
            evaluation=samples(model, recordings, "test"),
            max_drop=cfg.max_drop,
            bench=cfg.bench,
        ),
        run,
    )
    return run.out


@stage
def replayed(exported: Path, run: Run) -> list[dict[str, Any]]:
    """The bundle opened as a device does it: golden recordings through its own features."""
    if not (exported / "bundle").exists():
        run.gate("golden", None, "a gate did not hold, so there is no bundle")
        return []
    rows = []
    with Bundle.open(exported / "bundle") as bundle:
        for artifact in bundle.artifacts:
            try:
                session = bundle.session(artifact)
            except EdgekitError as error:
                run.gate(f"golden {artifact.id}", None, error.message)
                continue
            found = bundle.check_golden(session)
            session.close()
            worst = min(found.sqnr_db.values())
            text = f"{worst:.1f} dB of {found.limit_db:.0f}, {found.sounds} from their recordings"
            run.gate(f"golden {artifact.id}", found.passed, text)
            # Equal answers have no noise, and infinity is no JSON.
            ratio = worst if math.isfinite(worst) else None
            rows.append({"id": artifact.id, "passed": found.passed, "sqnr_db": ratio})
    return rows


@stage
def answers(trained: dict[str, Any], recordings: dict[str, Any], cfg: Config, run: Run) -> Path:
    """What the model confuses, for the report."""
    model = model_of(trained, cfg.network)
    return collect(model, samples(model, recordings, "test"), run.out, watch=run)


if __name__ == "__main__":
    from edgekit.cli.main import main

    sys.exit(main(["run", __file__, *sys.argv[1:]]))
