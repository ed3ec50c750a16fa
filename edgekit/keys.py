"""What stage results in the store depend on beside their inputs: versions, our code, this CPU."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path

import edgekit

__all__ = ["code", "isa", "versions"]


def versions(*names: str) -> dict[str, str]:
    """Installed versions by distribution name, ``absent`` for what is not there."""
    found = {}
    for name in names:
        if name == "edgekit":
            found[name] = edgekit.__version__
            continue
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def code(*parts: str) -> str:
    """sha256 of our own source that a stage's result depends on."""
    root = Path(edgekit.__file__).parent
    sha = hashlib.sha256()
    for part in parts:
        place = root / part
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            sha.update(file.read_bytes())
    return sha.hexdigest()


def isa() -> list[str]:
    """This machine's architecture and instruction-set extensions."""
    from edgekit.bench.facts import host_facts

    facts = host_facts()
    return [platform.machine(), *facts["isa"]]
