"""Ties a worker to the process that asks it: what nobody waits for must not take the cores."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["end_with"]

_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with(asker: int) -> None:
    """Has the kernel kill this process once the one that started it is gone, however it went.

    Only Linux does it; elsewhere, or where another program stands between, nothing changes.

    Args:
        asker: the number of the process that asks.
    """
    if not sys.platform.startswith("linux") or os.getppid() != asker:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != asker:  # it went in between
        os._exit(1)
