"""What this machine is: cores, instruction sets, memory and OS, read at run time.

Linux is read from ``/proc`` and ``/sys``, macOS through ``sysctl``. Everything that touches the
machine comes in through `Probe`, so that the tests can read a board's files on any machine.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.errors import UnsupportedError

__all__ = ["Probe", "detect"]

_ARCH = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}

# The kernel's name of each flag, by the profile's name of it.
_LINUX_FLAGS = {
    "x86_64": {
        "avx2": "avx2",
        "avx_vnni": "avx_vnni",
        "avx512_vnni": "avx512_vnni",
        "amx_int8": "amx_int8",
    },
    "arm64": {"fp16": "asimdhp", "dotprod": "asimddp", "i8mm": "i8mm"},
}
_MACOS_FLAGS = {
    "x86_64": {"avx2": "hw.optional.avx2_0", "avx512_vnni": "hw.optional.avx512vnni"},
    "arm64": {
        "fp16": "hw.optional.arm.FEAT_FP16",
        "dotprod": "hw.optional.arm.FEAT_DotProd",
        "i8mm": "hw.optional.arm.FEAT_I8MM",
    },
}

# MIDR part numbers of Arm's own cores (implementer 0x41).
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD44: "Cortex-X1",
    0xD46: "Cortex-A510",
    0xD47: "Cortex-A710",
    0xD48: "Cortex-X2",
    0xD49: "Neoverse-N2",
    0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3",
    0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520",
    0xD81: "Cortex-A720",
    0xD82: "Cortex-X4",
}


def _cpus() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _sysctl(key: str) -> str:
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@dataclass(frozen=True)
class Probe:
    """Where to look.

    Attributes:
        system: ``Linux`` or ``Darwin``.
        machine: the kernel's name of the architecture, e.g. ``aarch64``.
        root: the directory that holds ``proc``, ``sys`` and ``etc``.
        cpus: numbers of the logical CPUs this process may run on.
        sysctl: gives the value of a macOS key, or an empty string.
    """

    system: str = field(default_factory=platform.system)
    machine: str = field(default_factory=platform.machine)
    root: Path = Path("/")
    cpus: frozenset[int] = field(default_factory=_cpus)
    sysctl: Callable[[str], str] = _sysctl

    def read(self, path: str) -> str:
        """Text of a file below ``root``, stripped; empty where it can't be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return ""


def detect(probe: Probe | None = None) -> dict[str, Any]:
    """The facts of a device profile for this machine: ``soc os cpu isa memory bench sources``.

    Raises:
        UnsupportedError: neither Linux nor macOS, or neither 64-bit Arm nor x86-64.
    """
    probe = probe or Probe()
    arch = _ARCH.get(probe.machine.lower())
    readers = {"Linux": _linux, "Darwin": _macos}
    if arch is None or probe.system not in readers:
        raise UnsupportedError(
            f"this machine is {probe.system} on {probe.machine}; "
            "known are Linux and macOS on arm64 and x86_64",
            hint="Describe it in a .toml of your own and pass its path as the device.",
        )
    return readers[probe.system](probe, arch)


def _facts(
    *,
    soc: str,
    os_name: str,
    clusters: list[dict[str, Any]],
    isa: dict[str, Any],
    ram_gib: float | None,
    threads: int | None,
    sources: Mapping[str, str],
) -> dict[str, Any]:
    memory = {"measured": True} | ({} if ram_gib is None else {"ram_gib": round(ram_gib, 2)})
    wanted = {"soc", "cpu", "isa"} | ({"memory"} if ram_gib is not None else set())
    return {
        "soc": soc,
        "os": os_name,
        "cpu": {"clusters": clusters, "measured": True},
        "isa": isa | {"measured": True},
        "memory": memory,
        "bench": {} if threads is None else {"threads": threads},
        "sources": {key: f"read from {sources[key]}" for key in sorted(wanted)},
    }


def _linux(probe: Probe, arch: str) -> dict[str, Any]:
    processors = _processors(probe.read("proc/cpuinfo"))
    first = next(iter(processors.values()), {})
    flags = first.get("flags" if arch == "x86_64" else "Features", "").split()
    known = bool(flags)
    isa: dict[str, Any] = {"arch": arch}
    isa |= {name: flag in flags for name, flag in _LINUX_FLAGS[arch].items() if known}
    clusters = _linux_clusters(probe, processors)
    board = probe.read("proc/device-tree/model")
    memory = _field(probe.read("proc/meminfo"), "MemTotal", ":").removesuffix("kB").strip()
    big = sum(c["cores"] for c in clusters if c["role"] == "big")
    return _facts(
        soc=board or clusters[0]["core"],
        os_name=_field(probe.read("etc/os-release"), "PRETTY_NAME", "=").strip('"') or "Linux",
        clusters=clusters,
        isa=isa,
        ram_gib=int(memory) / 2**20 if memory.isdigit() else None,
        threads=_within_quota(probe, big),
        sources={
            "soc": "/proc/device-tree" if board else "/proc/cpuinfo",
            "cpu": "/proc/cpuinfo, /sys/devices/system/cpu and the process's affinity",
            "isa": "/proc/cpuinfo",
            "memory": "/proc/meminfo",
        },
    )


