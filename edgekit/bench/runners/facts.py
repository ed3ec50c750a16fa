"""A device's facts out of what its shell prints, under the names of `edgekit.bench.facts`."""

from __future__ import annotations

from typing import Any

__all__ = ["read_facts"]


def read_facts(out: bytes) -> dict[str, Any]:
    """The facts in lines of ``NAME=VALUE``; None where the device does not say."""
    found: dict[str, str] = {}
    for line in out.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition("=")
        found.setdefault(name, value.strip('" \0')[:4096])
    model = " ".join(
        filter(None, (found.get("ro.product.manufacturer"), found.get("ro.product.model")))
    )
    android = found.get("ro.build.version.release")
    soc = found.get("ro.soc.model") or found.get("ro.board.platform")
    return {
        "cpu": found.get("cpu") or found.get("machdep.cpu.brand_string") or soc or None,
        "board": model or found.get("board") or None,
        "machine": found.get("machine"),
        "isa": sorted(found.get("flags", "").split()),
        "cores": _number(found.get("cores") or found.get("hw.ncpu")),
        "governor": found.get("governor"),
        "memory_mib": _memory(found),
        "load_average": _decimal(found.get("load")),
        "os": "Android" if android else found.get("system"),
        "kernel": found.get("kernel"),
        "distribution": _distribution(found, android),
    }


def _distribution(found: dict[str, str], android: str | None) -> str | None:
    if android:
        return f"Android {android} ({found.get('ro.build.fingerprint', 'unknown build')})"
    if "macos" in found:
        return f"macOS {found['macos']}"
    return found.get("distribution")


def _memory(found: dict[str, str]) -> int | None:
    kib, size = _number(found.get("memory_kib")), _number(found.get("hw.memsize"))
    if kib is not None:
        return kib // 1024
    return None if size is None else size // 2**20


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _decimal(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
