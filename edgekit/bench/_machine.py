"""What machine this is, read on the machine itself: with the standard library alone."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import edgekit
from edgekit.bench import _files
from edgekit.runtime.session import installed_version

__all__ = ["clusters", "load_average", "machine_facts"]

# Of the hundred flags a processor lists, those that decide which kernels a runtime picks.
_ISA = frozenset(
    {"sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl"}
    | {"avx512dq", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "avx_vnni_int8"}
    | {"amx_tile", "amx_int8", "amx_bf16", "hypervisor", "neon", "asimd", "fp", "fphp", "asimdhp"}
    | {"asimddp", "i8mm", "bf16", "sve", "sve2", "sme"}
)
_PACKAGES = (
    *("numpy", "onnxruntime", "openvino", "ai-edge-litert", "tflite-runtime", "torch"),
    *("executorch", "coremltools"),
)
_CPU = "sys/devices/system/cpu"


def machine_facts(root: Path = Path("/")) -> dict[str, Any]:
    """Processor, ISA flags, clusters, memory, governor, load, system and versions; None: unknown.

    Args:
        root: the directory that holds ``proc``, ``sys`` and ``etc``.
    """
    cpu = _files.fields(root, "proc/cpuinfo")
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    board = _files.text(root, "proc/device-tree/model")
    found = clusters(root)
    return {
        "cpu": cpu.get("model name") or cpu.get("Model") or board or _brand(),
        "board": board,
        "machine": platform.machine(),
        "isa": sorted(flags & _ISA),
        "cores": os.cpu_count(),
        "usable_cores": len(usable_cpus()),
        "clusters": found,
        "governor": found[0]["governor"] if found else None,
        "memory_mib": _memory_mib(root),
        "load_average": load_average(root),
        "os": platform.system(),
        "kernel": platform.release(),
        "distribution": _distribution(root),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": platform.python_version(),
        "edgekit": edgekit.__version__,
        "packages": {n: version for n in _PACKAGES if (version := installed_version(n))},
        "clock": round(time.time(), 3),
    }


def _brand() -> str | None:
    """The processor's name on a Mac, which has no /proc."""
    import subprocess

    asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def usable_cpus() -> list[int]:
    """The CPUs that this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def clusters(root: Path = Path("/")) -> list[dict[str, Any]]:
    """CPUs of one kind together, the fastest kind first.

    Returns:
        For each ``cpus`` (their numbers), ``capacity`` (the kernel's, 1024 for the fastest core),
        ``min_mhz``, ``max_mhz``, ``governor``, ``implementer`` and ``part`` (MIDR, Arm only); None
        where the kernel doesn't tell.
    """
    kinds = _processors(root)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cpu in _present(root):
        base = f"{_CPU}/cpu{cpu}"
        capacity = _files.number(root, f"{base}/cpu_capacity")
        fastest = _mhz(root, f"{base}/cpufreq/cpuinfo_max_freq")
        kind = kinds.get(cpu, {})
        implementer, part = kind.get("CPU implementer"), kind.get("CPU part")
        key = (-(capacity or 0), -(fastest or 0), implementer, part)
        group = groups.setdefault(
            key,
            {
                "cpus": [],
                "capacity": None if capacity is None else int(capacity),
                "min_mhz": _mhz(root, f"{base}/cpufreq/cpuinfo_min_freq"),
                "max_mhz": fastest,
                "governor": _files.text(root, f"{base}/cpufreq/scaling_governor"),
                "implementer": implementer,
                "part": part,
            },
        )
        group["cpus"].append(cpu)
    return [groups[key] for key in sorted(groups, key=_speed)]


def _speed(key: tuple[Any, ...]) -> tuple[float, float, str]:
    return key[0], key[1], str(key[2:])


def _present(root: Path) -> list[int]:
    stated = _files.cpu_list(_files.text(root, f"{_CPU}/present"))
    return stated or sorted(_processors(root))


def _processors(root: Path) -> dict[int, dict[str, str]]:
    """The fields of ``/proc/cpuinfo`` by processor number."""
    found: dict[int, dict[str, str]] = {}
    for block in (_files.text(root, "proc/cpuinfo") or "").split("\n\n"):
        entry: dict[str, str] = {}
        for line in block.splitlines():
            key, separator, value = line.partition(":")
            if separator:
                entry[key.strip()] = value.strip()
        if entry.get("processor", "").isdigit():
            found[int(entry["processor"])] = entry
    return found


def _mhz(root: Path, path: str) -> int | None:
    khz = _files.number(root, path)
    return None if khz is None or khz <= 0 else round(khz / 1000)


def load_average(root: Path = Path("/")) -> float | None:
    """Mean number of processes that ran or waited to run in the last minute."""
    words = (_files.text(root, "proc/loadavg") or "").split()
    try:
        return round(float(words[0]) if words else os.getloadavg()[0], 2)
    except (OSError, ValueError):
        return None


def _memory_mib(root: Path) -> int | None:
    words = _files.fields(root, "proc/meminfo").get("MemTotal", "").split()
    if words and words[0].isdigit():
        return int(words[0]) // 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (OSError, ValueError):
        return None


def _distribution(root: Path) -> str | None:
    for line in (_files.text(root, "etc/os-release") or "").splitlines():
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            return value.strip().strip("\"'") or None
    release = _files.text(root, "system/build.prop")
    if release is None:
        return f"macOS {platform.mac_ver()[0]}" if platform.mac_ver()[0] else None
    for line in release.splitlines():
        name, _, value = line.partition("=")
        if name == "ro.build.version.release":
            return f"Android {value.strip()}"
    return None
