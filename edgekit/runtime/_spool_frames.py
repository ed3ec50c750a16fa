"""Frames of the spool: records that tell by themselves whether they are whole.

A frame is ``magic | crc32 | length | seq | age_ms | id | payload``, little-endian. The checksum
(zlib's CRC-32: the standard library has no CRC-32C) covers all that follows it. A reader that meets
something else looks for the next magic, so one bad byte costs the records that it is in and no
other.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

__all__ = ["HEADER_BYTES", "MAX_PAYLOAD", "Frame", "Scan", "frame", "scan", "unframe"]

_MAGIC: Final = b"\xe5EKr"
_HEAD: Final = struct.Struct("<4sI")
_BODY: Final = struct.Struct("<IQQ16s")
HEADER_BYTES: Final = _HEAD.size + _BODY.size
MAX_PAYLOAD: Final = 1 << 20
"""Bytes that a record may hold; a longer length in a file is damage, and nothing is allocated."""


@dataclass(frozen=True)
class Frame:
    """Where a whole record lies.

    Attributes:
        seq: its number in its stream.
        age_ms: what the spool's own clock showed when it was written.
        id: 16 random bytes that name it for ever.
        start, size: of the frame in its file, in bytes.
    """

    seq: int
    age_ms: int
    id: bytes
    start: int
    size: int


@dataclass(frozen=True)
class Scan:
    """What a file holds.

    Attributes:
        frames: the whole records, by seq.
        torn: whether the file ends in something that is none.
        bad_bytes: bytes that belong to no whole record.
    """

    frames: list[Frame]
    torn: bool
    bad_bytes: int


def frame(seq: int, age_ms: int, id: bytes, payload: bytes) -> bytes:
    """A record as bytes."""
    body = _BODY.pack(len(payload), seq, age_ms, id) + payload
    return _HEAD.pack(_MAGIC, zlib.crc32(body)) + body


def scan(data: bytes, first: int) -> Scan:
    """Finds every whole record in a file, whatever else there is.

    Args:
        data: the file.
        first: the seq of its first record; a lower one is damage.
    """
    frames: list[Frame] = []
    at, bad, torn = 0, 0, False
    while at < len(data):
        found = _read(data, at, frames[-1].seq + 1 if frames else first)
        if found is not None:
            frames.append(found)
            at += found.size
            torn = False
            continue
        torn = True
        after = data.find(_MAGIC, at + 1)
        after = len(data) if after < 0 else after
        bad += after - at
        at = after
    return Scan(frames, torn, bad)


def unframe(data: bytes) -> tuple[int, bytes] | None:
    """Seq and payload of one frame that fills ``data``; None where it is not whole any more."""
    found = _read(data, 0, 0)
    if found is None or found.size != len(data):
        return None
    return found.seq, data[HEADER_BYTES:]


def _read(data: bytes, at: int, least: int) -> Frame | None:
    if len(data) - at < HEADER_BYTES:
        return None
    magic, crc = _HEAD.unpack_from(data, at)
    length, seq, age_ms, id = _BODY.unpack_from(data, at + _HEAD.size)
    size = HEADER_BYTES + length
    if magic != _MAGIC or length > MAX_PAYLOAD or len(data) - at < size or seq < least:
        return None
    if zlib.crc32(memoryview(data)[at + _HEAD.size : at + size]) != crc:
        return None
    return Frame(seq, age_ms, id, at, size)
