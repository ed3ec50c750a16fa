"""Spool: telemetry on the disk until a server has it, within a quota, whatever happens.

Records lie in files of checksummed frames (`edgekit.runtime._spool_frames`), one series of files
per stream; a book (`edgekit.runtime._ledger`) says what became of each. What holds at all times,
after any fault, and is asked by `Spool.counts`:

    produced = delivered + dropped (by reason) + pending

- `append` returns when the record would survive a power cut (``fsync="always"``), or after the next
  `sync` (``fsync="interval"``). A kill of the process loses nothing that `append` returned for.
- A start never fails for what it finds: half a record, flipped bits, a missing file or a missing
  book cost the records concerned, which are counted.
- Files never take more than the quota. When it is reached the oldest file goes, of routine metrics
  first, of events only when there are no metrics left.
- Records age by time that the machine was seen running, never by the wall clock.

Why not SQLite: in its write-ahead log a damaged frame ends the log, so what was committed after it
is gone as well, where here the records after it are found again; a database doesn't shrink to keep
a quota without being rewritten; and its connections must not be carried across a fork.
`tests/telemetry/test_spool_damage.py` holds the two side by side.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from edgekit.errors import Locked, StorageError, UsageError
from edgekit.runtime._closing import Closing
from edgekit.runtime._ledger import Ledger, Stream
from edgekit.runtime._records import Counts, Record, counts_of
from edgekit.runtime._segments import Segment, recover
from edgekit.runtime._shelf import Shelf
from edgekit.runtime._spool_files import DiskFiles, Files
from edgekit.runtime._spool_frames import MAX_PAYLOAD, Frame, frame, unframe
from edgekit.runtime.clocks import Clock, SystemClock

__all__ = ["STREAMS", "Counts", "Record", "Spool"]

STREAMS: Final = ("event", "metric")
"""Streams, the one first that is kept longest."""

_MIN_QUOTA: Final = 64 << 10
_DAY_S: Final = 86400.0


class Spool(Closing):
    """The records of one device, in a folder that one process holds.

    Safe to use from several threads. A forked child can't use its parent's: it is told `Locked`.

    Args:
        folder: made with mode 0700 where it is missing.
        quota_bytes: of all files of records together; the book takes some KiB beside them.
        fsync: ``always``, or ``interval``: then `sync` has to be called now and then.
        ttl_s: after how much running time a record is dropped unsent, in seconds.
        clock: the time.
        files: makes the access to the folder; None: the disk's.

    Raises:
        Locked: another process holds it.
        TrustError: the folder is a link or another user's.
        StorageError: it cannot be made, read or written.
        UsageError: the quota is too small to be kept.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        quota_bytes: int = 8 << 20,
        fsync: Literal["always", "interval"] = "always",
        ttl_s: float = 30 * _DAY_S,
        clock: Clock | None = None,
        files: Callable[[], Files] | None = None,
    ) -> None:
        if quota_bytes < _MIN_QUOTA:
            raise UsageError(f"quota_bytes is {quota_bytes}; {_MIN_QUOTA} or more is wanted")
        self.folder = Path(folder)
        self.quota_bytes = quota_bytes
        self._segment_bytes = max(_MIN_QUOTA // 8, min(256 << 10, quota_bytes // 16))
        self._always = fsync == "always"
        self._ttl_ms = int(ttl_s * 1000)
        self._clock = clock or SystemClock()
        self._make = files or (lambda: DiskFiles(self.folder))
        self._lock = threading.RLock()
        self._closed = ""
        self._files = self._make()
        try:
            self._ledger = Ledger.load(self._files, STREAMS)
            segments = recover(self._files, self._ledger)
            self._shelf = Shelf(self._files, segments, self._segment_bytes)
            newest = max(
                (f.age_ms for s in self._shelf.all() for f in s.frames.values()), default=0
            )
            self._ledger.resume(newest, self._clock.boot(), self._now_ms())
            # A full disk is no reason not to start.
            self._keep_book()
            if not self._ledger.whole:  # both slots have their room before the disk is full
                self._keep_book()
        except OSError as error:
            self._files.close()
            raise StorageError(f"cannot read {self.folder}: {error.strerror or error}") from error
        _OPEN.add(self)

    def append(self, stream: str, payload: bytes, *, id: bytes | None = None) -> bytes:
        """Keeps a record.

        Args:
            stream: one of `STREAMS`.
            payload: at most 1 MiB, and at most a quarter of the quota.
            id: 16 bytes, of a record whose writing failed before and may be there all the same.

        Returns:
            its id.

        Raises:
            StorageError: the disk refuses, or events have taken the whole quota; the record is
                not kept, and not counted unless as dropped for ``disk`` where a part of it stayed.
            UsageError: it is too large, or there is no such stream.
            Locked: the spool is closed, or another process's.
        """
        with self._lock:
            self._check()
            book = self._book(stream)
            if len(payload) > min(MAX_PAYLOAD, self.quota_bytes // 4):
                raise UsageError(f"a record of {len(payload)} bytes is too large for the spool")
            id = id or os.urandom(16)
            data = frame(book.next, self._age_ms(), id, payload)
            self._expire()
            self._make_room(stream, len(data))
            try:
                segment = self._write(stream, data)
            except FileNotFoundError:
                segment = self._write_anew(stream, data)
            except OSError as error:
                raise self._refused(error) from error
            age = self._age_ms()
            segment.frames[book.next] = Frame(book.next, age, id, segment.size, len(data))
            segment.size += len(data)
            book.next += 1
            return id

    def refuse(self, stream: str, reason: str) -> None:
        """Counts a record that could not be kept and will not be tried again."""
        with self._lock:
            self._book(stream).refuse(reason)

    def sync(self) -> None:
        """Returns when all records would survive a power cut.

        Raises:
            StorageError: the disk refuses.
        """
        with self._lock:
            self._check()
            try:
                for segment in self._shelf.all():
                    self._shelf.sync(segment)
            except OSError as error:
                raise self._refused(error) from error

    def take(self, stream: str, *, records: int = 256, size: int = 256 << 10) -> list[Record]:
        """The oldest records that are neither delivered nor dropped; they stay until settled.

        Args:
            stream: one of `STREAMS`.
            records: how many at most.
            size: of their payloads, in bytes; one record is given whatever its size.
        """
        with self._lock:
            self._check()
            self._expire()
            taken: list[Record] = []
            gone: dict[str, list[int]] = {"damaged": [], "lost": []}
            for segment, entry in self._shelf.entries(stream):
                try:
                    data = self._files.read(segment.name, entry.start, entry.size)
                except FileNotFoundError:
                    gone["lost"].append(entry.seq)
                    continue
                except OSError:  # it may be read another time
                    continue
                found = unframe(data)
                if found is None or found[0] != entry.seq:
                    gone["damaged"].append(entry.seq)
                    continue
                size -= len(found[1])
                if taken and (size < 0 or len(taken) >= records):
                    break
                taken.append(Record(stream, entry.seq, entry.id, found[1]))
            for reason, seqs in gone.items():
                self._settle(stream, seqs, reason)
            return taken

    def settle(self, stream: str, seqs: Iterable[int], reason: str | None = None) -> None:
        """Records that a server took, or that are dropped for a reason, and need not be kept."""
        with self._lock:
            self._check()
            self._settle(stream, seqs, reason)

    def counts(self, stream: str | None = None) -> Counts:
        """What became of the records, of one stream or of all."""
        with self._lock:
            names = [stream] if stream else list(STREAMS)
            pending = sum(len(s.frames) for name in names for s in self._shelf.segments[name])
            return counts_of([self._book(name) for name in names], pending)

    def next_sequence(self, stream: str) -> int:
        """The number of the next record of a stream, from 1 with each new name of the device: one
        that went on would tell which names are one device's."""
        with self._lock:
            book = self._book(stream)
            return book.next - book.named + 1

    def untold(self) -> dict[tuple[str, str], int]:
        """How many records were dropped that no record has told of, by stream and reason."""
        with self._lock:
            return {
                (name, reason): count - book.told.get(reason, 0)
                for name, book in self._ledger.streams.items()
                for reason, count in book.dropped.items()
                if count > book.told.get(reason, 0)
            }

    def tell(self, drops: Mapping[tuple[str, str], int]) -> None:
        """Counts drops as told, once a record that tells of them is kept."""
        with self._lock:
            for (name, reason), count in drops.items():
                told = self._book(name).told
                told[reason] = told.get(reason, 0) + count

    @property
    def bytes_held(self) -> int:
        """Of all files of records, in bytes."""
        with self._lock:
            return self._shelf.size

    def instance(self, rotate_s: float) -> str:
        """The device's name of the day: 32 random hex digits, new on the next day of UTC, and after
        ``rotate_s`` seconds of running time.

        With days, as a receiver counts devices by the names of a day: with two of them each device
        would be two. Running time is for clocks that stand still or were set back.
        """
        with self._lock:
            book, age, day = self._ledger, self._age_ms(), int(self._clock.wall() // _DAY_S)
            stale = day > book.instance_day or age - book.instance_ms >= rotate_s * 1000
            if not book.instance or stale:
                book.instance = os.urandom(16).hex()
                book.instance_ms, book.instance_day = age, day
                for stream in book.streams.values():
                    stream.named = stream.next
                self._keep_book()
            return book.instance

    def erase(self) -> None:
        """Removes every record and the book, and returns when that would survive a power cut.

        Raises:
            StorageError: something could not be removed.
        """
        with self._lock:
            self._check()
            self._shelf.clear()
            self._ledger = Ledger({name: Stream() for name in STREAMS})
            try:
                for name in self._files.names():
                    self._files.remove(name)
                self._files.sync_folder()
            except FileNotFoundError:
                return
            except OSError as error:
                raise self._refused(error) from error

    def close(self, *, keep: bool = True) -> None:
        """Writes the book, unless it is not to be kept, and lets the folder go."""
        with self._lock:
            if self._closed:
                return
            if keep:
                with contextlib.suppress(StorageError):
                    self.sync()
                self._keep_book()
            self._closed = "the spool is closed"
            self._files.close()

    def _check(self) -> None:
        if self._closed:
            raise Locked(self._closed, hint="open a spool of its own for each process")

    def _book(self, stream: str) -> Stream:
        if stream not in STREAMS:
            raise UsageError(f"there is no stream {stream!r}; allowed: {', '.join(STREAMS)}")
        return self._ledger.streams[stream]

    def _now_ms(self) -> int:
        return int(self._clock.monotonic() * 1000)

    def _age_ms(self) -> int:
        return self._ledger.age_at(self._now_ms())

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(f"the spool {self.folder}: {error.strerror or error}")

    def _write(self, stream: str, data: bytes) -> Segment:
        through = self._always or stream == STREAMS[0]
        return self._shelf.write(stream, self._book(stream), data, through=through)

    def _write_anew(self, stream: str, data: bytes) -> Segment:
        """After the folder was taken away: what it held is lost, the record goes to a new one."""
        self._files.close()
        try:
            self._files = self._make()
            for segment in self._shelf.all():
                self._book(segment.stream).settle(list(segment.frames), "lost")
            empty: dict[str, list[Segment]] = {name: [] for name in STREAMS}
            self._shelf = Shelf(self._files, empty, self._segment_bytes)
            return self._write(stream, data)
        except OSError as error:
            raise self._refused(error) from error

    def _keep_book(self) -> None:
        """Writes the book, then removes files that hold nothing any more.

        In this order: a file that is gone while the book still counts on it is a loss. Where the
        book cannot be written, files stay, and what they hold may be sent again.
        """
        self._ledger.age_ms, self._ledger.clock_ms = self._age_ms(), self._now_ms()
        try:
            self._ledger.save(self._files)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return
            # The only way to room for the book. Should the power go now, what was delivered
            # counts as lost; better than to be stuck for good.
            with contextlib.suppress(OSError):
                self._shelf.remove_spent()
                self._ledger.save(self._files)
            return
        with contextlib.suppress(OSError):
            self._shelf.remove_spent()

    def _settle(self, stream: str, seqs: Iterable[int], reason: str | None) -> None:
        new = self._book(stream).settle(seqs, reason)
        if not new:
            return
        for segment in self._shelf.segments[stream]:
            for seq in new:
                segment.frames.pop(seq, None)
        self._keep_book()

    def _expire(self) -> None:
        oldest = self._age_ms() - self._ttl_ms
        for stream in STREAMS:
            old: list[int] = []
            for segment in self._shelf.segments[stream]:
                stale = [seq for seq, entry in segment.frames.items() if entry.age_ms < oldest]
                old += stale
                if len(stale) < len(segment.frames):
                    break
            self._settle(stream, old, "expired")

    def _make_room(self, stream: str, size: int) -> None:
        """Removes the oldest file of the least stream, until a record fits into the quota."""
        weaker = list(reversed(STREAMS))[: len(STREAMS) - STREAMS.index(stream)]
        while self.bytes_held + size > self.quota_bytes:
            victim = self._shelf.oldest(weaker)
            if victim is None:
                raise StorageError(f"the spool {self.folder} is full of what matters more")
            self._book(victim.stream).settle(list(victim.frames), "quota")
            self._shelf.empty(victim)
            self._keep_book()
            try:
                self._shelf.remove_spent()  # though the book could not be written
            except OSError as error:
                raise self._refused(error) from error


_OPEN: weakref.WeakSet[Spool] = weakref.WeakSet()


def _forked() -> None:
    """In a forked child: the parent's spools are not its own, and it must not hold their locks."""
    for spool in _OPEN:
        spool._lock = threading.RLock()
        if not spool._closed:
            spool._closed = "the spool belongs to the process that this one was forked from"
            spool._files.close()


os.register_at_fork(after_in_child=_forked)
