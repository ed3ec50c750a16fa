"""The state of the device that decides where to compute: memory, heat, network.

Linux tells the first two; a phone's app knows better and hands the router a function of its own.
Whatever is not known is None, and holds nobody back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Conditions", "Limits", "local_conditions", "sampled", "too_much"]

_NOT_THE_CHIP = ("battery", "charger", "usb", "wlan", "wifi", "modem", "camera", "flash", "pa-")


@dataclass(frozen=True)
class Conditions:
    """What is known now; None where nothing tells.

    Attributes:
        memory_mib: what programs may still take, in MiB.
        temperature_c: the hottest sensor of the chip, in degrees Celsius.
        throttled: whether the chip is slowed down for its heat.
        online: whether there is a network that may be used.
    """

    memory_mib: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    online: bool | None = None


@dataclass(frozen=True)
class Limits:
    """When the device is to be spared, and the cloud is asked first.

    Attributes:
        min_memory_mib: with less than this free, in MiB.
        max_temperature_c: above this, in degrees Celsius.
        spare_throttled: whether also where it is slowed down for its heat.
    """

    min_memory_mib: float | None = None
    max_temperature_c: float | None = None
    spare_throttled: bool = False


def too_much(conditions: Conditions, limits: Limits) -> str | None:
    """Why the device is to be spared, ``memory`` or ``hot``; None where it isn't."""
    free, heat = conditions.memory_mib, conditions.temperature_c
    if free is not None and limits.min_memory_mib is not None and free < limits.min_memory_mib:
        return "memory"
    warm = limits.max_temperature_c
    if heat is not None and warm is not None and heat > warm:
        return "hot"
    return "hot" if limits.spare_throttled and conditions.throttled else None


def local_conditions(root: Path = Path("/")) -> Conditions:
    """What the kernel tells; ``online`` stays None. About a millisecond.

    Args:
        root: the directory that holds ``proc`` and ``sys``.
    """
    return Conditions(_memory(root), _temperature(root), _throttled(root))


def sampled(
    read: Callable[[], Conditions], every_s: float, clock: Callable[[], float]
) -> Callable[[], Conditions]:
    """``read``, asked no more often than every so many seconds; if it fails, nothing is known."""
    kept: list[tuple[float, Conditions]] = []

    def ask() -> Conditions:
        now = clock()
        if not kept or now - kept[0][0] >= every_s:
            found = Conditions()
            with contextlib.suppress(Exception):
                found = read()
            kept[:] = [(now, found)]
        return kept[0][1]

    return ask


def _memory(root: Path) -> float | None:
    for line in _text(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable" and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) / 1024
    return None


def _temperature(root: Path) -> float | None:
    found = []
    for zone in _folders(root / "sys/class/thermal", "thermal_zone*"):
        if any(word in _text(zone / "type").lower() for word in _NOT_THE_CHIP):
            continue
        value = _number(zone / "temp")
        if value is not None:
            celsius = value / 1000 if abs(value) >= 1000 else value
            if 0 < celsius < 150:  # zones that are off say -273000, 0 or 127000 and more
                found.append(celsius)
    return max(found, default=None)


def _throttled(root: Path) -> bool | None:
    states = []
    for device in _folders(root / "sys/class/thermal", "cooling_device*"):
        kind = _text(device / "type").lower()
        if "cpufreq" in kind or kind == "processor":
            states.append(_number(device / "cur_state"))
    known = [state for state in states if state is not None]
    return any(known) if known else None


def _folders(parent: Path, pattern: str) -> list[Path]:
    try:
        return sorted(parent.glob(pattern))
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(1 << 16).decode("utf-8", "replace").strip("\0\n ")
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> float | None:
    try:
        value = float(_text(path))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
