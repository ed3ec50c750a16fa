"""Files that others give, no more of them than is wanted; and small ones of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from edgekit.errors import BadData

__all__ = ["read_file", "replace_file"]

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


def read_file(path: Path, limit: int, what: str) -> bytes:
    """At most ``limit`` + 1 bytes of a regular file, so that its reader can tell one too large.

    Args:
        path: the file.
        limit: in bytes.
        what: of what kind it is, for messages.

    Raises:
        BadData: there is no such file, or it cannot be read.
    """
    try:
        # A pipe or a device would block or never end.
        if not path.is_file():
            raise BadData(f"there is no {what} file {path}")
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror or error}") from error


def replace_file(folder: int, name: str, data: bytes) -> None:
    """Puts a small file in the place of what had its name, and returns when the disk has it.

    Args:
        folder: an open descriptor.
        name: within it; what is being written is called ``<name>.new``.
        data: all of it.

    Raises:
        OSError: it can't be written; then the file is as it was.
    """
    file = os.open(name + ".new", _FLAGS, 0o600, dir_fd=folder)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)
    os.replace(name + ".new", name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
