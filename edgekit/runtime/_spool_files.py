"""The spool's only way to the disk: one private folder, whole operations, nothing followed.

All of the spool's file work goes through `Files`, so that tests can put a failing disk, a power cut
or a kill between any two operations.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import Final, Protocol

from edgekit.errors import Locked, StorageError, TrustError

__all__ = ["SPOOL", "DiskFiles", "Files", "is_ours", "private_folder"]

SPOOL: Final = "edgekit-spool"
"""The spool's folder within a recorder's."""

_LOCK: Final = "lock"
_OURS: Final = re.compile(
    rf"{_LOCK}|{SPOOL}|(consent|budget)(\.new)?|ledger\.[01]|[a-z]+-[0-9a-f]{{16}}\.seg"
)
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class Files(Protocol):
    """A flat folder of small files. Every method may raise OSError."""

    def names(self) -> list[str]:
        """The spool's files there, without the lock."""

    def read(self, name: str, start: int = 0, size: int = -1) -> bytes:
        """``size`` bytes from ``start``, or as many as there are; -1: all."""

    def append(self, name: str, data: bytes) -> None:
        """Adds to the end, making the file where it is missing. A part may stay when it raises."""

    def truncate(self, name: str, size: int) -> None:
        """Cuts a file to ``size`` bytes."""

    def overwrite(self, name: str, data: bytes) -> None:
        """Writes from the start, leaving what lies beyond. A part may stay when it raises."""

    def sync(self, name: str) -> None:
        """Returns when the file's contents would survive a power cut."""

    def sync_folder(self) -> None:
        """Returns when files made and removed would survive a power cut."""

    def remove(self, name: str) -> None:
        """Removes a file; one that is not there is as good as removed."""

    def close(self) -> None:
        """Lets the folder go, and with it the lock."""


def is_ours(name: str) -> bool:
    """Whether a file or folder is one that telemetry makes; no other is ever touched."""
    return _OURS.fullmatch(name) is not None


def private_folder(path: Path) -> int:
    """A folder of this user alone, made where it is missing, as an open descriptor.

    Raises:
        TrustError: it is a link, no folder, another user's, or open to others and not only ours.
        StorageError: it cannot be made or opened.
    """
    try:
        # The folder above may be shared; only what is in ours is private.
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) or path.is_symlink():
            raise TrustError(
                f"{path} is a link or no folder; telemetry is kept in a folder of its own",
                hint="name another folder, or remove what is there",
            ) from error
        raise StorageError(f"cannot open {path}: {error.strerror or error}") from error
    found = os.fstat(folder)
    if found.st_uid != os.geteuid():
        os.close(folder)
        raise TrustError(f"{path} belongs to user {found.st_uid}; telemetry wants one of its own")
    if stat.S_IMODE(found.st_mode) != 0o700:
        with os.scandir(folder) as entries:
            other = sorted(entry.name for entry in entries if not is_ours(entry.name))
        if other:
            os.close(folder)
            raise TrustError(
                f"{path} is open to others and holds {other[0]!r}, which is not telemetry's",
                hint="name a folder that is for telemetry alone",
            )
        os.fchmod(folder, 0o700)
    return folder


class DiskFiles:
    """Files in a folder of mode 0700, each of mode 0600, held by one process at a time.

    The lock is the kernel's (flock), so it cannot outlive its process. A forked child gives its
    copy of it up by `abandon`.

    Raises:
        Locked: another process, or another spool of this one, holds the folder.
        TrustError, StorageError: as `private_folder`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = private_folder(path)
        self._lock = -1
        try:
            self._lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600, dir_fd=self._folder)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
                raise Locked(
                    f"the spool {path} is in use by another process",
                    hint="give each process a folder of its own",
                ) from error
            raise StorageError(f"cannot lock {path}: {error.strerror or error}") from error

    def names(self) -> list[str]:
        # By descriptor: the path may lead elsewhere by now.
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries]
        return sorted(name for name in names if is_ours(name) and name != _LOCK)

    def read(self, name: str, start: int = 0, size: int = -1) -> bytes:
        with os.fdopen(self._open(name, os.O_RDONLY), "rb") as file:
            file.seek(start)
            return file.read(size)

    def append(self, name: str, data: bytes) -> None:
        self._write(name, data, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def truncate(self, name: str, size: int) -> None:
        file = self._open(name, os.O_WRONLY)
        try:
            os.ftruncate(file, size)
        finally:
            os.close(file)

    def overwrite(self, name: str, data: bytes) -> None:
        self._write(name, data, os.O_WRONLY | os.O_CREAT)

    def sync(self, name: str) -> None:
        file = self._open(name, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def sync_folder(self) -> None:
        os.fsync(self._folder)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)

    def close(self) -> None:
        for descriptor in (self._lock, self._folder):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._lock = self._folder = -1

    abandon = close

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | _FLAGS, 0o600, dir_fd=self._folder)

    def _write(self, name: str, data: bytes, flags: int) -> None:
        file = self._open(name, flags)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
        finally:
            os.close(file)
