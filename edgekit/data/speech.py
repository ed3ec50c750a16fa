"""Words spoken by nobody: a source-filter synthesizer, for data where there are no recordings.

Speech as Fant ("Acoustic Theory of Speech Production", 1960) and Klatt ("Software for a
cascade/parallel formant synthesizer", 1980) describe it: pulses of the voice and noise of the
breath go through resonances that move from sound to sound. Vowels have the mean formants that
Peterson and Barney measured ("Control Methods Used in a Study of the Vowels", 1952). A network can
learn to tell the words apart; how well it would understand people, this does not show.

Voices differ in pitch, length of the vocal tract, speed and breath. Those of the test split have
tract lengths that no voice of the training split has, and other ``unknown`` words are among them.
Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["LABELS", "SILENCE", "UNKNOWN", "WORDS", "Voice", "background", "draw_voice", "spoken"]

_Float = npt.NDArray[np.float64]
Split = Literal["train", "test"]

RATE: Final = 16_000
SILENCE: Final = "silence"
UNKNOWN: Final = "unknown"

_FRAME_S: Final = 0.005
_STEP: Final = int(RATE * _FRAME_S)
_WINDOW: Final = 4 * _STEP
_FFT: Final = 512

# Tract lengths, as factors on formants. The bands of one split lie between those of the other.
_TRACTS: Final[dict[Split, tuple[tuple[float, float], ...]]] = {
    "train": ((0.84, 0.93), (0.98, 1.05), (1.10, 1.17)),
    "test": ((0.935, 0.975), (1.055, 1.095), (1.175, 1.21)),
}


@dataclass(frozen=True)
class _Phone:
    """A sound of speech.

    Attributes:
        formants: of an adult man, in Hz, and where it glides to, if it does.
        ms: how long it takes.
        voiced: amplitude of the voice, 0 to 1.
        noise: amplitude of friction, 0 to 1.
        pitch: middle and half width of the friction's band, in Hz.
    """

    formants: tuple[float, float, float]
    ms: float
    voiced: float = 1.0
    noise: float = 0.0
    pitch: tuple[float, float] = (4000.0, 2000.0)
    to: tuple[float, float, float] | None = None


_PHONES: Final = {
    "i": _Phone((270, 2290, 3010), 120),
    "I": _Phone((390, 1990, 2550), 90),
    "E": _Phone((530, 1840, 2480), 110),
    "ae": _Phone((660, 1720, 2410), 130),
    "A": _Phone((730, 1090, 2440), 140),
    "O": _Phone((570, 840, 2410), 140),
    "U": _Phone((440, 1020, 2240), 90),
    "u": _Phone((300, 870, 2240), 120),
    "V": _Phone((640, 1190, 2390), 100),
    "er": _Phone((490, 1350, 1690), 120),
    "ou": _Phone((540, 900, 2400), 170, to=(380, 850, 2300)),
    "ai": _Phone((710, 1180, 2450), 190, to=(400, 2050, 2600)),
    "au": _Phone((720, 1200, 2430), 190, to=(420, 950, 2300)),
    "ei": _Phone((530, 1850, 2480), 170, to=(350, 2200, 2800)),
    "m": _Phone((250, 1100, 2200), 70, 0.4),
    "n": _Phone((250, 1600, 2500), 70, 0.4),
    "l": _Phone((340, 1050, 2800), 65, 0.6),
    "r": _Phone((330, 1150, 1550), 70, 0.6),
    "w": _Phone((300, 650, 2200), 60, 0.5),
    "j": _Phone((270, 2200, 3000), 60, 0.5),
    "s": _Phone((320, 1700, 2600), 120, 0.0, 0.5, (5800, 1300)),
    "S": _Phone((320, 1900, 2500), 120, 0.0, 0.6, (3000, 900)),
    "f": _Phone((320, 1000, 2300), 100, 0.0, 0.16, (5000, 4000)),
    "v": _Phone((300, 1000, 2300), 70, 0.4, 0.08, (5000, 4000)),
    "z": _Phone((300, 1700, 2600), 90, 0.3, 0.3, (5800, 1300)),
    "h": _Phone((500, 1500, 2500), 60, 0.0, 0.12, (1800, 1500)),
    "th": _Phone((320, 1400, 2600), 80, 0.0, 0.1, (6000, 3000)),
    # A stop is a silence, which a burst ends.
    "p.": _Phone((300, 900, 2200), 60, 0.0),
    "p": _Phone((300, 900, 2200), 15, 0.0, 0.3, (1000, 800)),
    "t": _Phone((320, 1700, 2700), 20, 0.0, 0.5, (4500, 1500)),
    "k": _Phone((320, 1900, 2400), 25, 0.0, 0.45, (2000, 700)),
    "b": _Phone((280, 900, 2200), 12, 0.3, 0.15, (900, 700)),
    "d": _Phone((300, 1700, 2600), 14, 0.3, 0.25, (4000, 1500)),
    "g": _Phone((300, 1900, 2300), 18, 0.3, 0.25, (2000, 700)),
}

_SPELLED: Final = {
    "yes": "j E s",
    "no": "n ou",
    "up": "V p. p",
    "down": "d au n",
    "left": "l E f p. t",
    "right": "r ai p. t",
    "on": "A n",
    "off": "O f",
    "stop": "s p. t A p. p",
    "go": "g ou",
}
WORDS: Final = tuple(_SPELLED)
"""The keywords: ten of Speech Commands'."""

