"""What a measurement needs beside it: the machine, its state, and the versions of everything."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import edgekit
from edgekit import cores

__all__ = ["host_facts", "load_average"]

# Of the hundred flags a processor lists, those that decide which kernels a runtime picks.
_ISA = frozenset(
    {"sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl"}
    | {"avx512dq", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "avx_vnni_int8"}
    | {"amx_tile", "amx_int8", "amx_bf16", "hypervisor", "neon", "asimd", "fp", "fphp", "asimdhp"}
    | {"asimddp", "i8mm", "bf16", "sve", "sve2", "sme"}
)
_PACKAGES = ("numpy", "onnxruntime", "openvino", "ai-edge-litert", "tflite-runtime", "torch")


def host_facts() -> dict[str, Any]:
    """Processor, ISA flags, cores, governor, load, kernel, versions; None where unknown."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return {
        "cpu": cpu.get("model name") or cpu.get("Model") or platform.processor() or None,
        "machine": platform.machine(),
        "isa": sorted(flags & _ISA),
        "cores": os.cpu_count(),
        "usable_cores": cores.usable(),
        "governor": _line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_mib": _total_memory_mib(),
        "load_average": load_average(),
        "os": platform.system(),
        "kernel": platform.release(),
        "distribution": _distribution(),
        "python": platform.python_version(),
        "edgekit": edgekit.__version__,
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def load_average() -> float | None:
    """Mean number of processes that ran or waited to run in the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo, and the board's ``Model`` line."""
    found: dict[str, str] = {}
    for line in (_line("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _total_memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (OSError, ValueError):
        return None


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
