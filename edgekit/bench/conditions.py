"""Under which conditions an artifact was measured, and whether two were measured under the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final

__all__ = ["DRIFT", "conditions", "remarks", "unlike"]

DRIFT: Final = 1.15
"""Later rounds slower than earlier ones by this factor count as slowed down."""

_WARMER: Final = 3.0  # degrees that tell a chip that has become warm from one sensor's step
_SLOWER: Final = 0.95  # of the clock at the start, under which it has been lowered
_CLOCK: Final = 0.10  # apart by more, two clocks are unlike
_BUSY: Final = 0.5  # of the cores that others had taken before anything was measured
_LOW_BATTERY: Final = 20.0  # percent under which phones save power


def conditions(
    rounds: Sequence[Mapping[str, Any]], medians: Sequence[float], cores: int | None
) -> dict[str, Any]:
    """What the rounds of one artifact tell of heat, clocks, load and power.

    Args:
        rounds: the worker's answers, in order.
        medians: each round's median latency.
        cores: that could be used, None if unknown.

    Returns:
        ``thermal``: ``ok``, ``cooled`` (after waiting), ``throttled`` or ``unknown`` (no sensor, or
        none with a value); ``throttling`` (reasons), ``waited_s``, ``temperature_c`` and
        ``frequency_mhz`` (``first``, ``highest`` or ``lowest``, ``last``), ``load_average``,
        ``busy`` (others had taken half of the cores when it began), ``running``, ``cpu_share``,
        ``slowed`` (the last third of the rounds over the first),
        ``affinity``, ``governors``, ``battery``.
    """
    looks = [look for answer in rounds for look in _looks(answer)]
    heat = _present(look.get("temperature_c") for look in looks)
    clock = _present(look.get("frequency_mhz") for look in looks)
    gates = [answer.get("gate") or {} for answer in rounds]
    found: dict[str, Any] = {
        "throttling": _reasons(rounds, looks, gates),
        "waited_s": round(sum(_present(gate.get("waited_s") for gate in gates)), 3),
        "temperature_c": _ends(heat, "highest", max),
        "frequency_mhz": _ends(clock, "lowest", min),
        "load_average": _ends(_present(k.get("load_average") for k in looks), "highest", max),
        "running": max(_present(look.get("running") for look in looks), default=None),
        "cpu_share": median(shares) if (shares := _present(_all(rounds, "cpu_share"))) else None,
        "slowed": _slowed(medians),
        "affinity": rounds[-1].get("affinity") or [],
        "governors": sorted({g for look in looks for g in look.get("governors") or []}),
        "battery": _battery(looks),
    }
    load = found["load_average"]
    busy = None if load is None or not cores else load["first"] > _BUSY * cores
    return {"thermal": _thermal(found, gates, heat, clock), "busy": busy, **found}


def _looks(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    every = [answer.get("before"), *(answer.get("looks") or []), answer.get("after")]
    return [look for look in every if isinstance(look, Mapping)]


def _all(rounds: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    return [answer.get(key) for answer in rounds]


def _present(values: Iterable[Any]) -> list[float]:
    """The finite numbers among what sensors gave."""
    numbers = (v for v in values if isinstance(v, int | float) and not isinstance(v, bool))
    return [v for v in numbers if math.isfinite(v)]


def _ends(values: Sequence[float], name: str, most: Any) -> dict[str, float] | None:
    if not values:
        return None
    return {"first": values[0], name: most(values), "last": values[-1]}


def _slowed(medians: Sequence[float]) -> float | None:
    third = len(medians) // 3
    if not third:
        return None
    first = median(medians[:third])
    return median(medians[-third:]) / first if first > 0 else None


def _reasons(
    rounds: Sequence[Mapping[str, Any]],
    looks: Sequence[Mapping[str, Any]],
    gates: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Why the chip was slowed down meanwhile, as far as it was seen."""
    reasons = {reason for look in looks for reason in look.get("throttling") or []}
    if any(gate.get("state") == "hot" for gate in gates):
        reasons.add("still hot when the time to cool down was over")
        reasons |= {reason for gate in gates for reason in gate.get("throttling") or []}
    marks = [look["throttle_marks"] for look in looks if look.get("throttle_marks")]
    if marks:
        last = marks[-1]
        rose = [name for name, count in last.items() if count > marks[0].get(name, count)]
        reasons |= {f"{name} rose" for name in rose}
    return sorted(reasons)


