"""The cores of this machine, shared with other processes: our own, and those of others.

Graphs are evaluated by torch, whose threads are OpenMP's.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, MutableMapping

__all__ = ["as_it_comes", "collect_seldom", "shared", "spin_briefly", "usable"]

_THREADS = "OMP_NUM_THREADS"
_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SPINS = "1000"
_OURS = "EDGEKIT_SPINS"


def usable() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Has threads of GNU's OpenMP, torch's on Linux, soon sleep where they wait for each other.

    Where the user's ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` says otherwise, that holds. OpenMP
    reads it when torch is imported, so a process that is to wait so itself says it of
    ``os.environ`` before that.

    By themselves they spin 300,000 times. As soon as one core is taken, or a container has fewer
    than it sees, each of many thousand meetings then waits until the scheduler gives the last
    thread its turn. Quantizing MobileNetV2 (224 x 224, 128 samples, no rounding) on two cores took
    14 to 18 s, and over 400 s beside one busy process; with 1,000 spins 16 to 17 s and 27 s, with
    3,000 15 to 18 s and 36 s, without any (``PASSIVE``) 25 s and 20 s.
    """
    if not any(name in environment for name in _POLICIES):
        environment.update({"GOMP_SPINCOUNT": _SPINS, _OURS: "1"})


def as_it_comes(environment: MutableMapping[str, str]) -> None:
    """Takes `spin_briefly` back, for a process that measures a runtime as it comes."""
    if environment.pop(_OURS, None) is not None:
        environment.pop("GOMP_SPINCOUNT", None)


def collect_seldom() -> None:
    """Has Python look for garbage in cycles every 50,000 new objects, not every 700.

    Graphs of torch, and what it takes to import it, are hundreds of thousands of objects that stay.
    Looking through them found little. Of what converting MobileNetV2 took in processor time, 4 %
    (LiteRT) to 26 % (OpenVINO) went by looking every 100,000, for 1 to 2 % more memory, and 8 to
    29 % by never looking (four targets, one run each).
    """
    gc.set_threshold(50_000, 20, 20)


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
