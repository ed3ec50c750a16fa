"""Whether the user agreed to telemetry: one word in a file, which outlives the process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from edgekit.errors import StorageError
from edgekit.runtime._files import replace_file
from edgekit.runtime._spool_files import private_folder

__all__ = ["Consent"]

_FILE: Final = "consent"
_GIVEN: Final = b"given\n"
_WITHDRAWN: Final = b"withdrawn\n"
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class Consent:
    """The user's word.

    Args:
        folder: where it is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def given(self) -> bool:
        """Whether it was given and not withdrawn. What can't be read is no consent."""
        try:
            file = os.open(self._folder / _FILE, os.O_RDONLY | _FLAGS)
        except OSError:
            return False
        with os.fdopen(file, "rb") as opened, contextlib.suppress(OSError):
            return opened.read(len(_WITHDRAWN)) == _GIVEN
        return False

    def keep(self, given: bool) -> None:
        """Writes it, and returns when it would survive a power cut.

        Raises:
            StorageError: it can't be written; then it is as it was, unless it could be removed.
            TrustError: the folder is a link or another user's.
        """
        folder = private_folder(self._folder)
        try:
            replace_file(folder, _FILE, _GIVEN if given else _WITHDRAWN)
        except OSError as error:
            if not given:  # no word at all is no consent either
                with contextlib.suppress(OSError):
                    os.unlink(_FILE, dir_fd=folder)
                    return
            raise StorageError(
                f"cannot write down the consent in {self._folder}: {error.strerror or error}"
            ) from error
        finally:
            os.close(folder)
