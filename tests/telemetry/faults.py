"""Disks that fail and lose power, clocks that are set, servers that answer by script."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from collections.abc import Callable, Mapping

from edgekit.runtime._spool_files import DiskFiles, Files
from edgekit.runtime.schedule import Answer


class FakeClock:
    """Time that passes when it is told to, or when somebody waits."""

    def __init__(self, start: float = 1000.0, wall: float = 1.7e9, boot: str = "boot-1") -> None:
        self.now, self.time, self.name = start, wall, boot

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.time

    def boot(self) -> str:
        return self.name

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.advance(seconds)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.time += seconds

    def reboot(self) -> None:
        self.now, self.name = 5.0, self.name + "+"


class FailingFiles:
    """A real folder; a hook is told of each operation before it is done, and may raise."""

    def __init__(self, inner: Files, hook: Callable[[str, str], None]) -> None:
        self._inner, self._hook = inner, hook

    def names(self) -> list[str]:
        self._hook("names", "")
        return self._inner.names()

    def read(self, name: str, start: int = 0, size: int = -1) -> bytes:
        self._hook("read", name)
        return self._inner.read(name, start, size)

    def append(self, name: str, data: bytes) -> None:
        self._hook("append", name)
        self._inner.append(name, data)

    def truncate(self, name: str, size: int) -> None:
        self._hook("truncate", name)
        self._inner.truncate(name, size)

    def overwrite(self, name: str, data: bytes) -> None:
        self._hook("overwrite", name)
        self._inner.overwrite(name, data)

    def sync(self, name: str) -> None:
        self._hook("sync", name)
        self._inner.sync(name)

    def sync_folder(self) -> None:
        self._hook("sync_folder", "")
        self._inner.sync_folder()

    def remove(self, name: str) -> None:
        self._hook("remove", name)
        self._inner.remove(name)

    def close(self) -> None:
        self._inner.close()


class KilledFiles(DiskFiles):
    """A real folder in a process that kills itself in its n-th change to it, part of it done."""

    def __init__(self, path: os.PathLike[str], after: int, share: float) -> None:
        from pathlib import Path

        self._left, self._share = after, share
        super().__init__(Path(path))

    def _count(self) -> bool:
        self._left -= 1
        return self._left == 0

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def append(self, name: str, data: bytes) -> None:
        if self._count():
            super().append(name, data[: int(len(data) * self._share)])
            self._die()
        super().append(name, data)

    def overwrite(self, name: str, data: bytes) -> None:
        if self._count():
            super().overwrite(name, data[: int(len(data) * self._share)])
            self._die()
        super().overwrite(name, data)

    def sync(self, name: str) -> None:
        if self._count():
            self._die()
        super().sync(name)

    def remove(self, name: str) -> None:
        if self._count():
            if self._share > 0.5:
                super().remove(name)
            self._die()
        super().remove(name)


class PowerCut(BaseException):
    """The power went: nothing after it happens."""


class MemoryFiles:
    """A disk in memory that forgets, when the power goes, some of what was not synced.

    Of a file it keeps what was synced and any part of what came after; of files made and removed
    since the folder was synced, any.
    """

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk

    def names(self) -> list[str]:
        return sorted(self._disk.now)

    def read(self, name: str, start: int = 0, size: int = -1) -> bytes:
        data = bytes(self._get(name))
        return data[start:] if size < 0 else data[start : start + size]

    def append(self, name: str, data: bytes) -> None:
        self._disk.tick(lambda part: self._put(name, data[:part]), len(data))
        self._put(name, data)

    def truncate(self, name: str, size: int) -> None:
        self._disk.tick()
        del self._get(name)[size:]

    def overwrite(self, name: str, data: bytes) -> None:
        def write(part: int) -> None:
            self._disk.now.setdefault(name, bytearray())[:part] = data[:part]

        self._disk.tick(write, len(data))
        write(len(data))

    def sync(self, name: str) -> None:
        self._disk.tick()
        self._disk.synced[name] = bytes(self._get(name))

    def sync_folder(self) -> None:
        self._disk.tick()
        self._disk.listed = set(self._disk.now)

    def remove(self, name: str) -> None:
        self._disk.tick()
        self._disk.now.pop(name, None)

    def close(self) -> None:
        return

    def _get(self, name: str) -> bytearray:
        if name not in self._disk.now:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return self._disk.now[name]

    def _put(self, name: str, data: bytes) -> None:
        self._disk.now.setdefault(name, bytearray()).extend(data)


class MemoryDisk:
    """What lies on the disk, now and after a power cut."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.now: dict[str, bytearray] = {}
        self.synced: dict[str, bytes] = {}
        self.listed: set[str] = set()
        self.left = -1
        """Operations until the power goes; below 0: it stays."""

    def tick(self, part: Callable[[int], None] | None = None, size: int = 0) -> None:
        self.left -= 1
        if self.left == 0:
            if part is not None:
                part(self._random.randint(0, size))
            raise PowerCut

    def cut(self) -> None:
        """What is left after the power went."""
        after: dict[str, bytearray] = {}
        for name in set(self.now) | self.listed:
            made = name in self.now
            if made != (name in self.listed) and self._random.random() < 0.5:
                made = not made  # this change of the folder didn't get through
            if not made:
                continue
            synced = self.synced.get(name, b"")
            written = bytes(self.now.get(name, synced))
            if len(written) < len(synced):
                written = self._random.choice([written, synced])
            kept = self._random.randint(min(len(synced), len(written)), len(written))
            # Overwritten sectors are old or new, in any mixture.
            same = written[:kept]
            old = synced[: len(same)]
            where = self._random.randint(0, len(same))
            mixed = same[:where] + old[where:] + same[max(where, len(old)) :]
            after[name] = bytearray(mixed if old != same[: len(old)] else same)
        self.now = after
        self.synced = {name: bytes(data) for name, data in after.items()}
        self.listed = set(after)
        self.left = -1


class Scripted:
    """A server that answers what a function says, and keeps what it was sent."""

    def __init__(self, answer: Callable[[str, bytes], Answer]) -> None:
        self._answer = answer
        self.sent: list[tuple[str, bytes, Mapping[str, str]]] = []
        self.aborted = False

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        self.sent.append((path, body, headers))
        return self._answer(path, body)

    def abort(self) -> None:
        self.aborted = True


OK = Answer(200, content_type="application/x-protobuf")
