"""What a measurement needs beside it: the machine, its state, and the versions of everything."""

from __future__ import annotations

from edgekit.bench._machine import load_average, machine_facts

__all__ = ["host_facts", "load_average"]

host_facts = machine_facts
