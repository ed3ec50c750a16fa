"""WAV files to samples, with numpy alone and limits on what a hostile or broken file may cost.

RIFF/WAVE with PCM of 8, 16, 24 or 32 bits, or IEEE floats of 32 or 64, one header or the
extensible one (Microsoft, "Multiple channel audio data and WAVE files"). Nothing is repaired: a
file that says one thing and holds another is refused. Imports nothing of edgekit, so that a
bundle's Python clients carry this very file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_CHANNELS", "MAX_RATE", "MAX_WAV_BYTES", "BadWav", "Wav", "read_wav"]

MAX_WAV_BYTES: Final = 64 * 2**20
"""The largest file that is read, in bytes: 35 minutes of 16-bit sound at 16 kHz."""

MAX_CHANNELS: Final = 64
MAX_RATE: Final = 768_000
"""The highest sample rate, in Hz."""

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_OTHERS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 80: "MPEG", 85: "MP3"}
# What follows the two bytes of the format in the GUID of an extensible header.
_GUID = bytes.fromhex("000000001000800000aa00389b71")


class BadWav(ValueError):
    """The bytes are no WAV that is read here; says why."""


@dataclass(frozen=True)
class Wav:
    """A recording.

    Attributes:
        samples: ``[n, channels]``: int16 of 8 and 16 bits per sample, int32 of 24 and 32, float32
            of floats. Full scale of the integers is that of their type; floats are -1 to 1.
        rate: samples per second, in Hz.
    """

    samples: npt.NDArray[Any]
    rate: int


@dataclass(frozen=True)
class _Format:
    code: int
    channels: int
    rate: int
    bits: int


def read_wav(content: bytes) -> Wav:
    """The recording in a WAV file.

    Args:
        content: the file's bytes.

    Raises:
        BadWav: no WAV, a compression or a depth that is not read, truncated, empty, contradicting
            itself, with NaN or infinity in it, or larger than `MAX_WAV_BYTES`.
    """
    if len(content) > MAX_WAV_BYTES:
        raise BadWav(f"it is larger than {MAX_WAV_BYTES} bytes")
    if content[:4] in (b"RIFX", b"RF64"):
        raise BadWav(f"{content[:4].decode()} files are not read; save it as a plain WAV (RIFF)")
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise BadWav("it does not begin as a WAV file (RIFF, WAVE)")
    form: _Format | None = None
    for name, start, size in _chunks(content):
        if name == b"fmt ":
            if form is not None:
                raise BadWav("it has two fmt chunks")
            form = _format(content[start : start + size])
        elif name == b"data":
            if form is None:
                raise BadWav("its data come before their format")
            return Wav(_samples(memoryview(content)[start : start + size], form), form.rate)
    raise BadWav("it has no data chunk" if form else "it has no fmt chunk")


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and size of every chunk up to the end of the file."""
    at = 12
    while at + 8 <= len(content):
        name, size = content[at : at + 4], struct.unpack_from("<I", content, at + 4)[0]
        if at + 8 + size > len(content):
            shown = name.decode("ascii", "backslashreplace")
            raise BadWav(
                f"it is cut off: chunk {shown!r} says {size} bytes, {len(content) - at - 8} are "
                "there"
            )
        yield name, at + 8, size
        at += 8 + size + size % 2


def _format(chunk: bytes) -> _Format:
    if len(chunk) < 16:
        raise BadWav(f"its fmt chunk has {len(chunk)} bytes; at least 16 are wanted")
    code, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", chunk)
    if code == _EXTENSIBLE:
        if len(chunk) < 40 or chunk[26:40] != _GUID:
            raise BadWav("its extensible header is broken or names a format of its own")
        code = struct.unpack_from("<H", chunk, 24)[0]
    allowed = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}.get(code)
    if allowed is None:
        raise BadWav(f"it is {_OTHERS.get(code, f'format {code}')}; PCM and float WAVs are read")
    if bits not in allowed:
        kind = "PCM" if code == _PCM else "floats"
        raise BadWav(f"it has {kind} of {bits} bits; {', '.join(map(str, allowed))} are read")
    if not 1 <= channels <= MAX_CHANNELS:
        raise BadWav(f"it has {channels} channels; 1 to {MAX_CHANNELS} are read")
    if not 1 <= rate <= MAX_RATE:
        raise BadWav(f"its sample rate is {rate} Hz; 1 to {MAX_RATE} are read")
    if frame != channels * bits // 8:
        raise BadWav(f"it says {frame} bytes for {channels} samples of {bits} bits")
    return _Format(code, channels, rate, bits)


def _samples(data: memoryview, form: _Format) -> npt.NDArray[Any]:
    size = form.bits // 8
    if len(data) % (size * form.channels):
        raise BadWav(f"it ends within a sample: {len(data)} bytes of {size} x {form.channels}")
    if not len(data):
        raise BadWav("it holds no samples")
    if form.code == _FLOAT:
        wide = np.frombuffer(data, f"<f{size}")
        # What overflows float32 becomes infinite, and is refused with the rest.
        with np.errstate(over="ignore", invalid="ignore"):
            values: npt.NDArray[Any] = wide.astype(np.float32)
        if not np.isfinite(values).all():
            raise BadWav("it holds NaN or infinity")
    elif form.bits == 8:
        # Unsigned, with silence at 128.
        values = (np.frombuffer(data, np.uint8).astype(np.int16) - 128) * 256
    elif form.bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = wide.view("<i4")[:, 0].astype(np.int32)
    else:
        values = np.frombuffer(data, f"<i{size}").astype(f"i{size}")
    return values.reshape(-1, form.channels)
