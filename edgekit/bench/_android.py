"""What Android tells of heat, power and screen: the text that ``dumpsys`` prints, and its numbers.

`thermal`, `battery` and `power` read text, whoever fetched it; `told` fetches it where this process
is allowed to (``adb shell``, not an app). The forms are those of Android 10 to 15.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgekit.bench import _files

__all__ = ["STATUSES", "battery", "power", "thermal", "told"]

STATUSES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""What PowerManager.THERMAL_STATUS_* of 0 to 6 are called."""

_TEMPERATURE = re.compile(r"Temperature\{mValue=([^,]+), mType=(-?\d+), mName=([^,]+),")
# Types of IThermal's TemperatureType that are of the processor: CPU, GPU, SKIN, SOC.
_TYPES = {0: "cpu", 1: "gpu", 3: "skin", 9: "npu"}
_CHARGING = {"1": "unknown", "2": "charging", "3": "discharging", "4": "not charging", "5": "full"}


def thermal(text: str) -> dict[str, Any]:
    """``dumpsys thermalservice``: ``status`` 0..6 or None, and ``temperatures_c`` by sensor.

    A reading of -1, NaN or one that no chip survives is left out: such sensors exist, and say
    that there is no value.
    """
    found = re.search(r"Thermal Status:\s*(-?\d+)", text)
    status = int(found[1]) if found and 0 <= int(found[1]) < len(STATUSES) else None
    current = text.partition("Current temperatures from HAL:")[2] or text
    current = current.partition("Current cooling devices")[0]
    sensors: dict[str, float] = {}
    for value, kind, name in _TEMPERATURE.findall(current):
        celsius = _celsius(value)
        if celsius is not None and int(kind) in _TYPES:
            sensors[f"{_TYPES[int(kind)]}:{name.strip()}"] = celsius
    return {"status": status, "temperatures_c": sensors}


def _celsius(stated: str) -> float | None:
    try:
        value = float(stated)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 < value < 150 else None


def battery(text: str) -> dict[str, Any]:
    """``dumpsys battery``: ``percent``, ``status`` in words, ``powered``, ``temperature_c``.

    And the gauge: ``coulombs`` left and ``volts``, None where the phone has none.
    """
    entries: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            entries.setdefault(key.strip(), value.strip())
    level, scale = entries.get("level", ""), entries.get("scale", "100")
    tenths, voltage = entries.get("temperature", ""), entries.get("voltage", "")
    charge = entries.get("Charge counter", "")  # in uAh
    powered = [entries[key] for key in entries if key.endswith(" powered")]
    known = level.isdigit() and scale.isdigit() and int(scale) > 0
    return {
        "percent": round(100 * int(level) / int(scale), 1) if known else None,
        "status": _CHARGING.get(entries.get("status", "")),
        "powered": "true" in powered if powered else None,
        "temperature_c": int(tenths) / 10 if tenths.isdigit() else None,
        "coulombs": int(charge) * 3.6e-3 if charge.isdigit() and int(charge) else None,
        "volts": int(voltage) / 1e3 if voltage.isdigit() and int(voltage) else None,
    }


def power(text: str) -> dict[str, Any]:
    """``dumpsys power``: whether the screen is on and whether power is saved; None if not told."""
    awake = re.search(r"mWakefulness=(\w+)", text)
    saving = re.search(r"mBatterySaverEnabled=(true|false)|mLowPowerModeEnabled=(true|false)", text)
    return {
        "screen_on": None if awake is None else awake[1] == "Awake",
        "power_save": None if saving is None else "true" in saving.groups(),
    }


def told(root: Path, service: str, *, timeout: float = 5.0) -> str | None:
    """What ``dumpsys SERVICE`` prints; None where there is no dumpsys, or it may not be asked.

    Under another root than ``/`` it is the file ``dumpsys/SERVICE`` there.
    """
    if root != Path("/"):
        return _files.text(root, f"dumpsys/{service}")
    tool = shutil.which("dumpsys")
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, service], capture_output=True, timeout=timeout, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 and "Permission Denial" not in done.stdout else None
