"""Runs one command to its end within limits of time and output; kills only what it started."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.errors import WorkerCrashed

__all__ = ["Finished", "run_bounded"]

MAX_OUTPUT = 64 * 2**20
_TAIL = 4_000
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Attributes:
        code: exit status; a negative number is the signal it died from.
        stdout: all of it, at most `MAX_OUTPUT` bytes.
        stderr: the last few thousand characters.
        seconds: wall time.
    """

    code: int
    stdout: bytes
    stderr: str
    seconds: float

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
    start = time.monotonic()
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if env is None else dict(env),
        start_new_session=True,  # so that its children can be killed with it
    ) as process:
        try:
            out, err = _collect(process, start + timeout, max_output, what)
            left = max(0.0, start + timeout - time.monotonic())
            code = process.wait(left)
        except subprocess.TimeoutExpired as error:
            raise _too_long(what, timeout) from error
        except _DeadlineError as error:
            raise _too_long(what, timeout) from error
        finally:
            _kill_group(process)
    return Finished(code, out, err.decode("utf-8", "replace"), time.monotonic() - start)


class _DeadlineError(Exception):
    """The deadline passed while the command still held its pipes open."""


def _too_long(what: str, timeout: float) -> WorkerCrashed:
    return WorkerCrashed(
        f"{what} did not finish within {timeout:.0f} s and was stopped",
        hint="allow it more time, or fewer runs",
    )


def _collect(
    process: subprocess.Popen[bytes], deadline: float, max_output: int, what: str
) -> tuple[bytes, bytes]:
    """Reads both pipes to their ends: all of stdout, the tail of stderr."""
    assert process.stdout is not None and process.stderr is not None
    out, err = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                raise _DeadlineError
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK)
                if not chunk:
                    selector.unregister(key.fileobj)
                key.data.extend(chunk)
            if len(out) > max_output:
                raise WorkerCrashed(f"{what} wrote more than {max_output} bytes and was stopped")
            del err[:-_TAIL]
    return bytes(out), bytes(err)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the command's own process group, which outlives it if it left children behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