LABELS: Final = (*WORDS, SILENCE, UNKNOWN)

_OTHERS: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "b E d", "k ae p. t", "t r i", "s E v V n", "h ae p. p i", "z I r ou", "h au s", "w au",
        "f ai v", "n ai n", "m A r v I n", "b er d", "S i l V", "t u", "f O r", "d O g",
    ),
    "test": ("w V n", "s I k s", "ei p. t", "th r i", "f A l ou", "v I Z u V l".replace("Z", "S")),
}  # fmt: skip
"""Words that are none of the keywords; half of those of the test split occur in training."""


@dataclass(frozen=True)
class Voice:
    """A speaker.

    Attributes:
        pitch: of the voice, in Hz.
        tract: factor on all formants.
        speed: factor on all durations.
        breath: noise in the voice, 0 to 1.
        dull: where the voice's spectrum begins to fall, in Hz.
        accent: what this speaker's formants of each sound differ by, as a part: the seed of it.
    """

    pitch: float
    tract: float
    speed: float
    breath: float
    dull: float
    accent: int


def draw_voice(split: Split, rng: np.random.Generator) -> Voice:
    """A speaker of a split."""
    bands = _TRACTS[split]
    low, high = bands[int(rng.integers(len(bands)))]
    tract = float(rng.uniform(low, high))
    # Short tracts go with high voices, loosely.
    pitch = 150 * (tract**2.5) * float(np.exp(rng.normal(0, 0.22)))
    return Voice(
        pitch=float(np.clip(pitch, 70, 330)),
        tract=tract,
        speed=float(rng.uniform(0.75, 1.3)),
        breath=float(rng.uniform(0.01, 0.12)),
        dull=float(rng.uniform(300, 1200)),
        accent=int(rng.integers(2**31)),
    )


