"""The synthesizer: the same for a seed, speakers held out, words that can be told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.data import speech
from edgekit.runtime.audio import AudioPreprocess

STEP = AudioPreprocess(mels=20)


def test_recordings_follow_from_the_seed_and_more_leave_the_first() -> None:
    clips, classes = speech.spoken("train", 2)
    assert clips.dtype == np.int16 and clips.shape == (24, 16_000)
    assert classes.tolist() == [c for c in range(12) for _ in range(2)]
    again, _ = speech.spoken("train", 2)
    assert np.array_equal(clips, again)
    fewer, _ = speech.spoken("train", 1)
    assert np.array_equal(clips[::2], fewer)
    for other in (speech.spoken("test", 1)[0], speech.spoken("train", 1, seed=1)[0]):
        assert not any(np.array_equal(a, b) for a, b in zip(other, fewer, strict=True))


def test_words_are_louder_than_silence_and_none_is_flat() -> None:
    clips, classes = speech.spoken("train", 2)
    spread = clips.std(axis=1)
    assert spread.min() > 0
    words = spread[classes != speech.LABELS.index(speech.SILENCE)]
    assert np.median(words) > 3 * np.median(spread[classes == speech.LABELS.index("silence")])


def test_no_voice_of_one_split_has_the_tract_of_another() -> None:
    found: dict[str, list[float]] = {}
    for split in ("train", "test"):
        rng = np.random.default_rng(0)
        found[split] = sorted(speech.draw_voice(split, rng).tract for _ in range(300))  # type: ignore[arg-type]
    gaps = [abs(a - b) for a in found["train"] for b in found["test"]]
    assert min(gaps) >= 0.0049


def _said(phones: str, tract: float, seed: int) -> np.ndarray[Any, Any]:
    voice = speech.Voice(120.0, tract, 1.0, 0.02, 800.0, 7)
    return speech.word(phones, voice, np.random.default_rng(seed))


def test_formants_are_where_the_vowel_has_them() -> None:
    """The mean spectrum of a vowel peaks at its formants, those of a short tract higher."""
    for tract in (0.9, 1.0, 1.15):
        sound = _said("A A A A", tract, 0)
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
        hertz = np.fft.rfftfreq(len(sound), 1 / speech.RATE)

        def power(middle: float, s: Any = spectrum, h: Any = hertz) -> float:
            return float(s[np.abs(h - middle) < 130].sum())

        first, between = power(730 * tract), power(1750 * tract)
        assert first > 20 * between


def test_a_word_keeps_its_spectrum_from_speaker_to_speaker() -> None:
    """Features of one word by two speakers are nearer than those of different words, mostly."""
    words = ["j E s", "n ou", "s p. t A p. p", "r ai p. t"]
    made = []
    for phones in words:
        mean = [STEP.apply(_said(phones, t, i))[0, 0].mean(0) for i, t in enumerate((0.95, 1.02))]
        made.append([row - row.mean() for row in mean])
    for i, (one, _) in enumerate(made):
        distances = [float(np.square(one - other).sum()) for _, other in made]
        assert int(np.argmin(distances)) == i


@pytest.mark.parametrize("n", [4000, 16_000])
def test_background_has_one_variance(n: int) -> None:
    noise = speech.background(n, np.random.default_rng(3))
    assert noise.shape == (n,) and abs(noise.std() - 1) < 1e-9
