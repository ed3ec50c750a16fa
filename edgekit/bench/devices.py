"""Measuring on a device: its runner, the worker or the vendor's programs there, and its budgets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from edgekit.bench.asking import Files, Worker
from edgekit.bench.process import Cancel
from edgekit.bench.remote import RemoteWorker, python_of
from edgekit.bench.runners import open_runner
from edgekit.bench.vendor import TOOLS, Tool, VendorWorker
from edgekit.device import Device
from edgekit.errors import UsageError

__all__ = ["budget_gates", "check_profile", "open_worker"]

_MACHINES: Final = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armv8l": "arm64",  # a 32-bit system on such a processor
}


class _Both:
    """The vendor's program where one is named for an artifact's target, else the worker."""

    def __init__(self, vendor: VendorWorker, remote: RemoteWorker, tools: Sequence[Tool]) -> None:
        self.where = remote.where
        self._vendor, self._remote = vendor, remote
        self._targets = {TOOLS[tool.name] for tool in tools}

    def ask(
        self,
        question: Mapping[str, Any],
        files: Files,
        *,
        what: str,
        timeout: float,
        threads: int = 1,
    ) -> dict[str, Any]:
        """See `edgekit.bench.asking.Worker.ask`."""
        measured = question["op"] == "bench" and question["target"] in self._targets
        place: Worker = self._vendor if measured else self._remote
        return place.ask(question, files, what=what, timeout=timeout, threads=threads)

    def facts(self) -> dict[str, Any]:
        """See `edgekit.bench.asking.Worker.facts`."""
        return self._remote.facts()


@contextlib.contextmanager
def open_worker(
    url: str,
    tools: Sequence[Tool] = (),
    *,
    targets: Collection[str] = (),
    device: Device | None = None,
    wait: float = 0.0,
    cancel: Cancel | None = None,
    waiting: Callable[[str], None] = lambda _: None,
) -> Iterator[Worker]:
    """What measures on a device, with the device's lease.

    Args:
        url: the device's, see `edgekit.bench.runners`.
        tools: vendors' programs that measure in place of the worker.
        targets: of the artifacts to be measured; where the programs cover them all, the device
            needs no Python. Unknown if empty.
        device: the profile that it is to be measured as.
        wait, cancel, waiting: see `edgekit.bench.runners.open_runner`.

    Raises:
        UsageError: it is no such device as the profile's.
        UsageError, MissingDependency, DeviceUnreachable, UnsupportedError, Locked: as there.
    """
    python = python_of(url)
    with open_runner(url, wait=wait, cancel=cancel, waiting=waiting) as runner:
        if device is not None:
            check_profile(device, runner.facts(), url)
        remote = RemoteWorker(runner, python)
        if not tools:
            yield remote
            return
        vendor = VendorWorker(runner, tools)
        covered = {TOOLS[tool.name] for tool in tools}
        yield vendor if targets and set(targets) <= covered else _Both(vendor, remote, tools)


def check_profile(device: Device, facts: Mapping[str, Any], where: str) -> None:
    """Refuses to call a machine by the name of a device that it cannot be.

    Raises:
        UsageError: its processor is of another architecture than the profile's.
    """
    machine = str(facts.get("machine") or "").lower()
    arch = _MACHINES.get(machine)
    if arch is not None and arch != device.isa.arch:
        raise UsageError(
            f"{where} is {machine}, and no {device.id}, which is {device.isa.arch}",
            hint="name the profile of the device that is measured (edgekit devices), or none",
        )


def budget_gates(document: Mapping[str, Any], device: Device) -> list[dict[str, Any]]:
    """The device's budgets, held against every artifact measured on it.

    ``passed`` is None where that can't be judged: a figure is missing, or there are too few calls
    to say that a limit is kept. A limit that is broken is broken with few calls, too.
    """
    gates = []
    for result in document["results"]:
        latency = result["latency_ms"] or {}
        figures = {
            "max_bytes": result["bytes"],
            "latency_p90_ms": latency.get("p90"),
            "peak_memory_mib": result["peak_memory_mib"],
        }
        for budget, value in figures.items():
            limit = getattr(device.budgets, budget)
            if limit is None:
                continue
            passed, detail = None if value is None else value <= limit, None
            if value is None:
                detail = "it was not measured"
            elif passed and budget == "latency_p90_ms" and result["insufficient"]:
                passed, detail = None, "; ".join(result["insufficient"])
            name = f"{budget.replace('_', '-')}@{device.id}"
            gate = {"artifact": result["artifact"], "name": name, "limit": limit, "value": value}
            gates.append({**gate, "passed": passed, "detail": detail})
    return gates
