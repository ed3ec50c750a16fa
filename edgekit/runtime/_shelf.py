"""Shelf: the files of a spool that is open, in the order of their records."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from edgekit.runtime._ledger import Stream
from edgekit.runtime._segments import Segment
from edgekit.runtime._spool_files import Files
from edgekit.runtime._spool_frames import Frame

__all__ = ["Shelf"]


class Shelf:
    """Writes to files, reads along them and removes them; its owner holds a lock and the book.

    Attributes:
        files: the folder.
        segments: the files of each stream, the oldest first.

    Args:
        segment_bytes: after which a new file is begun.
    """

    def __init__(
        self, files: Files, segments: dict[str, list[Segment]], segment_bytes: int
    ) -> None:
        self.files = files
        self.segments = segments
        self._segment_bytes = segment_bytes
        self._rolled = set(segments)  # nothing is added to what an earlier start wrote

    def all(self) -> list[Segment]:
        """The files of all streams."""
        return [segment for segments in self.segments.values() for segment in segments]

    @property
    def size(self) -> int:
        """Of all files together, in bytes."""
        return sum(segment.size for segment in self.all())

    def newest_ms(self) -> int:
        """The latest time of any record, by the spool's own clock."""
        return max((f.age_ms for s in self.all() for f in s.frames.values()), default=0)

    def oldest(self, streams: Iterable[str]) -> Segment | None:
        """The oldest file of the first of some streams that has one."""
        return next((self.segments[name][0] for name in streams if self.segments[name]), None)

    def empty(self, segment: Segment) -> None:
        """Forgets the records of a file, so that it is removed."""
        segment.frames.clear()
        if segment is self.segments[segment.stream][-1]:
            self.roll(segment.stream)

    def clear(self) -> None:
        """Forgets all files."""
        for segments in self.segments.values():
            segments.clear()

    def roll(self, stream: str) -> None:
        """Begins a new file with the next record of a stream."""
        self._rolled.add(stream)

    def entries(self, stream: str) -> Iterator[tuple[Segment, Frame]]:
        """The records of a stream that are not settled, the oldest first, and their files."""
        for segment in list(self.segments[stream]):
            # What is sent must not come back under another number after a power cut.
            try:
                self.sync(segment)
            except OSError:
                return
            for entry in list(segment.frames.values()):
                yield segment, entry

    def sync(self, segment: Segment) -> None:
        """Returns when a file and its name would survive a power cut."""
        if segment.dirty:
            self.files.sync(segment.name)
            if segment.fresh:
                self.files.sync_folder()
            segment.dirty = segment.fresh = False

    def write(self, stream: str, book: Stream, data: bytes, *, through: bool) -> Segment:
        """Adds a record to the last file of its stream, or to a new one.

        Args:
            stream: which.
            book: its book; a number is used up in it where a failed write can't be taken back.
            data: the frame.
            through: whether it is to survive a power cut.

        Returns:
            the file, not yet told of the record.

        Raises:
            OSError: the disk refuses.
        """
        segments = self.segments[stream]
        full = not segments or segments[-1].size + len(data) > self._segment_bytes
        if full or stream in self._rolled:
            segments.append(Segment(stream, book.next, fresh=True))
            self._rolled.discard(stream)
        segment = segments[-1]
        try:
            segment.dirty = True
            self.files.append(segment.name, data)
            if through:
                self.sync(segment)
        except OSError:
            self._rolled.add(stream)
            self._cut(segment, book)
            raise
        return segment

    def _cut(self, segment: Segment, book: Stream) -> None:
        """Takes back what a failed write left; where that fails too, its number is used up."""
        try:
            self.files.truncate(segment.name, segment.size)
        except OSError:
            # In a file of its own what is left could be taken for the record that comes next.
            if not segment.frames and self._there(segment.name):
                book.next += 1
                book.settle([book.next - 1], "disk")
        if not segment.frames:  # its name may be wanted again
            self.segments[segment.stream].remove(segment)
            with contextlib.suppress(OSError):
                self.files.remove(segment.name)

    def _there(self, name: str) -> bool:
        try:
            return name in self.files.names()
        except OSError:
            return True

    def remove_spent(self) -> None:
        """Removes files that hold nothing any more.

        Raises:
            OSError: the disk refuses.
        """
        for name, segments in self.segments.items():
            for segment in list(segments):
                # The one that is being written stays until it is full: flash likes few files.
                written = segment is segments[-1] and name not in self._rolled
                if not segment.frames and not written:
                    self.files.remove(segment.name)
                    segments.remove(segment)
