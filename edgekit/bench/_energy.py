"""Energy over a stretch of time, where the machine counts it: RAPL, or a battery's fuel gauge.

Both count the whole package or the whole device, whatever else it does meanwhile.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edgekit.bench import _android, _files

__all__ = ["EnergyMeter"]

_ZONES = "sys/class/powercap/intel-rapl:[0-9]*"  # AMD's too


class EnergyMeter:
    """Counts from when it was made until `stop`.

    Args:
        root: the directory that holds ``sys``.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._start = time.monotonic()
        self._zones = _packages(root)
        self._battery = None if self._zones else _gauge(root)

    def stop(self) -> dict[str, Any]:
        """What was spent.

        Returns:
            ``joules`` (None where nothing counts it), ``source``, ``seconds``, ``reason`` (why
            there is no figure).
        """
        seconds = time.monotonic() - self._start
        joules, source, reason = self._rapl() if self._zones else self._fuel()
        return {"joules": joules, "source": source, "seconds": seconds, "reason": reason}

    def _rapl(self) -> tuple[float | None, str | None, str | None]:
        total, after = 0.0, _packages(self._root)
        for zone, (before, wrap) in self._zones.items():
            if zone not in after:
                return None, None, f"{zone} can no longer be read"
            spent = after[zone][0] - before
            if spent < 0:  # the counter starts again at 0
                if wrap is None:
                    return None, None, f"{zone} started again and does not say at how much"
                spent += wrap
            total += spent
        if total <= 0:
            return None, None, "too short for RAPL's counters, which have not moved"
        return total / 1e6, "rapl: the processor's packages, all that runs on them", None

    def _fuel(self) -> tuple[float | None, str | None, str | None]:
        if self._battery is None:
            return None, None, _why_not(self._root)
        after = _gauge(self._root)
        if after is None or after["charging"] or self._battery["charging"]:
            return None, None, "the battery is being charged"
        # Voltage sags under load, so it is the charge that is subtracted, at the mean voltage.
        volts = (self._battery["volts"] + after["volts"]) / 2
        spent = (self._battery["coulombs"] - after["coulombs"]) * volts
        if spent <= 0:
            return None, None, "too short for the battery's gauge, which has not moved"
        return spent, "fuel gauge: the whole device", None


def _packages(root: Path) -> dict[str, tuple[float, float | None]]:
    """Microjoules counted so far, and where the counter starts again, by package."""
    found = {}
    for zone in _files.entries(root, _ZONES):
        name = _files.text(root, f"{zone}/name") or ""
        counted = _files.number(root, f"{zone}/energy_uj")
        if name.startswith("package") and counted is not None:
            found[name] = (counted, _files.number(root, f"{zone}/max_energy_range_uj"))
    return found


def _gauge(root: Path) -> dict[str, Any] | None:
    """Coulombs left in the battery, volts, and whether it is being charged.

    A gauge that counts watt-hours gives joules at 1 volt.
    """
    for supply in _files.entries(root, "sys/class/power_supply/*"):
        if _files.text(root, f"{supply}/type") != "Battery":
            continue
        status = (_files.text(root, f"{supply}/status") or "").lower()
        charging = status in ("charging", "full", "not charging")
        micro_wh = _files.number(root, f"{supply}/energy_now")
        if micro_wh is not None:
            return {"coulombs": micro_wh * 3600 / 1e6, "volts": 1.0, "charging": charging}
        micro_ah = _files.number(root, f"{supply}/charge_counter")
        if micro_ah is None:
            micro_ah = _files.number(root, f"{supply}/charge_now")
        micro_v = _files.number(root, f"{supply}/voltage_now")
        if micro_ah is not None and micro_v is not None:
            return {"coulombs": micro_ah * 3.6e-3, "volts": micro_v / 1e6, "charging": charging}
    return _androids(root)


def _androids(root: Path) -> dict[str, Any] | None:
    """The same by Android's service, which closes the kernel's files."""
    text = _android.told(root, "battery")
    found = _android.battery(text) if text is not None else {}
    if found.get("coulombs") is None or found.get("volts") is None:
        return None
    charging = found["status"] != "discharging" or bool(found["powered"])
    return {"coulombs": found["coulombs"], "volts": found["volts"], "charging": charging}


def _why_not(root: Path) -> str:
    if _files.entries(root, _ZONES):
        return "RAPL's counters are there, but only root may read them"
    return "this machine has neither RAPL nor a battery with a gauge"
