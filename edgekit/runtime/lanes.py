"""Lanes: a few daemon threads that do work which may hang, so that nobody has to wait for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Job", "Lane"]


@dataclass
class Job:
    """Work for a lane, and what became of it.

    Attributes:
        side: whose work it is; carried along.
        work: what to do.
        inbox: where the job is put when it is done.
        deadline: monotonic seconds; a job that has not begun by then is dropped.
        dropped: called where it was dropped.
        result, error: what ``work`` gave or raised.
        seconds: how long it took.
    """

    side: str
    work: Callable[[], Any]
    inbox: queue.SimpleQueue[Job]
    deadline: float
    dropped: Callable[[], None] | None = None
    result: Any = None
    error: Exception | None = None
    seconds: float = 0.0


@dataclass
class _State:
    waiting: int = 0
    running: dict[int, float] = field(default_factory=dict)  # by thread, since when


class Lane:
    """Threads that take jobs in turn.

    They are daemons: one that hangs keeps neither a caller nor the end of the program waiting. They
    start with the first job.

    Args:
        name: of the threads.
        threads: how many.
        most: jobs that may wait.
        leave: called in each thread as it ends.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        most: int,
        leave: Callable[[], None] | None = None,
    ) -> None:
        self._name, self._count, self._most, self._leave = name, threads, most, leave
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._state = _State()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, job: Job) -> bool:
        """Takes a job; False where too many wait already, or the lane is closed."""
        with self._lock:
            if self._closed or self._state.waiting >= self._most:
                return False
            self._state.waiting += 1
            busy = len(self._state.running) + self._state.waiting
            if len(self._threads) < min(self._count, busy):
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._jobs.put(job)
        return True

    def ahead(self) -> tuple[int, float]:
        """Jobs that wait for a thread of a lane that has one, and how long the running one has been
        at it in seconds (0 where none runs)."""
        with self._lock:
            since = min(self._state.running.values(), default=None)
            return self._state.waiting, 0.0 if since is None else time.monotonic() - since

    def full(self) -> bool:
        """Whether `submit` would say no."""
        with self._lock:
            return self._closed or self._state.waiting >= self._most

    def close(self) -> None:
        """Lets the threads end once what they do is done; jobs that wait are dropped."""
        with self._lock:
            self._closed = True
            threads = len(self._threads)
        for _ in range(threads):
            self._jobs.put(None)

    def join(self, seconds: float) -> None:
        """Waits for the threads to end, so long in all."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        me = threading.get_ident()
        try:
            while (job := self._jobs.get()) is not None:
                started = time.monotonic()
                with self._lock:
                    self._state.waiting -= 1
                    late = self._closed or started >= job.deadline
                    if not late:
                        self._state.running[me] = started
                if late:
                    if job.dropped is not None:
                        job.dropped()
                    continue
                try:
                    job.result = job.work()
                except Exception as error:
                    job.error = error
                finally:
                    job.seconds = time.monotonic() - started
                    with self._lock:
                        self._state.running.pop(me, None)
                job.inbox.put(job)
        finally:
            if self._leave is not None:
                self._leave()
