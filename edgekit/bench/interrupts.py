"""Signals that end a program are made exceptions, so that what was started is ended, too."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["ended_by_signals", "held_back"]

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGHUP raise `KeyboardInterrupt`, as SIGINT does.

    By themselves they end a process where it stands, with no time to clean up. One that is
    ignored stays so (nohup(1)). Only the main thread can set handlers; in another, nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """While it lasts, the first signal that would end the program waits until it is over.

    For cleaning up that takes a bounded time: an impatient second Ctrl-C must not leave half of it
    undone. Another one ends that, too. As in `ended_by_signals`, only the main thread can do this.

    Raises:
        KeyboardInterrupt: one came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came += 1
        if came > 1:
            raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGINT, *_SIGNALS):
        if callable(signal.getsignal(number)):
            before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came == 1:
            raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
