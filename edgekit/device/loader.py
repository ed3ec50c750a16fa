"""Finds, reads and checks device profiles."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgekit.device.detect import Probe, detect
from edgekit.device.profile import Device
from edgekit.errors import BadData, EdgekitError, StorageError, UsageError
from edgekit.names import unknown

__all__ = ["available", "check", "host", "load"]

HOST = "host"


def _directory() -> Path:
    """Where the packaged profiles lie: inside an installed wheel, else in the checkout.

    The wheel's place comes first, because a checkout has none there while ``devices`` beside an
    installed package could be anyone's.
    """
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "_devices", package.parent / "devices"):
        if (directory / f"{HOST}.toml").is_file():
            return directory
    raise StorageError(
        "this installation of edgekit lacks its device profiles",
        hint="Install it again: pip install --force-reinstall edgekit",
    )


def available() -> list[str]:
    """The ids of the packaged profiles, sorted; ``host`` is this machine."""
    return sorted(path.stem for path in _directory().glob("*.toml"))


def load(name: str | Path) -> Device:
    """One device profile.

    Args:
        name: the id of a packaged profile, or the path of a ``.toml`` file.

    Raises:
        UsageError: no such id (the message suggests the nearest) or no such file.
        BadData: the file is not TOML, or not a profile; the message lists what is wrong.
    """
    return _device(_path(name))


def host() -> Device:
    """This machine: targets and settings from the ``host`` profile, the facts read at run time.

    Raises:
        UnsupportedError: neither Linux nor macOS, or neither 64-bit Arm nor x86-64.
    """
    return load(HOST)


def check(name: str | Path) -> list[str]:
    """Everything wrong with a profile, one line each; empty when it is sound.

    Beside what `load` refuses, a packaged profile's id must be the name of its file.

    Raises:
        UsageError: no such id or no such file.
    """
    path = _path(name)
    try:
        device = _device(path)
    except EdgekitError as error:
        return error.message.splitlines()[1:] or [error.message]
    if path.parent == _directory() and device.id != path.stem:
        return [f"id: is {device.id!r}, the file is named {path.stem!r}"]
    return []


def _path(name: str | Path) -> Path:
    text = str(name)
    if isinstance(name, Path) or text.endswith(".toml") or "/" in text:
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"no device profile at {text!r}", hint="It is a .toml file.")
        return path.resolve()
    if text not in available():
        raise UsageError(
            unknown("device", text, available()),
            hint="The path of a .toml of your own works too; see: edgekit devices show pixel-8",
        )
    return _directory() / f"{text}.toml"


def _device(path: Path, probe: Probe | None = None) -> Device:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read {path.name}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path.name} is not TOML: {error}") from error
    if data.get("id") == HOST:
        data = _with_facts(data, detect(probe))
    try:
        # Strict, and as JSON so that arrays may become tuples: "4" is not a number of cores.
        return Device.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        lines = [_line(item) for item in error.errors(include_url=False)]
        raise BadData(
            "\n".join([f"{path.name} is not a device profile:", *lines]),
            hint=f"Mend the file, then: edgekit devices check {path.name}",
        ) from error


def _with_facts(data: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """What the file says goes before what was read, table by table."""
    both = facts | data
    for table in ("bench", "sources"):
        both[table] = facts[table] | data.get(table, {})
    return both


def _line(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    what = {
        "extra_forbidden": "unknown key",
        "missing": "is missing",
    }.get(item["type"], str(item["msg"]).removeprefix("Value error, "))
    return f"{where}: {what}" if where else what
