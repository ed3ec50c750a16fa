"""The state of the machine while it measures: heat, clocks, load, power, memory.

A look reads some twenty small files and takes about a millisecond, so it is taken between two
calls, never within one. Whatever the kernel doesn't tell is None and stays so: a missing sensor is
not a cool one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.bench import _android, _files

__all__ = ["look", "throttle_marks", "throttling_now"]

_CPU = "sys/devices/system/cpu"
# Of a board's thermal zones, names that are not of the chip: a charger runs hot by itself.
_NOT_THE_CHIP = ("battery", "charger", "usb", "wlan", "wifi", "modem", "camera", "flash", "pa-")
_COOLEST, _HOTTEST = 0.0, 150.0  # outside of these, in degrees Celsius, a sensor has no value
# The bits of Raspberry Pi's firmware that say what is happening now (`vcgencmd get_throttled`).
_LIGHT = 1  # Android's status from which on clocks may be lower
_PI_NOW = {1: "under-voltage", 2: "frequency capped", 4: "throttled", 8: "soft temperature limit"}


def look(root: Path = Path("/"), *, full: bool = True) -> dict[str, Any]:
    """The state now.

    Args:
        root: the directory that holds ``proc`` and ``sys``.
        full: with battery and the names of all sensors, and what Android's services tell, which
            takes a tenth of a second there; without, only what the kernel tells.

    Returns:
        ``temperature_c`` (the hottest sensor of the chip), ``frequency_mhz`` (the mean of the CPUs
        that tell), ``load_average``, ``running`` (processes that run or wait to), ``throttling``
        (reasons why it is slowed down right now; None where nothing tells); and in full
        ``temperatures_c``, ``frequencies_mhz``, ``governors``, ``pressure`` (share of the last 10 s
        in which something waited for a CPU), ``available_mib``, ``battery``, ``throttle_marks``.
    """
    sensors, reasons = _temperatures(root), throttling_now(root)
    if full and (not sensors or reasons is None):
        sensors, reasons = _with_android(root, sensors, reasons)
    clocks = _frequencies(root)
    found: dict[str, Any] = {
        "temperature_c": max(sensors.values(), default=None),
        "frequency_mhz": round(sum(clocks.values()) / len(clocks)) if clocks else None,
        "load_average": _load(root),
        "running": _running(root),
        "throttling": reasons,
    }
    if full:
        found |= {
            "temperatures_c": sensors,
            "frequencies_mhz": clocks,
            "governors": _governors(root),
            "pressure": _pressure(root),
            "available_mib": _available(root),
            "battery": _battery(root),
            "throttle_marks": throttle_marks(root),
        }
    return found


def _with_android(
    root: Path, sensors: dict[str, float], reasons: list[str] | None
) -> tuple[dict[str, float], list[str] | None]:
    """Sensors and reasons with what the thermal service adds: it closes the kernel's files."""
    text = _android.told(root, "thermalservice")
    if text is None:
        return sensors, reasons
    found = _android.thermal(text)
    if found["status"] is not None:
        word = f"Android's thermal status is {_android.STATUSES[found['status']]}"
        reasons = [*(reasons or []), *([word] if found["status"] >= _LIGHT else [])]
    return sensors or found["temperatures_c"], reasons


def _temperatures(root: Path) -> dict[str, float]:
    """Sensors of the chip by name, in degrees Celsius; those without a value are left out."""
    found: dict[str, float] = {}
    for zone in _files.entries(root, "sys/class/thermal/thermal_zone[0-9]*"):
        name = _files.text(root, f"{zone}/type") or zone.rpartition("/")[2]
        if not any(word in name.lower() for word in _NOT_THE_CHIP):
            _keep(found, name, _files.number(root, f"{zone}/temp"))
    if not found:  # a server tells in hwmon alone
        for chip in _files.entries(root, "sys/class/hwmon/hwmon[0-9]*"):
            name = _files.text(root, f"{chip}/name") or "hwmon"
            if name in ("coretemp", "k10temp", "zenpower", "cpu_thermal", "scmi_sensors"):
                for sensor in _files.entries(root, f"{chip}/temp[0-9]*_input"):
                    label = f"{name}:{sensor.rpartition('/')[2].removesuffix('_input')}"
                    _keep(found, label, _files.number(root, sensor))
    return found


def _keep(found: dict[str, float], name: str, millidegrees: float | None) -> None:
    # Zones that are off say -1, -273000, 0 or 127000; thousandths elsewhere, degrees on some.
    if millidegrees is None:
        return
    celsius = millidegrees / 1000 if abs(millidegrees) >= 1000 else millidegrees
    if _COOLEST < celsius < _HOTTEST:
        found[name] = max(celsius, found.get(name, celsius))


