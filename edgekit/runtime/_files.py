"""Files that others give: regular ones, and no more of them than is wanted."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import BadData

__all__ = ["read_file"]


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
