"""Temporary folders that outlive their process only until the next one begins.

A killed process leaves its folders behind, and a program of a large model is gigabytes. So each is
locked (flock(2)) by who made it: a folder whose lock is free belongs to nobody, and the first
folder that a process makes clears those away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["scratch", "sweep"]

_PREFIX: Final = "edgekit-"
_OWNER: Final = ".owner"
_swept: set[str] = set()


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """An empty folder, gone when the context ends.

    Args:
        name: what it is for; a part of its path.

    Raises:
        OSError: no space is left, or the place may not be written.
    """
    place = Path(tempfile.gettempdir())
    if str(place) not in _swept:
        _swept.add(str(place))
        sweep(place)
    root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-", dir=place))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        stack.enter_context(_owned(root))
        folder = root / "files"
        folder.mkdir()
        yield folder


@contextlib.contextmanager
def _owned(root: Path) -> Iterator[None]:
    """Locks a folder. The lock is there before its name is: no one finds it free in between."""
    aside = root / f"{_OWNER}.new"
    with aside.open("w") as file:
        with contextlib.suppress(OSError):  # not every file system has locks; none is then swept
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            aside.rename(root / _OWNER)
        yield


def sweep(place: Path) -> None:
    """Removes this user's folders in ``place`` whose makers are gone."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if not entry.name.startswith(_PREFIX):
                continue
            with contextlib.suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():
                    _remove_if_free(Path(entry.path))


def _remove_if_free(root: Path) -> None:
    descriptor = os.open(root / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(root, ignore_errors=True)
    finally:
        os.close(descriptor)
