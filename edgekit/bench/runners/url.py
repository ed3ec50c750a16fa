"""Where a device is, as a URL: parsed once, strictly, before anything is started.

What passes here goes into argument lists of ssh and adb, so what could be taken for an option, or
for two things, is refused rather than repaired.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import parse_qsl

from edgekit.bench.runners.quoting import check_word
from edgekit.errors import UsageError
from edgekit.names import unknown

__all__ = ["SCHEMES", "DeviceUrl", "parse"]

SCHEMES = {
    "local": "local:",
    "ssh": "ssh://[USER@]HOST[:PORT][/FOLDER][?config=FILE&python=PROGRAM]",
    "adb": "adb://SERIAL[/FOLDER][?python=PROGRAM]",
    "fake": "fake:NAME[?fault=KIND@STEP]",
}
"""Every scheme, with the form of its URLs."""

_OPTIONS = {
    "local": (),
    "ssh": ("config", "python"),
    "adb": ("python",),
    "fake": ("fault",),
}
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,254}|\[[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9_.-]+)?\]")
_SERIAL = re.compile(r"[A-Za-z0-9_.\[][A-Za-z0-9_.:\[\]-]{0,127}")
_FAKE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class DeviceUrl:
    """A parsed URL.

    Attributes:
        text: as it was given.
        scheme: a key of `SCHEMES`.
        host: host of ``ssh``, serial of ``adb``, name of ``fake``; empty for ``local``.
        user: of ``ssh``, or empty.
        port: of ``ssh``, or None.
        folder: absolute path of the folder in which to make the workspace; empty for the usual.
        options: what follows the ``?``.
    """

    text: str
    scheme: str
    host: str = ""
    user: str = ""
    port: int | None = None
    folder: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def option(self, name: str) -> str:
        """The value of an option, empty where it is not given."""
        return dict(self.options).get(name, "")


def parse(text: str) -> DeviceUrl:
    """What a device's URL says.

    Raises:
        UsageError: an unknown scheme, or a URL that does not have its scheme's form.
    """
    check_word(text, "the URL of a device")
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        forms = ", ".join(SCHEMES.values())
        raise UsageError(
            unknown("kind of device", scheme, SCHEMES) if colon else f"{text!r} is no device's URL",
            hint=f"allowed are {forms}",
        )
    rest, _, query = rest.partition("?")
    options = _options(text, scheme, query)
    if scheme == "local":
        if rest or query:
            _refuse(text, "nothing follows local:")
        return DeviceUrl(text, scheme)
    if scheme == "fake":
        return DeviceUrl(text, scheme, _match(_FAKE, rest, text, "name"), options=options)
    if not rest.startswith("//"):
        _refuse(text, f"it begins with {scheme}://")
    where, slash, folder = rest[2:].partition("/")
    folder = _folder(text, slash + folder)
    if scheme == "adb":
        serial = _match(_SERIAL, where, text, "serial")
        return DeviceUrl(text, scheme, serial, folder=folder, options=options)
    user, host, port = _authority(text, where)
    return DeviceUrl(text, scheme, host, user, port, folder, options)


def _refuse(text: str, why: str) -> NoReturn:
    scheme = text.partition(":")[0]
    shown = re.sub(r"//[^@/]*:[^@/]*@", "//...@", text)  # a password is not repeated
    raise UsageError(
        f"{shown[:200]!r} is no URL of a device: {why}", hint=f"its form is {SCHEMES[scheme]}"
    )


def _match(pattern: re.Pattern[str], value: str, text: str, what: str) -> str:
    if not pattern.fullmatch(value):
        _refuse(text, f"its {what} is {value[:80]!r}" if value else f"it has no {what}")
    return value


def _authority(text: str, where: str) -> tuple[str, str, int | None]:
    user, at, rest = where.rpartition("@")
    if at and ":" in user:
        _refuse(text, "a password has no place in it; ssh logs in with keys")
    if at:
        _match(_USER, user, text, "user")
    host, port = rest, None  # type: str, str | None
    if (found := re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", rest, re.DOTALL)) is not None:
        host, port = found[1], found[2]
    _match(_HOST, host, text, "host")
    if port is None:
        return user, host.strip("[]"), None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        _refuse(text, f"its port is {port[:20]!r}")
    return user, host.strip("[]"), int(port)


def _folder(text: str, folder: str) -> str:
    if folder in ("", "/"):
        return ""
    if any(part in ("", ".", "..", "~") for part in folder[1:].split("/")):
        _refuse(text, f"its folder is {folder[:80]!r}")
    return folder


def _options(text: str, scheme: str, query: str) -> tuple[tuple[str, str], ...]:
    if not query:
        return ()
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        _refuse(text, f"what follows the ? is {query[:80]!r}")
    for name, value in pairs:
        check_word(value, "an option of a device's URL")
        if name not in _OPTIONS[scheme]:
            allowed = ", ".join(_OPTIONS[scheme]) or "none"
            _refuse(text, f"it has no option {name[:40]!r}; known: {allowed}")
    return tuple(pairs)
