"""The server's end of a worker process: starting it, sending groups, taking answers, its death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import BadData, EdgekitError, WorkerCrashed
from edgekit.serve.layout import Answer, Group, Layout, Slot, pack_group, unpack_answers

__all__ = ["Found", "WorkerProcess", "no_process"]

_MESSAGE = 1 << 18


@dataclass(frozen=True)
class Found:
    """What a worker found out while it loaded an artifact; see `edgekit.serve.variants`."""

    batches: tuple[int, ...]
    wide: bool
    row_us: float
    runtime: str
    notes: tuple[str, ...]


class WorkerProcess:
    """One worker process.

    Args:
        layout: of the memory that is shared with it.
        on_answers: is given each message: slot, number, answers, executions, last.
        on_death: is called once, when it has ended by itself.
    """

    def __init__(
        self,
        layout: Layout,
        on_answers: Callable[[WorkerProcess, int, int, list[Answer], int, bool], None],
        on_death: Callable[[WorkerProcess], None],
    ) -> None:
        self._on_answers = on_answers
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._link: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._file = os.memfd_create("edgekit-serve", os.MFD_CLOEXEC)
        os.ftruncate(self._file, layout.size)
        self._memory = mmap.mmap(self._file, layout.size)
        self.slots: list[Slot] = [layout.slot(self._memory, i) for i in range(layout.slots)]

    @property
    def pid(self) -> int:
        """Its process id; 0 before it starts."""
        return 0 if self._process is None else self._process.pid

    async def start(self, order: Mapping[str, Any], seconds: float) -> Found:
        """Starts the process and waits until its artifact is loaded and warm.

        Args:
            order: what to load; see `edgekit.serve.worker`.
            seconds: how long that may take.

        Raises:
            BadData: the artifact does not load, or gives wrong answers.
            WorkerCrashed: the process cannot be started, died or took too long.
        """
        try:
            ours = self._begin()
        except OSError as error:
            raise no_process(error) from error
        try:
            ours.send(json.dumps(order).encode())
            reply = await asyncio.wait_for(self._loop.sock_recv(ours, _MESSAGE), seconds)
        except (TimeoutError, ConnectionError) as error:
            self.end(kill=True)
            raise WorkerCrashed("a worker did not load the model in time") from error
        if not reply:
            self.end(kill=True)
            raise WorkerCrashed("a worker process died while it loaded the model")
        found = json.loads(reply)
        if not found.pop("ok"):
            self.end(kill=True)
            raise _error(found)
        self._loop.add_reader(ours.fileno(), self._readable)
        return Found(
            tuple(found["batches"]),
            found["wide"],
            found["row_us"],
            found["runtime"],
            tuple(found["notes"]),
        )

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._link = ours
        files = (theirs.fileno(), self._file)
        command = [sys.executable, "-m", "edgekit.serve.worker", *map(str, files)]
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=files, stdin=subprocess.DEVNULL)
        return ours

    def send(self, group: Group) -> bool:
        """Hands it a group; False if it is dead."""
        if self._link is None:
            return False
        try:
            self._link.send(pack_group(group))
        except OSError:
            return False
        return True

    def _readable(self) -> None:
        link = self._link
        if link is None:
            return
        try:
            message = link.recv(_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if message:
            self._on_answers(self, *unpack_answers(message))
            return
        self.end(kill=True)
        self._on_death(self)

    def end(self, *, kill: bool = False) -> None:
        """Lets it finish and end, or ends it now; its death is not reported."""
        if self._link is not None:
            self._loop.remove_reader(self._link.fileno())
            self._link.close()
            self._link = None
        process = self._process
        if process is not None and process.returncode is None:
            if kill:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            # Reaped aside: a runtime may take its time to free what it holds.
            self._loop.run_in_executor(None, _reap, process)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def kill(self) -> None:
        """Kills a process that hangs; its death is then noticed as any other."""
        if self._process is not None:
            self._process.kill()


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def no_process(error: OSError) -> WorkerCrashed:
    """What is raised where the system gives no process, memory or file for a worker."""
    return WorkerCrashed(f"a worker process cannot be started: {error.strerror}")


def _error(found: Mapping[str, Any]) -> EdgekitError:
    return BadData(f"the model does not load ({found['kind']}): {found['reason']}")
