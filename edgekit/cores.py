"""The cores of this machine, shared with other processes: our own, and those of others.

Graphs are evaluated by torch, whose threads are OpenMP's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, MutableMapping

__all__ = ["shared", "usable", "wait_passively", "without_policy"]

_POLICY, _THREADS = "OMP_WAIT_POLICY", "OMP_NUM_THREADS"
_OURS = "EDGEKIT_WAIT_POLICY"


def usable() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wait_passively(environment: MutableMapping[str, str]) -> None:
    """Has OpenMP's threads sleep where they wait for each other, instead of spinning.

    Where the user's ``OMP_WAIT_POLICY`` says otherwise, that holds. OpenMP reads it when torch is
    imported, so a process that is to wait so itself says it of ``os.environ`` before that.

    Threads that spin gain little on a machine by itself. As soon as one core of it is taken, or a
    container has fewer than it sees, each of many thousand meetings waits until the scheduler gives
    the last thread its turn: with one of two cores busy, quantizing MobileNetV2 took over 400 s
    instead of 21.
    """
    if _POLICY not in environment:
        environment.update({_POLICY: "PASSIVE", _OURS: "1"})


def without_policy(environment: MutableMapping[str, str]) -> None:
    """Takes `wait_passively` back, for a process that measures a runtime as it comes."""
    if environment.pop(_OURS, None) is not None:
        environment.pop(_POLICY, None)


@contextlib.contextmanager
def shared(processes: int) -> Iterator[None]:
    """While it lasts, torch takes its share of the cores: here, and in processes started meanwhile.

    Args:
        processes: how many compute at a time, this one included. Where the user's
            ``OMP_NUM_THREADS`` says otherwise, that holds.
    """
    if _THREADS in os.environ:
        yield
        return
    import torch

    before, share = torch.get_num_threads(), max(1, usable() // max(1, processes))
    os.environ[_THREADS] = str(share)
    torch.set_num_threads(min(before, share))
    try:
        yield
    finally:
        os.environ.pop(_THREADS, None)
        torch.set_num_threads(before)