def _frequencies(root: Path) -> dict[str, int]:
    """What each CPU runs at in MHz, by its number."""
    found: dict[str, int] = {}
    for policy in _files.entries(root, f"{_CPU}/cpufreq/policy[0-9]*"):
        khz = _files.number(root, f"{policy}/scaling_cur_freq")
        if khz is not None and khz > 0:
            for cpu in _files.cpu_list(_files.text(root, f"{policy}/affected_cpus")):
                found[str(cpu)] = round(khz / 1000)
    if not found:  # x86 without cpufreq, such as a virtual machine
        number = ""
        for line in (_files.text(root, "proc/cpuinfo") or "").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "processor":
                number = value.strip()
            elif key.strip() == "cpu MHz" and value.strip().replace(".", "", 1).isdigit():
                found[number] = round(float(value))
    return found


def _governors(root: Path) -> list[str]:
    policies = _files.entries(root, f"{_CPU}/cpufreq/policy[0-9]*")
    told = {_files.text(root, f"{policy}/scaling_governor") for policy in policies}
    return sorted(name for name in told if name)


def _load(root: Path) -> float | None:
    words = (_files.text(root, "proc/loadavg") or "").split()
    try:
        return float(words[0]) if words else None
    except ValueError:
        return None


def _running(root: Path) -> int | None:
    words = (_files.text(root, "proc/loadavg") or "").split()
    running = words[3].partition("/")[0] if len(words) > 3 else ""
    return int(running) if running.isdigit() else None


def _pressure(root: Path) -> float | None:
    """Percent of the last 10 s in which a process waited for a CPU (the kernel's PSI)."""
    for word in (_files.text(root, "proc/pressure/cpu") or "").split():
        key, _, value = word.partition("=")
        if key == "avg10":
            try:
                return float(value)
            except ValueError:
                return None
    return None


def _available(root: Path) -> int | None:
    words = _files.fields(root, "proc/meminfo").get("MemAvailable", "").split()
    return int(words[0]) // 1024 if words and words[0].isdigit() else None


def _battery(root: Path) -> dict[str, Any] | None:
    """Level, what it is doing, and of a phone whether it saves power; None where there is none."""
    text = _android.told(root, "battery")
    if text is not None:
        found = _android.battery(text)
        saving = _android.power(_android.told(root, "power") or "")
        return {"percent": found["percent"], "status": found["status"], **saving}
    for supply in _files.entries(root, "sys/class/power_supply/*"):
        scope = _files.text(root, f"{supply}/scope")
        if _files.text(root, f"{supply}/type") == "Battery" and scope != "Device":
            status = _files.text(root, f"{supply}/status")
            return {
                "percent": _files.number(root, f"{supply}/capacity"),
                "status": None if status is None else status.lower(),
            }
    return None


def throttle_marks(root: Path = Path("/")) -> dict[str, float]:
    """Counters that only rise, and only where the chip was slowed down for its heat.

    Intel's per-core and per-package counts, and Raspberry Pi's bits of what has happened since it
    was switched on. More of one afterwards than before: the chip was throttled meanwhile.
    """
    found: dict[str, float] = {}
    for kind in ("core", "package"):
        counters = _files.entries(root, f"{_CPU}/cpu[0-9]*/thermal_throttle/{kind}_throttle_count")
        counts = [n for path in counters if (n := _files.number(root, path)) is not None]
        if counts:
            found[f"{kind}_throttle_count"] = sum(counts)
    firmware = _pi(root)
    if firmware is not None:
        found["firmware_has_throttled"] = firmware >> 16 & 0b1110
    return found


def _pi(root: Path) -> int | None:
    """Raspberry Pi's word on throttling, in which each bit is a condition."""
    for path in _files.entries(root, "sys/devices/platform/soc*/soc*firmware/get_throttled"):
        try:
            return int(_files.text(root, path) or "", 16)
        except ValueError:
            continue
    return None


def throttling_now(root: Path = Path("/")) -> list[str] | None:
    """Why the chip is slowed down right now; empty where it isn't, None where nothing tells."""
    told, reasons = False, []
    firmware = _pi(root)
    if firmware is not None:
        told = True
        reasons += [word for bit, word in _PI_NOW.items() if firmware & bit]
    for device in _files.entries(root, "sys/class/thermal/cooling_device[0-9]*"):
        kind = (_files.text(root, f"{device}/type") or "").lower()
        if "cpufreq" in kind or kind == "processor":
            state = _files.number(root, f"{device}/cur_state")
            told = told or state is not None
            if state:
                reasons.append(f"{kind} held back by {state:.0f} steps")
    return reasons if told else None
