"""Log-mel features against transformers' and scipy's, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.errors import BadData
from edgekit.model import Model
from edgekit.runtime.audio import AudioPreprocess
from edgekit.runtime.golden_sounds import from_sounds, pack_sounds, sound_input, unpack_sounds
from edgekit.runtime.logmel import resampled
from edgekit.runtime.preprocess import preprocess_from_json
from edgekit.runtime.wav import Wav
from edgekit.signature import Signature, TensorSpec

STEPS = [
    AudioPreprocess(),
    AudioPreprocess(scale="slaney", area=True, window=400, hop=160, fft=400, mels=80, fmin=0.0),
    AudioPreprocess(framing="centered", window=400, hop=160, fft=512, power=1, fmax=7600.0),
    AudioPreprocess(samples=16_001, framing="centered", window=511, hop=333, scale="slaney"),
    AudioPreprocess(sample_rate=8000, samples=6000, window=240, hop=80, fft=256, mels=20),
]


def _sound(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """A sweep in noise, which no band is deaf to."""
    t = np.arange(n) / 16_000
    noise = np.random.default_rng(seed).normal(size=n)
    return 0.3 * np.sin(2 * np.pi * (100 + 3000 * t) * t) + 0.05 * noise


def _theirs(step: AudioPreprocess, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    audio = pytest.importorskip("transformers.audio_utils")
    filters = audio.mel_filter_bank(
        num_frequency_bins=step.fft // 2 + 1,
        num_mel_filters=step.mels,
        min_frequency=step.fmin,
        max_frequency=step.top,
        sampling_rate=step.sample_rate,
        norm="slaney" if step.area else None,
        mel_scale=step.scale,
    )
    # Their frames are as long as the transform; ours, where whole, as the window.
    window, long = audio.window_function(step.window, "hann", periodic=True), step.fft
    if step.framing == "centered":
        window = audio.window_function(step.window, "hann", periodic=True, frame_length=long)
    mel = audio.spectrogram(
        x,
        window,
        frame_length=len(window),
        hop_length=step.hop,
        fft_length=step.fft,
        power=float(step.power),
        center=step.framing == "centered",
        mel_filters=filters,
        mel_floor=0.0,
        dtype=np.float64,
    )
    return np.log(mel.T + step.log_offset)


@pytest.mark.parametrize("step", STEPS)
def test_log_mel_equals_that_of_transformers(step: AudioPreprocess) -> None:
    x = _sound(step.samples)
    want = _theirs(step, x)
    got = step.apply(x)
    assert got.dtype == np.float32
    assert got.shape == step.shape == (1, 1, *want.shape)
    # Theirs is in complex64 halfway; ours in double precision.
    np.testing.assert_allclose(got[0, 0], want, atol=2e-4)


@pytest.mark.parametrize("step", STEPS)
def test_log_mel_equals_the_sums_of_its_definition(step: AudioPreprocess) -> None:
    """A frame by the discrete Fourier transform's own sum, and torch.stft for where frames lie."""
    x = _sound(step.samples)
    hann = torch.hann_window(step.window, periodic=True, dtype=torch.float64)
    stft = torch.stft(
        torch.from_numpy(x),
        step.fft if step.framing == "centered" else step.window,
        step.hop,
        step.window,
        hann,
        center=step.framing == "centered",
        return_complex=True,
    )
    got = step.apply(x)[0, 0]
    assert got.shape[0] == stft.shape[1] == step.frames
    bins = np.arange(step.fft // 2 + 1)
    frame = 3
    start = frame * step.hop
    if step.framing == "centered":
        start -= step.fft // 2 - (step.fft - step.window) // 2
    assert start > 0
    part = x[start : start + step.window] * hann.numpy()
    wave = np.exp(-2j * np.pi * np.outer(bins, np.arange(step.window)) / step.fft)
    energy = np.abs(wave @ part) ** step.power
    want = np.log(energy @ step._filters + step.log_offset)
    np.testing.assert_allclose(got[frame], want, rtol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"), [(44_100, 16_000), (48_000, 16_000), (8000, 16_000), (22_050, 8000), (11, 7)]
)
def test_resampling_equals_scipys(old: int, new: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    x = _sound(3001)
    common = int(np.gcd(old, new))
    want = signal.resample_poly(x, new // common, old // common)
    np.testing.assert_allclose(resampled(x, old, new, 0, len(want)), want, atol=1e-13)
    # A part is that part of the whole; beyond the end there is silence.
    part = resampled(x, old, new, len(want) - 40, 60)
    np.testing.assert_allclose(part, [*want[-40:], *[0.0] * 20], atol=1e-13)


def test_integers_floats_and_channels_say_the_same() -> None:
    step = AudioPreprocess()
    whole = np.round(_sound(16_000) * 32767).clip(-32768, 32767).astype(np.int16)
    want = step.apply(whole)
    assert np.array_equal(step.apply(whole.astype(np.int32) << 16), want)
    assert np.array_equal(step.apply(whole / 32768.0), want)
    assert np.array_equal(step.apply((whole / 32768.0).astype(np.float32)), want)
    assert np.array_equal(step.apply(np.stack([whole, whole], 1)), want)
    left = np.stack([whole, np.zeros_like(whole)], 1)
    assert np.array_equal(step.apply(left), step.apply(whole / 65536.0))


@pytest.mark.parametrize(("fit", "at"), [("start", 0), ("middle", 250)])
def test_a_clip_is_cut_or_filled(fit: Any, at: int) -> None:
    step = AudioPreprocess(samples=500, fit=fit)
    x = _sound(1000)
    assert np.array_equal(step.clip(x), x[at : at + 500])
    short = _sound(100)
    before = 0 if fit == "start" else 200
    want = np.concatenate([np.zeros(before), short, np.zeros(400 - before)])
    assert np.array_equal(step.clip(short), want)
    # At another rate the same moment is kept.
    twice = step.clip(resampled(x, 16_000, 32_000, 0, 2000), 32_000)
    assert np.abs(twice[50:-50] - step.clip(x)[50:-50]).max() < 0.1


@pytest.mark.parametrize("rate", [16_000, 44_100, 8000, 16_001])
@pytest.mark.parametrize("fit", ["start", "middle"])
def test_a_clip_of_a_long_recording_is_that_of_the_whole(rate: int, fit: Any) -> None:
    step = AudioPreprocess(samples=500, fit=fit)
    x = _sound(3 * rate)
    whole = resampled(x, rate, 16_000, 0, -(-len(x) * 16_000 // rate))
    assert np.array_equal(step.clip(x, rate), step.clip(whole))


def test_layouts_hold_the_same_values_and_statistics_are_per_band() -> None:
    step = AudioPreprocess(mels=10)
    x = _sound(16_000)
    plain = step.apply(x)[0, 0]
    assert np.array_equal(replace(step, layout="NHWC").apply(x)[0, :, :, 0], plain)
    assert np.array_equal(replace(step, layout="NTC").apply(x)[0], plain)
    assert np.array_equal(replace(step, layout="NCT").apply(x)[0], plain.T)
    for layout in ("NCHW", "NHWC", "NTC", "NCT"):
        made = replace(step, layout=layout)
        assert made.apply(x).shape == made.shape
    mean, std = tuple(float(i) for i in range(10)), tuple(1.0 + i for i in range(10))
    scaled = replace(step, mean=mean, std=std).apply(x)[0, 0]
    np.testing.assert_allclose(scaled, (plain - mean) / std, rtol=1e-5, atol=1e-5)


def test_json_goes_there_and_back() -> None:
    step = AudioPreprocess(fmax=7000.0, mean=(1.5,), std=(2.5,), layout="NHWC")
    data = json.loads(json.dumps(step.to_json()))
    assert data["kind"] == "audio"
    assert preprocess_from_json(data) == step
    for wrong in ({**data, "extra": 1}, {k: v for k, v in data.items() if k != "hop"}):
        with pytest.raises(BadData, match="lacks or does not know"):
            preprocess_from_json(wrong)
    with pytest.raises(BadData, match="allowed: image, text, audio"):
        preprocess_from_json({"kind": "smell"})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sample_rate": 0}, "sample_rate is 0"),
        ({"fft": 511}, "even number"),
        ({"fft": 400}, "preprocess window is 480"),
        ({"samples": 300}, "too short for one frame"),
        ({"samples": 256, "framing": "centered", "window": 100}, "too short for one frame"),
        ({"hop": True}, "hop is True"),
        ({"scale": "bark"}, "allowed: htk, slaney"),
        ({"power": 3}, "allowed: 1, 2"),
        ({"fmax": 9000.0}, "half the sample rate"),
        ({"fmin": float("nan")}, "finite"),
        ({"mels": 400}, "always be empty"),
        ({"log_offset": 0.0}, "above 0"),
        ({"std": (0.0,)}, "above 0"),
        ({"mean": (1.0, 2.0)}, "wanted 1, or 40"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadData, match=words):
        AudioPreprocess(**fields)


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (np.zeros(0, np.int16), "empty"),
        (np.zeros((5, 0), np.int16), "wanted int16"),
        (np.zeros((2, 3, 4), np.float32), "wanted int16"),
        (np.zeros(9, np.uint8), "uint8"),
        (np.array([0.0, np.nan]), "NaN"),
    ],
)
def test_recordings_are_checked(sound: np.ndarray[Any, Any], words: str) -> None:
    with pytest.raises(BadData, match=words):
        AudioPreprocess().apply(sound)


def test_another_rate_may_be_refused() -> None:
    step = AudioPreprocess(resample="none")
    with pytest.raises(BadData, match="has 8000 Hz; the model takes 16000 Hz"):
        step.apply(np.zeros(8000, np.int16), 8000)


def test_a_model_takes_what_the_preprocessing_makes() -> None:
    step = AudioPreprocess()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(49 * 40, 2))
    model = Model.from_module(net, {"input": torch.zeros(step.shape)}, preprocess=step)
    assert model.signature.inputs[0].shape == step.shape
    with pytest.raises(BadData, match=r"turns a sound into shape \(1, 98, 40\)"):
        replace(model, preprocess=replace(step, hop=160, window=320, samples=15_840))


def _golden(step: AudioPreprocess) -> tuple[dict[str, Any], dict[int, Wav]]:
    sounds = {
        0: Wav((_sound(16_000)[:, None] * 9000).astype(np.int16), 16_000),
        2: Wav(_sound(9000, 1).reshape(-1, 2).astype(np.float32), 8000),
    }
    rows = [step.apply(sounds[i].samples, sounds[i].rate) if i in sounds else 0 for i in range(3)]
    rows[1] = step.apply(_sound(16_000, 2))
    return {"sound": np.concatenate(rows)}, sounds


def test_golden_inputs_are_made_anew_of_their_sounds() -> None:
    step = AudioPreprocess()
    feeds, sounds = _golden(step)
    again = unpack_sounds(pack_sounds(sounds))
    assert pack_sounds(again) == pack_sounds(sounds)
    assert [again[i].rate for i in again] == [16_000, 8000]
    assert all(np.array_equal(again[i].samples, sounds[i].samples) for i in again)
    spec = TensorSpec("sound", step.shape)
    made, misread = from_sounds(feeds, again, step, spec)
    assert misread == () and np.array_equal(made["sound"], feeds["sound"])
    # Another preprocessing, a louder recording, a number that isn't there.
    assert from_sounds(feeds, again, replace(step, scale="slaney"), spec)[1] == (0, 2)
    louder = {**again, 2: Wav(again[2].samples * 2, 8000)}
    assert from_sounds(feeds, louder, step, spec)[1] == (2,)
    with pytest.raises(BadData, match="golden sound 3, and 3 golden inputs"):
        from_sounds(feeds, {3: again[0]}, step, spec)
    for broken in (b"", pack_sounds(again)[:-9], b"PK\3\4 no zip"):
        with pytest.raises(BadData, match="cannot be read"):
            unpack_sounds(broken)
    other = Signature((TensorSpec("sound", (1, 2)),), (TensorSpec("y", (1, 2)),))
    with pytest.raises(BadData, match="no input takes"):
        sound_input(other, step)
