"""Work of this process beside the targets' workers, which leave it idle."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from edgekit.export.request import Listener

__all__ = ["Aside", "beside"]

_T = TypeVar("_T")


class _Unwanted(Exception):
    """Ends work whose result nobody waits for any more."""


class Aside:
    """The listener of work aside: it shows lines, as the bar is another's, and ends the work.

    Work that calls `tick`, or advances its progress, ends there once it is not wanted any more.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener, self._unwanted = listener, threading.Event()

    def note(self, message: str) -> None:
        """As the listener's own."""
        self._listener.note(message)

    @contextlib.contextmanager
    def progress(
        self, description: str, total: int | None = None
    ) -> Iterator[Callable[[int], None]]:
        """One line, and `tick` for a callable."""
        self._listener.note(description)
        yield self.tick

    def tick(self, _steps: int = 1) -> None:
        """Call this now and then; it raises where the work is to end."""
        if self._unwanted.is_set():
            raise _Unwanted

    def stop(self) -> None:
        """Has the work end at its next `tick`."""
        self._unwanted.set()


@contextlib.contextmanager
def beside(work: Callable[[Aside], _T], listener: Listener) -> Iterator[Future[_T]]:
    """Does ``work`` in a thread of its own while the block does something else.

    Args:
        work: is given its listener.
        listener: of the export.

    Yields:
        The work's result, or its error, as a future. Where the block ends with an error, the work
        ends at its next tick; else it is waited for.
    """
    aside = Aside(listener)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="beside") as pool:
        future = pool.submit(work, aside)
        try:
            yield future
        except BaseException:
            aside.stop()
            raise