def _thermal(
    found: Mapping[str, Any],
    gates: Sequence[Mapping[str, Any]],
    heat: Sequence[float],
    clock: Sequence[float],
) -> str:
    if found["throttling"]:
        return "throttled"
    slower = found["slowed"] is not None and found["slowed"] >= DRIFT
    warmer = bool(heat) and heat[-1] >= heat[0] + _WARMER
    lowered = bool(clock) and clock[-1] < _SLOWER * clock[0]
    if slower and (warmer or lowered):
        return "throttled"
    states = {gate.get("state") for gate in gates}
    told = any(gate.get("throttling") is not None for gate in gates)
    if not heat and not told:
        return "unknown"
    return "cooled" if "cooled" in states else "ok"


def _battery(looks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    told = [look["battery"] for look in looks if isinstance(look.get("battery"), Mapping)]
    if not told:
        return None
    powers = {b.get("power_save") for b in told} - {None}
    screens = {b.get("screen_on") for b in told} - {None}
    levels = _present(b.get("percent") for b in told)
    return {
        "percent": min(levels) if levels else None,
        "status": sorted({str(b["status"]) for b in told if b.get("status")}),
        "power_save": True in powers if powers else None,
        "screen_on": False not in screens if screens else None,
    }


def remarks(state: Mapping[str, Any], cores: int | None) -> list[str]:
    """What changed between the start and the end, and what saves power, in words.

    Args:
        state: of `conditions`.
        cores: that could be used, None if unknown.
    """
    found = []
    clock, load = state["frequency_mhz"], state["load_average"]
    if clock is not None and abs(clock["last"] - clock["first"]) > (1 - _SLOWER) * clock["first"]:
        first, last = clock["first"], clock["last"]
        found.append(
            f"clock: the CPUs ran at {first:.0f} MHz at first and at {last:.0f} in the end"
        )
    # One of them is the measured process itself.
    if load is not None and cores and load["last"] > load["first"] + 1 + _BUSY * cores:
        first, last = load["first"], load["last"]
        found.append(f"load: others came; load average {first:.2f} at first, {last:.2f} in the end")
    battery = state["battery"] or {}
    if battery.get("percent") is not None and battery["percent"] < _LOW_BATTERY:
        found.append(f"battery: at {battery['percent']:.0f} %, where systems save power")
    if battery.get("power_save"):
        found.append("battery: power saving is on")
    if battery.get("screen_on") is False:
        found.append("screen: it was off, and a system may keep programs to slow cores then")
    return found


def unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why two results can't be compared: in what they were measured differently.

    Args:
        a, b: results of ``edgekit.bench/1`` documents, of one or of two.

    Returns:
        Reasons, in words; empty where nothing speaks against it.
    """
    reasons = []
    if a["threads"] != b["threads"]:
        reasons.append(f"{a['threads']} threads against {b['threads']}")
    first, second = a.get("conditions") or {}, b.get("conditions") or {}
    for name in ("affinity", "governors"):
        one, other = first.get(name) or [], second.get(name) or []
        if one != other and one and other:
            reasons.append(f"{name} {_listed(one)} against {_listed(other)}")
    if (first.get("thermal") == "throttled") != (second.get("thermal") == "throttled"):
        which = a if first.get("thermal") == "throttled" else b
        reasons.append(f"{which['artifact']} was throttled and the other was not")
    reasons += _apart(first, second)
    return reasons + _power(first.get("battery"), second.get("battery"))


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    reasons = []
    clocks = _present((c.get("frequency_mhz") or {}).get("last") for c in (first, second))
    if len(clocks) == 2 and min(clocks) < (1 - _CLOCK) * max(clocks):
        reasons.append(f"clocks of {clocks[0]:.0f} against {clocks[1]:.0f} MHz")
    if first.get("busy") and second.get("busy") is False:
        reasons.append("the first was measured on a busy machine")
    if second.get("busy") and first.get("busy") is False:
        reasons.append("the second was measured on a busy machine")
    return reasons


def _power(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> list[str]:
    if not one or not other:
        return []
    reasons = []
    for name, word in (("power_save", "power saving"), ("screen_on", "the screen on")):
        states = [b.get(name) for b in (one, other)]
        if None not in states and states[0] != states[1]:
            reasons.append(f"{word}: {states[0]} against {states[1]}")
    if one.get("status") != other.get("status") and one.get("status") and other.get("status"):
        reasons.append(f"battery {_listed(one['status'])} against {_listed(other['status'])}")
    levels = _present(b.get("percent") for b in (one, other))
    if len(levels) == 2 and (levels[0] < _LOW_BATTERY) != (levels[1] < _LOW_BATTERY):
        reasons.append(f"battery at {levels[0]:.0f} % against {levels[1]:.0f} %")
    return reasons
