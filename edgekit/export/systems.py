"""Operating systems: what a target's files ask for, and what a device is known to run.

Core ML's runtime is a part of the system. A package is made for the oldest system that knows its
scheme, so that it loads on as many as can be; a device's profile says which that may be at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edgekit.device import Device, Job
from edgekit.errors import UnsupportedError
from edgekit.targets import find

__all__ = ["check_systems"]

_LIKE = {"iPadOS": "iOS"}
"""Systems that count their versions as another one does."""


def check_systems(jobs: Sequence[Job], devices: Mapping[str, Device]) -> None:
    """Refuses, before anything is made, files that a device's system is too old for.

    Args:
        jobs: what is to be made.
        devices: the profiles by id.

    Raises:
        UnsupportedError: names the device, what it runs, what the scheme needs, and the schemes
            that the device can take from this target.
    """
    for job in jobs:
        for device in (devices[d] for d in job.devices):
            needed = _needed(job.through, job.scheme, device)
            if needed is None or _runs(device, needed):
                continue
            listed = [
                e.schemes
                for e in device.targets
                if (e.target, e.delegate) == (job.target, job.delegate)
            ]
            carried = dict.fromkeys(
                scheme
                for schemes in listed
                for scheme in schemes
                if (least := _needed(job.through, scheme, device)) is None or _runs(device, least)
            )
            raise UnsupportedError(
                f"{job.through} {job.scheme} needs {_words(device, needed)}, and the profile of "
                f"{device.id} says {device.os!r}",
                hint=f"choose another --scheme ({', '.join(carried)}), or raise `os` in a copy of "
                "the profile if all your devices run more than it says"
                if carried
                else f"raise `os` in a copy of the profile if all your devices run more than it "
                f"says, or leave {job.through} out with --target",
            )


def _needed(target: str, scheme: str, device: Device) -> tuple[int, ...] | None:
    """The version of a device's system that a scheme asks for; None where none is known."""
    if device.system is None:
        return None
    name = _LIKE.get(device.system[0], device.system[0])
    asked: Mapping[str, Sequence[str]] = getattr(find(target), "systems", {})
    found = (re.fullmatch(rf"{name} (\d+(?:\.\d+)*)", text) for text in asked.get(scheme, ()))
    return next((tuple(map(int, m[1].split("."))) for m in found if m), None)


def _runs(device: Device, needed: tuple[int, ...]) -> bool:
    return device.system is not None and device.system[1] >= needed


def _words(device: Device, version: tuple[int, ...]) -> str:
    assert device.system is not None
    return f"{device.system[0]} {'.'.join(map(str, version))}"