def _processors(cpuinfo: str) -> dict[int, dict[str, str]]:
    """The fields of ``/proc/cpuinfo``, by processor number."""
    processors: dict[int, dict[str, str]] = {}
    for block in cpuinfo.split("\n\n"):
        fields = {
            key.strip(): value.strip()
            for key, separator, value in (line.partition(":") for line in block.splitlines())
            if separator
        }
        number = fields.get("processor", "")
        if number.isdigit():
            processors[int(number)] = fields
    return processors


def _linux_clusters(probe: Probe, processors: dict[int, dict[str, str]]) -> list[dict[str, Any]]:
    """Physical cores this process may use, grouped by kind, fastest kind first."""
    atoms = _cpu_list(probe.read("sys/devices/cpu_atom/cpus"))
    base = "sys/devices/system/cpu/cpu"
    seen: set[int] = set()
    groups: dict[tuple[bool, int, str], dict[str, Any]] = {}
    capacities = {cpu: _number(probe.read(f"{base}{cpu}/cpu_capacity")) for cpu in probe.cpus}
    largest = max(capacities.values(), default=0)
    for cpu in sorted(probe.cpus):
        if cpu in seen:
            continue
        # Two threads of one core share its arithmetic units: they count once.
        seen |= {cpu} | _cpu_list(probe.read(f"{base}{cpu}/topology/thread_siblings_list"))
        khz = _number(probe.read(f"{base}{cpu}/cpufreq/cpuinfo_max_freq"))
        # Linux scales capacity to 1024 for the fastest core; efficiency cores lie far below half.
        little = cpu in atoms or 0 < capacities[cpu] < largest / 2
        name = _core_name(processors.get(cpu, {}))
        role = "little" if little else "big"
        key = (little, -capacities[cpu], name)
        group = groups.setdefault(key, {"cores": 0, "core": name, "role": role})
        group["cores"] += 1
        if khz:
            group["ghz"] = max(group.get("ghz", 0.0), round(khz / 1e6, 2))
    return [groups[key] for key in sorted(groups)] or [{"cores": 1, "core": "CPU", "role": "big"}]


def _core_name(fields: Mapping[str, str]) -> str:
    if fields.get("CPU implementer", "").lower() == "0x41":
        part = int(fields.get("CPU part", "0"), 16)
        return _ARM_PARTS.get(part, f"Arm part {part:#05x}")
    if "CPU part" in fields:
        return f"implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
    return fields.get("model name", "CPU")


def _within_quota(probe: Probe, big_cores: int) -> int | None:
    """A container's CPU quota in whole CPUs where it is below the big cores (cgroup v2)."""
    quota, _, period = probe.read("sys/fs/cgroup/cpu.max").partition(" ")
    if not quota.isdigit() or not period.isdigit() or not int(period):
        return None
    allowed = max(1, math.floor(int(quota) / int(period)))
    return allowed if allowed < big_cores else None


def _macos(probe: Probe, arch: str) -> dict[str, Any]:
    name = probe.sysctl("machdep.cpu.brand_string") or "Mac"
    clusters: list[dict[str, Any]] = []
    # Level 0 is the fastest; Intel Macs have none.
    for level in range(_number(probe.sysctl("hw.nperflevels"))):
        cores = _number(probe.sysctl(f"hw.perflevel{level}.physicalcpu"))
        kind = probe.sysctl(f"hw.perflevel{level}.name") or f"level {level}"
        if cores:
            role = "little" if kind == "Efficiency" else "big"
            clusters.append({"cores": cores, "core": f"{name} {kind}", "role": role})
    if not clusters:
        cores = _number(probe.sysctl("hw.physicalcpu")) or len(probe.cpus)
        clusters = [{"cores": cores, "core": name, "role": "big"}]
    isa: dict[str, Any] = {"arch": arch}
    for flag, key in _MACOS_FLAGS[arch].items():
        value = probe.sysctl(key)
        if value:
            isa[flag] = value == "1"
    memory = _number(probe.sysctl("hw.memsize"))
    return _facts(
        soc=name,
        os_name=f"macOS {probe.sysctl('kern.osproductversion')}".strip(),
        clusters=clusters,
        isa=isa,
        ram_gib=memory / 2**30 if memory else None,
        threads=None,
        sources=dict.fromkeys(("soc", "cpu", "isa", "memory"), "sysctl"),
    )


def _field(text: str, key: str, separator: str) -> str:
    for line in text.splitlines():
        name, found, value = line.partition(separator)
        if found and name.strip() == key:
            return value.strip()
    return ""


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _cpu_list(text: str) -> set[int]:
    """Numbers in a kernel CPU list such as ``0-3,8``."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            numbers |= set(range(int(first), _number(last or first) + 1))
    return numbers
