"""Runs one command to its end within limits of time and output; kills only what it started."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from edgekit.errors import WorkerCrashed

__all__ = ["Cancel", "Cancelled", "Finished", "attempt", "run_bounded"]

MAX_OUTPUT = 64 * 2**20
_TAIL = 4_000
_CHUNK = 1 << 16
_GRACE = 1.0  # for a command that has closed its pipes to exit


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        code: exit status; a negative number is the signal it died from.
        stdout: all of it, at most the bytes that were allowed.
        stderr: the last few thousand characters.
        seconds: wall time.
        stopped: why it was killed before its end: it ran out of time, or wrote too much.
    """

    code: int
    stdout: bytes
    stderr: str
    seconds: float
    stopped: Literal["", "timeout", "flood"] = ""

    def death(self) -> str:
        """How it died, in words, with the last line it wrote to stderr."""
        if self.code < 0:
            try:
                how = f"died from {signal.Signals(-self.code).name}"
            except ValueError:
                how = f"died from signal {-self.code}"
        else:
            how = f"ended with exit status {self.code}"
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return f"{how}: {lines[-1][:400]}" if lines else how


class Cancelled(BaseException):
    """The work was called off from another thread; like `KeyboardInterrupt`, no `Exception`."""


class Cancel:
    """Calls off the commands of several threads at once: Ctrl-C reaches only one of them."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self.asked = False

    def fileno(self) -> int:
        """Becomes readable once `ask` was called."""
        return self._read

    def ask(self) -> None:
        """Has every `attempt` that was given this end with `Cancelled`, now and from now on."""
        if not self.asked:
            self.asked = True
            os.write(self._write, b"x")

    def close(self) -> None:
        """Frees the two descriptors."""
        os.close(self._read)
        os.close(self._write)


def run_bounded(
    argv: Sequence[str],
    *,
    timeout: float,
    what: str,
    env: Mapping[str, str] | None = None,
    max_output: int = MAX_OUTPUT,
) -> Finished:
    """Runs a command and waits for it.

    Args:
        argv: the command and its arguments; no shell is involved.
        timeout: seconds until it is killed, with every process it started.
        what: names it in the error.
        env: its environment, this process's own if None.
        max_output: bytes of stdout after which it is killed.

    Raises:
        WorkerCrashed: it ran past ``timeout`` or wrote more than ``max_output``.
    """
    done = attempt(argv, timeout=timeout, env=env, max_output=max_output)
    if done.stopped == "timeout":
        raise WorkerCrashed(
            f"{what} did not finish within {timeout:.0f} s and was stopped",
            hint="allow it more time, or fewer runs",
        )
    if done.stopped == "flood":
        raise WorkerCrashed(f"{what} wrote more than {max_output} bytes and was stopped")
    return done


def attempt(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    stdin: bytes | IO[bytes] | None = None,
    max_output: int = MAX_OUTPUT,
    cancel: Cancel | None = None,
) -> Finished:
    """Runs a command as `run_bounded` does, but says in ``stopped`` why it had to be killed.

    Args:
        argv: the command and its arguments; no shell is involved.
        timeout: seconds until it is killed, with every process it started.
        env: its environment, this process's own if None.
        stdin: what it reads: bytes or an open file; nothing if None.
        max_output: bytes of stdout after which it is killed.
        cancel: ends it early.

    Raises:
        Cancelled: ``cancel`` was asked to.
        OSError: the command cannot be started.
    """
    start = time.monotonic()
    with (
        _input(stdin) as source,
        subprocess.Popen(
            argv,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            start_new_session=True,  # so that its children can be killed with it
        ) as process,
    ):
        out, err = bytearray(), bytearray()
        stopped: Literal["", "timeout", "flood"] = ""
        try:
            stopped = _collect(process, start + timeout, max_output, (out, err), cancel)
            if not stopped:
                process.wait(max(_GRACE, start + timeout - time.monotonic()))
        except subprocess.TimeoutExpired:
            stopped = "timeout"
        finally:
            _kill_group(process)
        code = process.wait()
    seconds = time.monotonic() - start
    return Finished(code, bytes(out), err.decode("utf-8", "replace"), seconds, stopped)


@contextlib.contextmanager
def _input(stdin: bytes | IO[bytes] | None) -> Iterator[IO[bytes] | int]:
    """A descriptor for the child: a file cannot block the parent as a full pipe would."""
    if stdin is None:
        yield subprocess.DEVNULL
    elif isinstance(stdin, bytes):
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            yield file
    else:
        yield stdin


def _collect(
    process: subprocess.Popen[bytes],
    deadline: float,
    max_output: int,
    sinks: tuple[bytearray, bytearray],
    cancel: Cancel | None,
) -> Literal["", "timeout", "flood"]:
    """Reads both pipes to their ends: all of stdout, the tail of stderr."""
    assert process.stdout is not None and process.stderr is not None
    out, err = sinks
    with selectors.DefaultSelector() as selector:
        if cancel is not None:
            selector.register(cancel, selectors.EVENT_READ)
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        still_open = 2
        while still_open:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                return "timeout"  # also for one that never pauses in writing
            for key, _ in ready:
                if key.data is None:
                    raise Cancelled
                chunk = os.read(key.fd, _CHUNK)
                if not chunk:
                    selector.unregister(key.fileobj)
                    still_open -= 1
                key.data.extend(chunk)
            if len(out) > max_output:
                del out[max_output:]
                return "flood"
            del err[:-_TAIL]
    return ""


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the command's own process group, which outlives it if it left children behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
