"""The spool's book: what became of every record, in two slots written in turn.

A write goes to the slot that holds the older book and never touches the newer, so one whole book
outlives a write that is cut short, without a rename. Each slot carries its length and a checksum.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from edgekit.runtime._spool_files import Files

__all__ = ["SLOTS", "Ledger", "Stream"]

SLOTS: Final = ("ledger.0", "ledger.1")
_HEAD: Final = struct.Struct("<4sIIQ")
_MAGIC: Final = b"\xe5EKl"
_BLOCK: Final = 4096


@dataclass
class Stream:
    """The book of one stream.

    Attributes:
        next: the number that its next record gets.
        named: that of the first record under the device's present name.
        base: every record below is settled, that is delivered or dropped.
        settled: records above ``base`` that are.
        delivered: how many the server took.
        dropped: how many were dropped, by reason.
        unspooled: how many of the dropped never got a number, as the disk refused them.
        told: what of the dropped has been reported to the server, by reason.
        origin: its first number; above 1 where an earlier book could not be read.
    """

    next: int = 1
    named: int = 1
    base: int = 1
    settled: set[int] = field(default_factory=set)
    delivered: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    unspooled: int = 0
    origin: int = 1
    told: dict[str, int] = field(default_factory=dict)

    def settle(self, seqs: Iterable[int], reason: str | None) -> list[int]:
        """Counts records as dropped for a reason, or as delivered; those that were not before."""
        new = sorted({s for s in seqs if self.base <= s < self.next} - self.settled)
        self.settled.update(new)
        if reason is None:
            self.delivered += len(new)
        elif new:
            self.dropped[reason] = self.dropped.get(reason, 0) + len(new)
        while self.base in self.settled:
            self.settled.discard(self.base)
            self.base += 1
        return new

    def open(self) -> list[int]:
        """Records that are neither delivered nor dropped."""
        return [seq for seq in range(self.base, self.next) if seq not in self.settled]

    def refuse(self, reason: str) -> None:
        """Counts a record that never got to the disk."""
        self.unspooled += 1
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    @property
    def produced(self) -> int:
        """Every record that there ever was."""
        return self.next - self.origin + self.unspooled

    @property
    def pending(self) -> int:
        """How many are neither delivered nor dropped."""
        return self.next - self.base - len(self.settled)

    def to_json(self) -> dict[str, Any]:
        return {
            "next": self.next,
            "named": self.named,
            "base": self.base,
            "settled": _ranges(self.settled),
            "delivered": self.delivered,
            "dropped": self.dropped,
            "unspooled": self.unspooled,
            "origin": self.origin,
            "told": self.told,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Stream:
        settled = {seq for low, high in data["settled"] for seq in range(low, high + 1)}
        return cls(
            next=int(data["next"]),
            named=int(data.get("named", 1)),
            base=int(data["base"]),
            settled=settled,
            delivered=int(data["delivered"]),
            dropped={str(k): int(v) for k, v in data["dropped"].items()},
            unspooled=int(data["unspooled"]),
            origin=int(data["origin"]),
            told={str(k): int(v) for k, v in data["told"].items()},
        )


@dataclass
class Ledger:
    """The whole book.

    Attributes:
        streams: the book of each stream.
        age_ms: the spool's own clock: time that it was seen to pass since the spool was made.
        boot: which start of the machine that was; clock_ms: the machine's clock since then.
        instance, instance_ms, instance_day: the rotating name of this device, and age_ms and the
            day of UTC when it was made.
        whole: whether both slots hold a book.
    """

    streams: dict[str, Stream]
    age_ms: int = 0
    boot: str = ""
    clock_ms: int = 0
    instance: str = ""
    instance_ms: int = 0
    instance_day: int = -1
    whole: bool = True
    _generation: int = 0
    _slot: int = 0

    @classmethod
    def load(cls, files: Files, streams: Iterable[str]) -> Ledger:
        """The newest whole book; an empty one where there is none."""
        books: list[tuple[int, int, dict[str, Any]]] = []
        present = [name for name in SLOTS if name in files.names()]
        for name in present:
            try:
                found = _unpack(files.read(name))
            except OSError:  # a bad sector, or a link that somebody put there: made anew
                files.remove(name)
                continue
            if found is not None:
                books.append((found[0], SLOTS.index(name), found[1]))
        fresh = {name: Stream() for name in streams}
        for generation, slot, data in sorted(books, key=lambda book: book[0], reverse=True):
            try:
                kept = {k: Stream.from_json(v) for k, v in data["streams"].items() if k in fresh}
                return cls(
                    streams=fresh | kept,
                    age_ms=int(data["age_ms"]),
                    boot=str(data["boot"]),
                    clock_ms=int(data["clock_ms"]),
                    instance=str(data["instance"]),
                    instance_ms=int(data["instance_ms"]),
                    instance_day=int(data.get("instance_day", -1)),
                    whole=len(books) == len(SLOTS),
                    _generation=generation,
                    _slot=1 - slot,
                )
            except (KeyError, TypeError, ValueError):  # a later edgekit's book
                continue
        return cls(streams=fresh, whole=False)

    def resume(self, newest_ms: int, boot: str, now_ms: int) -> None:
        """Goes on with the spool's own clock after a start.

        Where the machine was started since, it ran at least for the time that its clock shows;
        how long it was off nobody knows, and that time doesn't count.

        Args:
            newest_ms: the latest time of any record.
            boot: which start of the machine this is.
            now_ms: the machine's clock.
        """
        passed = now_ms - self.clock_ms if boot == self.boot else now_ms
        self.age_ms = max(self.age_ms + max(passed, 0), newest_ms)
        self.boot, self.clock_ms = boot, now_ms

    def age_at(self, now_ms: int) -> int:
        """The spool's own clock when the machine's shows ``now_ms``."""
        return self.age_ms + max(now_ms - self.clock_ms, 0)

    def save(self, files: Files) -> None:
        """Writes it and returns when it would survive a power cut.

        Raises:
            OSError: the disk refuses; the book before it is untouched.
        """
        document = {
            "streams": {name: stream.to_json() for name, stream in self.streams.items()},
            "age_ms": self.age_ms,
            "boot": self.boot,
            "clock_ms": self.clock_ms,
            "instance": self.instance,
            "instance_ms": self.instance_ms,
            "instance_day": self.instance_day,
        }
        body = json.dumps(document, separators=(",", ":")).encode()
        generation = self._generation + 1
        crc = zlib.crc32(generation.to_bytes(8, "little") + body)
        data = _HEAD.pack(_MAGIC, crc, len(body), generation) + body
        # Whole blocks from the start, so that a full disk has room for the next one.
        files.overwrite(SLOTS[self._slot], data + bytes(-len(data) % _BLOCK))
        files.sync(SLOTS[self._slot])
        if generation <= len(SLOTS):
            files.sync_folder()  # the slot was made just now
        self._generation, self._slot = generation, 1 - self._slot


def _unpack(data: bytes) -> tuple[int, dict[str, Any]] | None:
    if len(data) < _HEAD.size:
        return None
    magic, crc, size, generation = _HEAD.unpack_from(data)
    body = data[_HEAD.size : _HEAD.size + size]
    if magic != _MAGIC or len(body) != size:
        return None
    if zlib.crc32(generation.to_bytes(8, "little") + body) != crc:
        return None
    try:
        document = json.loads(body)
    except ValueError:
        return None
    return (generation, document) if isinstance(document, dict) else None


def _ranges(numbers: set[int]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges
