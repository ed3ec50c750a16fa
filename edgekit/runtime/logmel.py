"""Sound to log-mel features with numpy alone, in double precision: the arithmetic of
`edgekit.runtime.audio`. Imports nothing of edgekit, so that a bundle's Python clients carry this
very file.

- `clip`: one channel, one rate, one length, in these steps:
- `mono`: integers to -1..1, channels averaged.
- `resampled`: another sample rate, as ``scipy.signal.resample_poly`` does it by default.
- `fitted`: a fixed length, cut or filled with zeros.
- `mel_filters`, `log_mel`: triangular filters on HTK's or Slaney's mel scale, as in librosa and
  torchaudio.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["clip", "fitted", "log_mel", "mel_filters", "mono", "resampled"]

_Float = npt.NDArray[np.float64]

# Slaney's scale (Auditory Toolbox, 1998): linear to 1 kHz, logarithmic above.
_LINEAR_HZ: Final = 200 / 3
_BREAK_HZ: Final = 1000.0
_LOG_STEP: Final = math.log(6.4) / 27

# Half the length of the resampler's filter, in periods of the lower rate, and its Kaiser beta:
# those of scipy.signal.resample_poly.
_HALF_PERIODS: Final = 10
_BETA: Final = 5.0
_TERMS: Final = 1 << 21


def clip(sound: npt.NDArray[Any], old: int, new: int, count: int, where: str) -> _Float:
    """A recording in one channel, at another rate and of a fixed length: float64 ``[count]``.

    Of a long one, only what the result comes from is looked at.

    Args:
        sound: ``[n]`` or ``[n, channels]``, as `mono` takes it.
        old, new: rates, in Hz.
        count: samples of the result.
        where: see `fitted`.
    """
    first, kept, before = fitted(-(-len(sound) * new // old), count, where)
    common = math.gcd(old, new)
    up, down = new // common, old // common
    reach = _HALF_PERIODS * max(up, down) // up + 2
    # Both rates meet every `down` samples of the old one.
    periods = max(0, first * down // up - reach) // down
    last = -(-(first + kept) * down // up) + reach
    part = mono(sound[periods * down : last])
    out = np.zeros(count)
    out[before : before + kept] = resampled(part, old, new, first - periods * up, kept)
    return out


def mono(samples: npt.NDArray[Any]) -> _Float:
    """Samples ``[n]`` or ``[n, channels]`` as float64 ``[n]``; integers by full scale to -1..1."""
    values = samples.astype(np.float64)
    if samples.dtype.kind == "i":
        values /= 2.0 ** (8 * samples.dtype.itemsize - 1)
    return values if values.ndim == 1 else np.asarray(values.mean(axis=1))


def resampled(x: _Float, old: int, new: int, start: int, count: int) -> _Float:
    """Part of ``x`` at another rate: ``count`` samples from the ``start``-th on.

    A windowed sinc, cut off at the lower rate's half; outside of ``x`` is silence. The whole result
    has ``ceil(len(x) * new / old)`` samples; what is asked for beyond that is 0.

    Args:
        x: float64 ``[n]``.
        old, new: rates, in Hz.
        start, count: of the result, in samples.
    """
    total = -(-len(x) * new // old)
    kept = max(0, min(count, total - start))
    out = np.zeros(count)
    if old == new:
        out[:kept] = x[start : start + kept]
        return out
    common = math.gcd(old, new)
    up, down = new // common, old // common
    half = _HALF_PERIODS * max(up, down)
    taps = _low_pass(half, max(up, down)) * up
    # Output m lies at m * down on the grid of both rates, input k at k * up.
    reach = np.arange(-(half // up) - 1, half // up + 2)
    block = max(1, _TERMS // len(reach))
    for first in range(start, start + kept, block):
        place = np.arange(first, min(first + block, start + kept)) * down
        k = (place // up)[:, None] + reach
        lag = place[:, None] - k * up + half
        valid = (lag >= 0) & (lag < len(taps)) & (k >= 0) & (k < len(x))
        terms = taps[np.where(valid, lag, 0)] * x[np.where(valid, k, 0)]
        at = first - start
        out[at : at + len(place)] = np.where(valid, terms, 0.0).sum(axis=1)
    return out


def _low_pass(half: int, factor: int) -> _Float:
    """``2 * half + 1`` taps of a sinc that passes ``1 / factor`` of the band, with a gain of 1."""
    t = np.arange(-half, half + 1) / factor
    taps: _Float = np.sinc(t) * np.kaiser(2 * half + 1, _BETA)
    taps /= taps.sum()
    return taps


def fitted(have: int, want: int, where: str) -> tuple[int, int, int]:
    """How a sound of ``have`` samples is brought to ``want``: ``(first, kept, zeros_before)``.

    Args:
        have, want: numbers of samples.
        where: what stays of a longer sound and where a shorter one comes to lie: ``start`` or
            ``middle``.
    """
    kept = min(have, want)
    if where == "start":
        return 0, kept, 0
    return (have - kept) // 2, kept, (want - kept) // 2


def mel_filters(
    rate: int, fft: int, mels: int, fmin: float, fmax: float, scale: str, area: bool
) -> _Float:
    """Triangles that rise and fall between neighbours on the mel scale: ``[fft // 2 + 1, mels]``.

    Args:
        rate: in Hz.
        fft: length of the transform, in samples.
        mels: number of bands.
        fmin, fmax: where the first begins and the last ends, in Hz.
        scale: ``htk`` (2595 log10(1 + f / 700)) or ``slaney``.
        area: divide each by half its width in Hz, so that all have the same area (Slaney's).
    """
    ends = np.linspace(_to_mel(fmin, scale), _to_mel(fmax, scale), mels + 2)
    hertz = np.array([_to_hertz(float(m), scale) for m in ends])
    bins = np.arange(fft // 2 + 1) * (rate / fft)
    width = np.diff(hertz)
    slopes = hertz[None, :] - bins[:, None]
    rise, fall = -slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]
    filters: _Float = np.maximum(0.0, np.minimum(rise, fall))
    if area:
        filters *= 2 / (hertz[2:] - hertz[:-2])
    return filters


def _to_mel(hertz: float, scale: str) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    if hertz < _BREAK_HZ:
        return hertz / _LINEAR_HZ
    return _BREAK_HZ / _LINEAR_HZ + math.log(hertz / _BREAK_HZ) / _LOG_STEP


def _to_hertz(mel: float, scale: str) -> float:
    if scale == "htk":
        return float(700 * (10 ** (mel / 2595) - 1))
    if mel < _BREAK_HZ / _LINEAR_HZ:
        return mel * _LINEAR_HZ
    return _BREAK_HZ * math.exp(_LOG_STEP * (mel - _BREAK_HZ / _LINEAR_HZ))


def log_mel(
    x: _Float, filters: _Float, *, window: int, hop: int, centered: bool, power: int, offset: float
) -> _Float:
    """``ln(mel + offset)`` of the short-time Fourier transform: ``[frames, mels]``.

    Frames are weighted by a periodic Hann window.

    Args:
        x: float64 ``[n]``, at least a frame.
        filters: as `mel_filters` makes them.
        window: length of the window, in samples; the transform's is in ``filters``.
        hop: samples from frame to frame.
        centered: False for frames that begin at 0, ``hop``, ... and lie within ``x``; True for
            frames whose middles lie there, with ``x`` mirrored at its ends (torch.stft, librosa).
        power: 1 for magnitudes, 2 for their squares.
        offset: added before the logarithm.
    """
    fft = 2 * (len(filters) - 1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    count = 1 + (len(x) - window) // hop
    if centered:
        # The window lies in the middle of the transform's length, where the two differ.
        x = np.pad(x, fft // 2, mode="reflect")
        count = 1 + (len(x) - fft) // hop
        x = x[(fft - window) // 2 :]
    frames = np.lib.stride_tricks.sliding_window_view(x, window)[::hop][:count]
    spectrum = np.abs(np.fft.rfft(frames * hann, fft, axis=1)) ** power
    logged: _Float = np.log(spectrum @ filters + offset)
    return logged