def word(phones: str, voice: Voice, rng: np.random.Generator) -> _Float:
    """A word as a speaker says it: float64 ``[n]`` at 16 kHz, loudest at 1."""
    sounds = [_PHONES[name] for name in phones.split()]
    counts = [max(2, round(s.ms / 1000 / _FRAME_S / voice.speed * rng.uniform(0.8, 1.25)))
              for s in sounds]  # fmt: skip
    own = np.random.default_rng(voice.accent)
    formants, levels = _tracks(sounds, counts, own.normal(0, 0.04, (len(sounds), 3)), rng)
    frames = len(formants)
    # The pitch falls through the word, and wanders.
    fall = np.linspace(1.08, 0.88, frames) * (1 + 0.02 * np.cumsum(rng.normal(0, 0.3, frames)))
    pulses = _pulses(np.clip(voice.pitch * fall, 60, 400))
    breath = rng.normal(0, 1, frames * _STEP)
    bins = np.linspace(0.0, RATE / 2, _FFT // 2 + 1)
    tract = _resonances(bins, formants * voice.tract) / (1 + bins / voice.dull)
    source = _frames(pulses + voice.breath * breath, frames)
    spectrum = np.fft.rfft(source) * tract * levels[:, :1]
    middle, width = (levels[:, i : i + 1] * voice.tract for i in (2, 3))
    band = 1 / (1 + np.square(np.square((bins - middle) / width)))
    spectrum += np.fft.rfft(_frames(breath, frames)) * band * levels[:, 1:2]
    sound = _overlapped(np.fft.irfft(spectrum, _FFT))
    return np.asarray(sound / max(1e-9, float(np.abs(sound).max())))


def _tracks(
    sounds: Sequence[_Phone], counts: Sequence[int], accent: _Float, rng: np.random.Generator
) -> tuple[_Float, _Float]:
    """Formants ``[frames, 3]``, and amplitudes of voice and friction with the latter's band."""
    formants, levels = [], []
    for sound, count, shift in zip(sounds, counts, accent, strict=True):
        ends = np.array([sound.formants, sound.to or sound.formants])
        own = 1 + shift + rng.normal(0, 0.02, 3)
        part = np.linspace(0, 1, count)[:, None]
        formants.append((ends[0] * (1 - part) + ends[1] * part) * own)
        row = (sound.voiced, sound.noise * rng.uniform(0.7, 1.4), *sound.pitch)
        levels.append(np.tile(row, (count, 1)))
    quiet = np.array([[0.0, 0.0, *sounds[-1].pitch]] * 4)
    steady = np.concatenate([*formants, formants[-1][-1:].repeat(4, 0)])
    return _smoothed(steady, 9), _smoothed(np.concatenate([*levels, quiet]), 3)


def _smoothed(track: _Float, width: int) -> _Float:
    """Each column averaged over neighbours, as a tongue moves."""
    weights = np.hanning(width + 2)[1:-1]
    padded = np.pad(track, ((width // 2, width // 2), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0)
    return np.asarray(windows @ (weights / weights.sum()))


def _pulses(pitch: _Float) -> _Float:
    """A pulse per period, between samples where it falls there."""
    phase = np.cumsum(np.repeat(pitch, _STEP) / RATE)
    at = np.flatnonzero(np.diff(np.floor(phase)) > 0)
    late = (phase[at + 1] - np.floor(phase[at + 1])) / np.diff(phase)[at]
    out = np.zeros(len(phase))
    out[at] += late
    out[at + 1] += 1 - late
    # As strong as noise of variance 1.
    return np.asarray(out * np.sqrt(RATE / pitch.mean()))


def _resonances(bins: _Float, formants: _Float) -> _Float:
    """Gain of the vocal tract: ``[frames, bins]``."""
    gain = np.ones((len(formants), len(bins)))
    squares = np.square(bins)
    fixed = np.full((len(formants), 1), 3500.0) * formants.mean() / 1600
    for f in (*formants.T[:, :, None], fixed, fixed * 1.3):
        width = 50 + f * 0.04
        square = np.square(f)
        gain *= square / np.sqrt(np.square(square - squares) + squares * np.square(width))
    return gain


def _frames(x: _Float, count: int) -> _Float:
    """Windowed parts of ``x`` around every frame, with room on both sides for what rings."""
    edge = (_FFT - _WINDOW) // 2
    window = np.pad(np.hanning(_WINDOW + 1)[:-1], edge)
    padded = np.pad(x, _FFT // 2)
    views = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_STEP][:count]
    return np.asarray(views * window)


def _overlapped(parts: _Float) -> _Float:
    out = np.zeros(len(parts) * _STEP + _FFT)
    for i, part in enumerate(parts):
        out[i * _STEP : i * _STEP + _FFT] += part
    return out[_FFT // 2 :]


def background(n: int, rng: np.random.Generator) -> _Float:
    """Noise of a room, ``n`` samples of variance 1: coloured, some with the hum of the mains."""
    bins = np.fft.rfftfreq(n, 1 / RATE)
    tilt = np.maximum(bins, 40.0) ** -float(rng.uniform(0.0, 1.2))
    noise = np.fft.irfft(np.fft.rfft(rng.normal(size=n)) * tilt, n)
    noise /= noise.std()
    if rng.random() < 0.3:
        t, hum = np.arange(n) / RATE, 50.0 if rng.random() < 0.5 else 60.0
        for k in (1, 2, 3, 5):
            amplitude = rng.uniform(0, 0.8) / k
            noise += amplitude * np.sin(2 * np.pi * (k * hum * t + rng.random()))
    return np.asarray(noise / noise.std())


def _in_room(x: _Float, rng: np.random.Generator) -> _Float:
    """With echoes that die within 0.1 to 0.4 s."""
    length = int(0.25 * RATE)
    decay = np.exp(-6.9 * np.arange(length) / RATE / rng.uniform(0.1, 0.4))
    tail = rng.normal(size=length) * decay
    tail *= rng.uniform(0.0, 0.5) / np.sqrt((tail**2).sum())
    tail[0] = 1.0
    n = 1 << (len(x) + length).bit_length()
    mixed = np.fft.irfft(np.fft.rfft(x, n) * np.fft.rfft(tail, n), n)
    return np.asarray(mixed[: len(x) + length])


def _clip(label: str, split: Split, n: int, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    noise = background(n, rng)
    level = 10 ** (rng.uniform(-30, -8) / 20)
    if label == SILENCE:
        mixed = noise * level * rng.uniform(0.02, 0.5)
    else:
        phones = _SPELLED.get(label)
        if phones is None:
            words = _OTHERS["train"] + _OTHERS["test"] * (split == "test") * 3
            phones = words[int(rng.integers(len(words)))]
        said = _in_room(word(phones, draw_voice(split, rng), rng), rng)
        # Most of a word is within the clip, wherever it begins.
        room = n - int(0.8 * min(n, len(said)))
        place = int(rng.integers(max(1, room)))
        speech = np.zeros(n)
        speech[place : place + len(said)] = said[: n - place]
        power = float(np.sqrt((speech**2).mean()))
        mixed = level * (speech / power + noise * 10 ** (-rng.uniform(0, 25) / 20))
    return (np.clip(mixed * 0.3, -1, 1) * 32767).round().astype(np.int16)


def spoken(
    split: Split, per_class: int, *, seed: int = 0, samples: int = RATE
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Recordings of every class of `LABELS`, class after class.

    Each has a speaker of its own, a place in the clip, a room, and noise 0 to 25 dB below the word.

    Args:
        split: ``train``, or ``test`` with speakers and words that ``train`` has none of.
        per_class: recordings of each.
        seed: of everything; more recordings leave those before as they are.
        samples: of a recording, at 16 kHz.

    Returns:
        int16 ``[n, samples]``, and classes int64 ``[n]``, indices of `LABELS`.
    """
    clips = np.empty((len(LABELS) * per_class, samples), np.int16)
    for i in range(len(clips)):
        label, number = divmod(i, per_class)
        rng = np.random.default_rng([seed, split == "test", label, number])
        clips[i] = _clip(LABELS[label], split, samples, rng)
    return clips, np.repeat(np.arange(len(LABELS)), per_class)
