"""The WAV reader: against the standard library and scipy, and against damaged files."""

from __future__ import annotations

import io
import struct
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.runtime.wav import BadWav, read_wav

PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")


def _fmt(code: int, channels: int, rate: int, bits: int, extra: bytes = b"") -> bytes:
    frame = channels * bits // 8
    return struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, bits) + extra


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _pcm(values: np.ndarray[Any, Any], bits: int, rate: int = 16_000) -> bytes:
    """By the standard library; ``values`` are of ``bits`` bits, ``[n, channels]``."""
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        if bits == 8:
            file.writeframes((values + 128).astype(np.uint8).tobytes())
        else:
            four = values.astype("<i4").reshape(-1, 1).view(np.uint8)
            file.writeframes(four[:, : bits // 8].tobytes())
    return sink.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_pcm_of_every_depth(bits: int, channels: int) -> None:
    top = 2 ** (bits - 1)
    values = np.random.default_rng(bits).integers(-top, top, (101, channels))
    values[0], values[1] = -top, top - 1
    wav = read_wav(_pcm(values, bits, 44_100))
    assert wav.rate == 44_100
    assert wav.samples.dtype == (np.int16 if bits <= 16 else np.int32)
    full = 2.0 ** (8 * wav.samples.dtype.itemsize - 1)
    assert np.array_equal(wav.samples / full, values / top)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_as_scipy_writes_them(dtype: str) -> None:
    wavfile = pytest.importorskip("scipy.io.wavfile")
    values = np.random.default_rng(0).normal(size=(64, 2)).astype(dtype)
    sink = io.BytesIO()
    wavfile.write(sink, 48_000, values)
    wav = read_wav(sink.getvalue())
    assert (wav.rate, wav.samples.dtype) == (48_000, np.float32)
    assert np.array_equal(wav.samples, values.astype(np.float32))


def test_extensible_headers_and_other_chunks() -> None:
    values = np.arange(-3, 3, dtype="<i2")
    header = _fmt(0xFFFE, 1, 8000, 16, struct.pack("<HHI", 22, 16, 4) + PCM_GUID)
    wav = read_wav(
        _riff(_chunk(b"LIST", b"odd"), _chunk(b"fmt ", header), _chunk(b"data", values.tobytes()))
        + b"trailing"[:5]
    )
    assert np.array_equal(wav.samples[:, 0], values)


GOOD = _fmt(1, 1, 16_000, 16)
DATA = _chunk(b"data", b"\1\0\2\0")
BROKEN = {
    "nothing": (b"", "does not begin"),
    "text": (b"a text, no sound at all", "does not begin"),
    "big endian": (b"RIFX" + _riff(_chunk(b"fmt ", GOOD), DATA)[4:], "RIFX"),
    "64 bits": (b"RF64" + _riff(_chunk(b"fmt ", GOOD), DATA)[4:], "RF64"),
    "no format": (_riff(_chunk(b"LIST", b"")), "no fmt chunk"),
    "no data": (_riff(_chunk(b"fmt ", GOOD)), "no data chunk"),
    "data first": (_riff(DATA, _chunk(b"fmt ", GOOD)), "before their format"),
    "two formats": (_riff(_chunk(b"fmt ", GOOD), _chunk(b"fmt ", GOOD), DATA), "two fmt"),
    "short format": (_riff(_chunk(b"fmt ", GOOD[:14]), DATA), "14 bytes"),
    "A-law": (_riff(_chunk(b"fmt ", _fmt(6, 1, 8000, 8)), DATA), "A-law"),
    "MP3": (_riff(_chunk(b"fmt ", _fmt(85, 1, 8000, 8)), DATA), "MP3"),
    "12 bits": (_riff(_chunk(b"fmt ", _fmt(1, 1, 8000, 12)), DATA), "12 bits"),
    "16-bit floats": (_riff(_chunk(b"fmt ", _fmt(3, 1, 8000, 16)), DATA), "floats of 16"),
    "no channels": (_riff(_chunk(b"fmt ", _fmt(1, 0, 8000, 16)), DATA), "0 channels"),
    "65 channels": (_riff(_chunk(b"fmt ", _fmt(1, 65, 8000, 16)), DATA), "65 channels"),
    "no rate": (_riff(_chunk(b"fmt ", _fmt(1, 1, 0, 16)), DATA), "0 Hz"),
    "high rate": (_riff(_chunk(b"fmt ", _fmt(1, 1, 2**30, 16)), DATA), "1073741824 Hz"),
    "frame": (_riff(_chunk(b"fmt ", GOOD[:12] + b"\7\0" + GOOD[14:]), DATA), "says 7 bytes"),
    "half a sample": (_riff(_chunk(b"fmt ", GOOD), _chunk(b"data", b"123")), "within a sample"),
    "empty": (_riff(_chunk(b"fmt ", GOOD), _chunk(b"data", b"")), "no samples"),
    "extensible": (_riff(_chunk(b"fmt ", _fmt(0xFFFE, 1, 8000, 16)), DATA), "extensible"),
    "NaN": (
        _riff(_chunk(b"fmt ", _fmt(3, 1, 8000, 32)), _chunk(b"data", struct.pack("<f", np.nan))),
        "NaN",
    ),
    "beyond float32": (
        _riff(_chunk(b"fmt ", _fmt(3, 1, 8000, 64)), _chunk(b"data", struct.pack("<d", 1e300))),
        "infinity",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused(name: str) -> None:
    content, words = BROKEN[name]
    with pytest.raises(BadWav, match=words):
        read_wav(content)


def test_every_cut_is_refused() -> None:
    whole = _pcm(np.arange(-20, 20).reshape(-1, 2), 16)
    for end in range(len(whole)):
        with pytest.raises(BadWav):
            read_wav(whole[:end])
    assert len(read_wav(whole).samples) == 20


def test_a_size_that_lies_allocates_nothing() -> None:
    lying = _riff(_chunk(b"fmt ", GOOD), b"data" + struct.pack("<I", 0xFFFFFFFF) + b"\0\0")
    with pytest.raises(BadWav, match=r"says 4294967295 bytes, 2 are there"):
        read_wav(lying)


@given(st.binary(max_size=120), st.integers(0, 80), st.binary(min_size=1, max_size=6))
def test_noise_is_refused_or_read_and_nothing_else(tail: bytes, at: int, patch: bytes) -> None:
    whole = bytearray(_pcm(np.arange(-9, 9).reshape(-1, 1), 16) + tail)
    whole[at : at + len(patch)] = patch
    try:
        wav = read_wav(bytes(whole))
    except BadWav:
        return
    assert wav.samples.ndim == 2 and wav.samples.size and wav.rate > 0
    assert np.isfinite(wav.samples.astype(np.float64)).all()
