"""From a recording to the log-mel features that a model takes, the same way on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData
from edgekit.runtime._fields import (
    fields_of,
    require_finite,
    require_int,
    require_one_of,
    tuple_of,
)
from edgekit.runtime._files import read_file
from edgekit.runtime.logmel import clip, log_mel, mel_filters
from edgekit.runtime.wav import MAX_CHANNELS, MAX_RATE, MAX_WAV_BYTES, BadWav, Wav, read_wav

__all__ = ["SOUND_SUFFIXES", "AudioPreprocess", "Wav"]

SOUND_SUFFIXES: Final = frozenset({".wav"})
"""File name endings that data sets are searched for, in lower case."""

MAX_SAMPLES: Final = 1 << 24
"""The longest clip that a model may ask for, in samples."""

Scale = Literal["htk", "slaney"]
Framing = Literal["whole", "centered"]
Fit = Literal["start", "middle"]
Resample = Literal["none", "polyphase"]
AudioLayout = Literal["NCHW", "NHWC", "NTC", "NCT"]


@dataclass(frozen=True)
class AudioPreprocess:
    """How a recording becomes a model's input: one channel, rate, length, log-mel, mean and std.

    Channels are averaged, the rate is changed, the clip is cut or filled with silence; then
    ``(ln(mel + log_offset) - mean) / std``, computed in double precision and rounded once. Another
    base of the logarithm, and decibels, are a matter of ``mean`` and ``std``.

    Attributes:
        sample_rate: that the model takes, in Hz.
        samples: length of the clip at that rate, in samples.
        window: length of the periodic Hann window, in samples.
        hop: from frame to frame, in samples.
        fft: length of the Fourier transform, in samples: even, and at least ``window``.
        mels: number of mel bands.
        scale: the mel scale, ``htk`` or ``slaney``.
        area: every band's triangle has the same area (librosa's and torchaudio's norm ``slaney``);
            else the same height, 1.
        fmin, fmax: where the first band begins and the last one ends, in Hz; fmax None means half
            the sample rate.
        power: 2 for the power spectrum, 1 for magnitudes.
        framing: ``whole`` frames within the clip, as ``tf.signal.stft``: the first begins at 0;
            ``centered``: the first frame's middle is at 0, the clip mirrored at its ends, as
            torch.stft, torchaudio and librosa have it by default.
        fit: what of a longer recording is kept, and where a shorter one comes to lie: ``start`` or
            ``middle``. The rest is zeros.
        resample: for recordings of another rate, ``polyphase`` is ``scipy.signal.resample_poly``;
            ``none`` refuses them.
        log_offset: added to each band before the logarithm; above 0.
        mean: taken off the logarithms: one value, or one per band; empty means 0.
        std: divided by last: one value, or one per band; empty means 1.
        layout: ``NCHW`` for ``[1, 1, frames, mels]``, ``NHWC`` for ``[1, frames, mels, 1]``,
            ``NTC`` for ``[1, frames, mels]``, ``NCT`` for ``[1, mels, frames]``.

    Raises:
        BadData: a field is out of its range, or fields contradict each other.
    """

    sample_rate: int = 16_000
    samples: int = 16_000
    window: int = 480
    hop: int = 320
    fft: int = 512
    mels: int = 40
    scale: Scale = "htk"
    area: bool = False
    fmin: float = 20.0
    fmax: float | None = None
    power: int = 2
    framing: Framing = "whole"
    fit: Fit = "middle"
    resample: Resample = "polyphase"
    log_offset: float = 1e-6
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: AudioLayout = "NCHW"

    def __post_init__(self) -> None:
        require_int("preprocess sample_rate", self.sample_rate, 1, MAX_RATE)
        require_int("preprocess samples", self.samples, 1, MAX_SAMPLES)
        require_int("preprocess fft", self.fft, 2, 1 << 16)
        require_int("preprocess window", self.window, 1, self.fft)
        require_int("preprocess hop", self.hop, 1, MAX_SAMPLES)
        require_int("preprocess mels", self.mels, 1, 1024)
        for name, allowed in (
            ("scale", get_args(Scale)),
            ("area", (True, False)),
            ("power", (1, 2)),
            ("framing", get_args(Framing)),
            ("fit", get_args(Fit)),
            ("resample", get_args(Resample)),
            ("layout", get_args(AudioLayout)),
        ):
            require_one_of(name, getattr(self, name), allowed)
        if self.fft % 2:
            raise BadData(f"preprocess fft is {self.fft}; an even number is wanted")
        # A mirrored edge needs more samples than it is long.
        shortest = self.window if self.framing == "whole" else self.fft // 2 + 1
        if self.samples < shortest:
            raise BadData(f"preprocess samples is {self.samples}: too short for one frame")
        self._check_bands()
        require_finite("log_offset", (self.log_offset,))
        if self.log_offset <= 0:
            raise BadData("preprocess log_offset must be above 0: silence has no logarithm")
        for name, default in (("mean", 0.0), ("std", 1.0)):
            values = tuple(getattr(self, name)) or (default,)
            require_finite(name, values)
            if len(values) not in (1, self.mels):
                raise BadData(
                    f"preprocess {name} has {len(values)} values; wanted 1, or {self.mels} for the "
                    "bands"
                )
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if any(v <= 0 for v in self.std):
            raise BadData("preprocess std must be above 0")

    def _check_bands(self) -> None:
        half = self.sample_rate / 2
        require_finite("fmin", (self.fmin,))
        require_finite("fmax", (self.top,))
        if not 0 <= self.fmin < self.top <= half:
            raise BadData(
                f"preprocess fmin {self.fmin} and fmax {self.top} must rise within 0 to {half} Hz, "
                "half the sample rate"
            )
        empty = np.flatnonzero(~self._filters.any(axis=0))
        if len(empty):
            raise BadData(
                f"preprocess band {empty[0]} of {self.mels} lies between the transform's bins and "
                "would always be empty; take fewer mels, a larger fft or a higher fmin"
            )

    @property
    def top(self) -> float:
        """Where the last band ends, in Hz."""
        return self.sample_rate / 2 if self.fmax is None else self.fmax

    @property
    def frames(self) -> int:
        """Number of frames of a clip."""
        if self.framing == "centered":
            return 1 + self.samples // self.hop
        return 1 + (self.samples - self.window) // self.hop

    @property
    def shape(self) -> tuple[int, ...]:
        """The result's shape, batch of 1 first."""
        frames, mels = self.frames, self.mels
        shapes = {
            "NCHW": (1, 1, frames, mels),
            "NHWC": (1, frames, mels, 1),
            "NTC": (1, frames, mels),
            "NCT": (1, mels, frames),
        }
        return shapes[self.layout]

    @cached_property
    def _filters(self) -> npt.NDArray[np.float64]:
        return mel_filters(
            self.sample_rate, self.fft, self.mels, self.fmin, self.top, self.scale, self.area
        )

    def decode(self, source: str | Path | bytes) -> Wav:
        """Reads a WAV file, for `apply`; see `edgekit.runtime.wav.read_wav`.

        Raises:
            BadData: absent, unreadable, or no WAV that is read.
        """
        if isinstance(source, bytes):
            name, content = "recording", source
        else:
            name, content = str(source), read_file(Path(source), MAX_WAV_BYTES, "sound")
        try:
            return read_wav(content)
        except BadWav as error:
            raise BadData(
                f"{name} is no readable recording: {error}",
                hint="PCM of 8, 16, 24 or 32 bits and floats are read, in .wav files",
            ) from error

    def apply(self, sound: npt.NDArray[Any], rate: int | None = None) -> npt.NDArray[np.float32]:
        """Turns one recording into the model's input.

        Args:
            sound: ``[n]`` or ``[n, channels]``: int16 or int32 of full scale, or float32 or float64
                of -1 to 1.
            rate: samples per second, in Hz; None means ``sample_rate``.

        Returns:
            float32 of `shape`.

        Raises:
            BadData: another dtype or shape, no samples, NaN or infinity, or another rate where
                ``resample`` is ``none``.
        """
        logged = log_mel(
            self.clip(sound, rate),
            self._filters,
            window=self.window,
            hop=self.hop,
            centered=self.framing == "centered",
            power=self.power,
            offset=self.log_offset,
        )
        made: npt.NDArray[np.float32] = ((logged - self.mean) / self.std).astype(np.float32)
        if self.layout == "NCT":
            made = made.T
        return np.ascontiguousarray(made.reshape(self.shape))

    def clip(self, sound: npt.NDArray[Any], rate: int | None = None) -> npt.NDArray[np.float64]:
        """The recording in one channel, in the model's rate and length: float64 ``[samples]``.

        Arguments and errors are those of `apply`.
        """
        rate = self.sample_rate if rate is None else rate
        require_int("the recording's rate", rate, 1, MAX_RATE)
        sound = _checked(sound)
        if rate != self.sample_rate and self.resample == "none":
            raise BadData(
                f"the recording has {rate} Hz; the model takes {self.sample_rate} Hz and its "
                "preprocessing does not resample"
            )
        return clip(sound, rate, self.sample_rate, self.samples, self.fit)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary with ``"kind": "audio"`` and every field."""
        return {
            "kind": "audio",
            **asdict(self),
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            BadData: a field is missing, unknown, or wrong.
        """
        values = fields_of(cls, "audio", data)
        return cls(**{**values, "mean": tuple_of(values, "mean"), "std": tuple_of(values, "std")})


def _checked(sound: npt.NDArray[Any]) -> npt.NDArray[Any]:
    known = str(sound.dtype) in ("int16", "int32", "float32", "float64")
    channels = sound.shape[1] if sound.ndim == 2 else 1
    if not known or sound.ndim not in (1, 2) or not 1 <= channels <= MAX_CHANNELS:
        raise BadData(
            f"the recording is {sound.dtype} of shape {sound.shape}; wanted int16, int32, float32 "
            "or float64 [n] or [n, channels]"
        )
    if not sound.size:
        raise BadData("the recording is empty")
    if sound.dtype.kind == "f" and not np.isfinite(sound).all():
        raise BadData("the recording holds NaN or infinity")
    return sound
