"""Which instructions this processor has, as far as artifacts ask for them.

The C library is asked first: it read the processor's own registers when the process was started,
and knows what the operating system lets programs use. ``/proc/cpuinfo`` and ``sysctl`` come after.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["architecture", "flags", "lacks_vnni", "unmet"]

_ARCHITECTURES = {"amd64": "x86_64", "aarch64": "arm64"}

# The flags that requirements may name, by glibc's CPUID leaf, register and bit (glibc manual,
# "X86"; the leaves are the enumeration of <sys/platform/x86.h>).
_X86 = {
    "sse4_1": (0, 2, 19),
    "avx2": (1, 1, 5),
    "avx512_vnni": (1, 2, 11),
    "avx_vnni": (6, 0, 4),
}
_MACOS = {
    "sse4_1": "hw.optional.sse4_1",
    "avx2": "hw.optional.avx2_0",
    "avx512_vnni": "hw.optional.avx512vnni",
}


class _Leaf(ctypes.Structure):
    _fields_ = (("stated", ctypes.c_uint32 * 4), ("usable", ctypes.c_uint32 * 4))


def architecture() -> str:
    """``x86_64``, ``arm64``, or what the system calls another one."""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


@functools.cache
def flags() -> frozenset[str] | None:
    """The x86 flags of this processor that a requirement may name; None where they can't be told.

    Other architectures give None too: nothing is asked of them yet.
    """
    if architecture() != "x86_64":
        return None
    if sys.platform == "darwin":
        return _macos()
    return _glibc() or _cpuinfo()


def lacks_vnni() -> bool:
    """Whether this is x86 that is not known to have VNNI: its int8 kernels may saturate."""
    if architecture() != "x86_64":
        return False
    known = flags()
    return known is None or not known & {"avx_vnni", "avx512_vnni"}


def unmet(requires: Mapping[str, Any]) -> str | None:
    """The first instruction-set requirement of an artifact that this processor does not meet.

    A processor whose flags can't be told meets none.

    Args:
        requires: an artifact's requirements; ``isa`` holds entries such as
            ``x86_64:avx_vnni|avx512_vnni``, on x86_64 one of these flags.
    """
    stated = requires.get("isa")
    for entry in stated if isinstance(stated, list) else []:
        arch, _, wanted = str(entry).partition(":")
        if arch == architecture() and not set(wanted.split("|")) & (flags() or frozenset()):
            return str(entry)
    return None


def _glibc() -> frozenset[str] | None:
    """None where there is no glibc, or none with this call (it came with 2.33)."""
    try:
        ask = getattr(ctypes.CDLL("libc.so.6"), "__x86_get_cpuid_feature_leaf")
    except (OSError, AttributeError):
        return None
    ask.argtypes, ask.restype = [ctypes.c_uint], ctypes.POINTER(_Leaf)
    found = set()
    for flag, (leaf, register, bit) in _X86.items():
        known = ask(leaf)
        # An older glibc gives no pointer, or an empty leaf, for leaves that it does not know.
        if known and known.contents.usable[register] >> bit & 1:
            found.add(flag)
    return frozenset(found)


def _cpuinfo() -> frozenset[str] | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split()) & _X86.keys()
    return None


def _macos() -> frozenset[str] | None:
    found = set()
    for flag, key in _MACOS.items():
        try:
            done = subprocess.run(
                ["/usr/sbin/sysctl", "-n", key],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.stdout.strip() == "1":
            found.add(flag)
    return frozenset(found)
