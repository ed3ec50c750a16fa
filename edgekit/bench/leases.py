"""Leases: one job at a time on a device, from however many processes of this machine.

A lease is a locked file (flock(2)). The kernel gives the lock back when its holder is gone, however
it went, so nothing expires by the clock and a reused process number means nothing. What stands in
the file is for people. It binds the users of one machine with one state folder; two machines that
reach the same device do not see each other's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from edgekit.bench.process import Cancel, Cancelled
from edgekit.errors import Locked, StorageError

__all__ = ["holder_id", "lease", "state_folder"]

_POLL = 0.2


def state_folder() -> Path:
    """Where leases and results lie: ``$EDGEKIT_STATE``, else by the XDG base directories."""
    if chosen := os.environ.get("EDGEKIT_STATE"):
        return Path(chosen).absolute()
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "edgekit"


def holder_id(device: str) -> str:
    """Names a device's lease: its identity, this machine, user and state folder; 16 hex digits.

    What is marked with it on a device and found there by a later holder belongs to nobody any more.
    """
    text = f"{device}\0{platform.node()}\0{os.getuid()}\0{state_folder()}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@contextlib.contextmanager
def lease(
    device: str,
    *,
    what: str,
    wait: float = 0.0,
    cancel: Cancel | None = None,
    waiting: Callable[[str], None] = lambda _: None,
) -> Iterator[None]:
    """Has a device for oneself.

    Args:
        device: its identity, the same however it is addressed.
        what: names it in errors.
        wait: seconds to wait while another has it.
        cancel: ends the waiting.
        waiting: called once with who has it.

    Raises:
        Locked: another still had it after ``wait`` seconds.
        StorageError: the lease's file cannot be written.
    """
    with _lease_file(device) as file:
        _take(file, what, time.monotonic() + wait, cancel, waiting)
        mine = {"pid": os.getpid(), "device": what, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.seek(0)
        file.truncate()
        file.write(json.dumps({**mine, "started": _started(os.getpid())}))
        file.flush()
        try:
            yield
        finally:
            # Closing alone would not do while a process that another thread just forked has it too.
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def _lease_file(device: str) -> Iterator[IO[str]]:
    # Never deleted: who waits on a deleted file's lock would get it beside the new file's holder.
    name = hashlib.sha256(device.encode()).hexdigest()[:32]
    path = state_folder() / "leases" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}", hint="EDGEKIT_STATE names another folder"
        ) from error
    with file:
        yield file


def _take(
    file: IO[str],
    what: str,
    deadline: float,
    cancel: Cancel | None,
    waiting: Callable[[str], None],
) -> None:
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise Locked(
                f"{what} is in use by {_holder(file)}",
                hint="wait for it (--wait SECONDS), or end that job",
            )
        if not told:
            waiting(f"{what} is in use by {_holder(file)}; waiting for it")
            told = True
        if cancel is not None and cancel.asked:
            raise Cancelled
        time.sleep(min(_POLL, left))


def _holder(file: IO[str]) -> str:
    """Who wrote the file last, in words; only the lock itself says whether it still lives."""
    file.seek(0)
    try:
        told = json.loads(file.read())
        pid, since, started = int(told["pid"]), str(told["since"]), told["started"]
    except (ValueError, KeyError, TypeError):
        return "another job"
    same = started is not None and _started(pid) == started
    return f"process {pid} since {since}" if same else "another job"


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's own ticks (proc(5), stat); None where it can't tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else None
