"""Words for a shell that is not ours, and names for files on a device.

ssh(1) and ``adb shell`` join their arguments with spaces and have a shell on the other side read
the line anew, so an argument list stays one only if every word of it is quoted.
"""

from __future__ import annotations

from edgekit.errors import UsageError

__all__ = ["check_name", "check_word", "quote"]

MAX_NAME = 255
"""Bytes of one component of a file's name, which is what file systems allow."""


def quote(word: str) -> str:
    """One word that a shell reads as exactly ``word``, whatever is in it.

    In single quotes nothing is special to a POSIX shell. The single quote itself, and the
    backslash, which fish takes for an escape even there, stand outside of them, escaped.

    Raises:
        UsageError: the word holds a NUL, which no argument can carry.
    """
    check_word(word)
    parts: list[str] = []
    plain = ""
    for char in word:
        if char in "'\\":
            parts += [f"'{plain}'"] if plain else []
            parts.append(f"\\{char}")
            plain = ""
        else:
            plain += char
    return "".join([*parts, f"'{plain}'"]) if plain or not parts else "".join(parts)


def check_word(word: str, what: str = "a word of a command") -> str:
    """The word itself, if an argument list can carry it.

    Raises:
        UsageError: it holds a NUL, or characters that UTF-8 cannot carry.
    """
    if "\0" in word:
        raise UsageError(f"{what} holds a NUL: {word!r}")
    try:
        word.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not text: {word!r}") from error
    return word


def check_name(name: str) -> str:
    """A file's name within a workspace: any characters, ``/`` between folders, no way out of it.

    Raises:
        UsageError: it is empty, absolute, goes up, or a part of it is too long.
    """
    check_word(name, "the name of a file on a device")
    for part in name.split("/"):
        if part in ("", ".", "..") or len(part.encode()) > MAX_NAME:
            raise UsageError(
                f"{name[:80]!r} cannot be the name of a file on a device",
                hint=f"parts are 1 to {MAX_NAME} bytes, relative to the workspace, without '..'",
            )
    if name.split("/")[0].startswith(".edgekit-"):
        raise UsageError(f"{name!r} is one of edgekit's own names on a device")
    return name
