"""Device profiles: what a device is, which targets it can run, and what is asked of it.

A profile is a TOML file, data only, with a source for every figure. ``devices/*.toml`` ship with
edgekit; any other ``.toml`` path works wherever a device id does.
"""

from __future__ import annotations

from edgekit.device.loader import available, check, host, load
from edgekit.device.profile import (
    Accelerator,
    Anchor,
    Bench,
    Budgets,
    Cluster,
    Cpu,
    Device,
    Isa,
    Memory,
    TargetSupport,
    UnsupportedTarget,
)
from edgekit.device.select import Job, plan_targets

__all__ = [
    "Accelerator",
    "Anchor",
    "Bench",
    "Budgets",
    "Cluster",
    "Cpu",
    "Device",
    "Isa",
    "Job",
    "Memory",
    "TargetSupport",
    "UnsupportedTarget",
    "available",
    "check",
    "host",
    "load",
    "plan_targets",
]
