"""Segments of the spool: files of frames, and what is found of them at the start."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from edgekit.runtime._ledger import Ledger, Stream
from edgekit.runtime._spool_files import Files
from edgekit.runtime._spool_frames import Frame, scan

__all__ = ["Segment", "recover"]

_MOST_BYTES: Final = 16 << 20
"""More of a file is not read: none that the spool wrote is so long."""

_NAME: Final = re.compile(r"([a-z]+)-([0-9a-f]{16})\.seg")


@dataclass
class Segment:
    """One file of one stream.

    Attributes:
        stream, first: which, and the seq that it begins with; together its name.
        size: bytes on the disk.
        frames: its records that are neither delivered nor dropped, by seq.
        dirty: whether bytes of it are not synced; fresh: whether its name is not.
    """

    stream: str
    first: int
    size: int = 0
    frames: dict[int, Frame] = field(default_factory=dict)
    dirty: bool = False
    fresh: bool = False

    @property
    def name(self) -> str:
        return f"{self.stream}-{self.first:016x}.seg"


def recover(files: Files, ledger: Ledger) -> dict[str, list[Segment]]:
    """Reads what is there, and brings the book up to date with it.

    Records that the book has as open and no file has are dropped for the reason ``damaged`` where
    a file is not whole, else ``lost``. A file that ends in half a record counts as one record more,
    dropped as ``torn``: it was being written when the power or the process went.

    Raises:
        OSError: the folder cannot be read.
    """
    found: dict[str, list[Segment]] = {name: [] for name in ledger.streams}
    harmed: dict[str, list[int]] = {name: [] for name in ledger.streams}
    ends: dict[str, int] = dict.fromkeys(ledger.streams, 0)
    for name in files.names():
        match = _NAME.fullmatch(name)
        if match is None or match[1] not in found:
            continue
        stream, first = match[1], int(match[2], 16)
        try:
            data = files.read(name, 0, _MOST_BYTES)
        except OSError:  # its sectors are gone; the book will show what that cost
            harmed[stream].append(first)
            found[stream].append(Segment(stream, first))
            ends[stream] = max(ends[stream], first + 1)
            continue
        seen = scan(data, first)
        frames = {frame.seq: frame for frame in seen.frames}
        found[stream].append(Segment(stream, first, len(data), frames))
        if seen.bad_bytes:
            harmed[stream].append(first)
        last = max(frames, default=first - 1)
        # Half a record at the end of the last file had a number of its own.
        ends[stream] = max(ends[stream], last + 1 + seen.torn)
    for name, segments in found.items():
        segments.sort(key=lambda segment: segment.first)
        _part(segments)
        _balance(ledger.streams[name], segments, harmed[name], ends[name])
        open = set(ledger.streams[name].open())
        for segment in segments:
            segment.frames = {seq: f for seq, f in segment.frames.items() if seq in open}
    return found


def _part(segments: list[Segment]) -> None:
    """Gives each number to one file: a write that failed may have reached the disk after all."""
    for segment, after in itertools.pairwise(segments):
        segment.frames = {seq: f for seq, f in segment.frames.items() if seq < after.first}


def _balance(stream: Stream, segments: list[Segment], harmed: list[int], end: int) -> None:
    if stream.next == 1 and segments:  # no book: what went before is not known
        stream.origin = stream.base = stream.next = segments[0].first
    known = stream.next
    stream.next = max(stream.next, end)
    live: set[int] = set().union(*(segment.frames for segment in segments)) if segments else set()
    starts = sorted({segment.first for segment in segments} | set(harmed))
    gone = [seq for seq in stream.open() if seq not in live]
    for reason, seqs in _reasons(gone, starts, harmed, end, known).items():
        stream.settle(seqs, reason)


def _reasons(
    gone: Iterable[int], starts: list[int], harmed: list[int], end: int, known: int
) -> Mapping[str, list[int]]:
    reasons: dict[str, list[int]] = {"torn": [], "damaged": [], "lost": []}
    for seq in gone:
        home = max((start for start in starts if start <= seq), default=None)
        if seq == end - 1 and seq >= known and home in harmed:
            reasons["torn"].append(seq)
        elif home in harmed:
            reasons["damaged"].append(seq)
        else:
            reasons["lost"].append(seq)
    return reasons
