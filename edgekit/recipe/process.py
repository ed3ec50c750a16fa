"""A stage's process as the run sees it: started, heard, tried again, stopped."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from edgekit import cores, errors
from edgekit.artifact import storage_error
from edgekit.errors import (
    EdgekitError,
    GateFailed,
    Locked,
    MissingDependency,
    StorageError,
    WorkerCrashed,
)
from edgekit.names import install_command
from edgekit.recipe.cache import Hit
from edgekit.recipe.stages import Options

__all__ = ["Failure", "Process", "Success"]

_TAIL = 8
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0
_LOCK_S = 15.0


@dataclass(frozen=True)
class Success:
    """A stage that ended well: where its result lies, and what else it told."""

    result: Path
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """A stage that failed, at the last try."""

    error: EdgekitError
    attempts: int
    wall_s: float
    log: Path


class _TryAgain(Exception):
    """Another try may mend it."""

    def __init__(self, error: EdgekitError) -> None:
        super().__init__(error.message)
        self.error = error


class Process:
    """One stage being run.

    Args:
        job: what the worker is told; see `edgekit.recipe.worker`.
        scratch: its folder, there again when the same work is begun anew.
        options: the stage's.
        why: why it runs.
        parts: what its result will be kept under.
        found: the result, where another run has kept it since.
        tell: called from a thread with each event, and at the end with `Success`, `Failure` or what
            was found. The scratch is this process's own until `release` is called.
    """

    def __init__(
        self,
        *,
        job: Mapping[str, Any],
        scratch: Path,
        options: Options,
        why: str,
        parts: Mapping[str, Any],
        found: Callable[[], Hit | None],
        tell: Callable[[Any], None],
    ) -> None:
        self.scratch, self.why, self.parts = scratch, why, parts
        self.threads = int(job["threads"])
        self._job, self._options, self._tell, self._found = job, options, tell, found
        self._held: TextIO | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._supervise, daemon=True)

    def start(self) -> None:
        """Begins, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the process, if it runs, and waits until it has ended."""
        with self._lock:
            self._stopped = True
            child = self._child
        if child is not None and child.returncode is None:
            _end_group(child.pid)
        self._thread.join()
        self.release()

    def release(self) -> None:
        """Leaves the scratch to others."""
        if self._held is not None:
            with self._held as file:
                fcntl.flock(file, fcntl.LOCK_UN)
            self._held = None

    def _hold(self) -> bool:
        """Takes the scratch, of which this run and the worker hold one lock; whether it waited.

        Where a run was killed, its stage may live a moment longer; where another run is at the same
        stage, its result is being moved from here.
        """
        limit = time.monotonic() + _LOCK_S
        waited = False
        while not self._stopped:
            self.scratch.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                path = self.scratch / "lock"
                file = path.open("w")
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # The scratch may have been removed, and made anew, since it was opened.
                    if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                        self._held = file
                        return waited
                file.close()
            if time.monotonic() > limit:
                raise Locked(
                    "another run is at this stage with the same settings",
                    hint="wait for it to end; its result is then taken",
                )
            waited = True
            time.sleep(0.05)
        raise WorkerCrashed("it was stopped")

    def _supervise(self) -> None:
        start = time.perf_counter()
        attempts = 0
        try:
            import stamina

            if self._hold() and (hit := self._found()) is not None:
                self._tell(hit)
                return
            for attempt in stamina.retry_context(
                on=_TryAgain,
                attempts=self._options.retries + 1,
                timeout=None,
                wait_initial=_FIRST_WAIT_S,
                wait_max=_LONGEST_WAIT_S,
            ):
                with attempt:
                    attempts = attempt.num
                    self._tell({"event": "started", "attempt": attempts})
                    about = self._attempt()
            self._tell(Success(self.scratch / "result", {**about, "attempts": attempts}))
        except Exception as error:
            known = error.error if isinstance(error, _TryAgain) else _as_ours(error, self.scratch)
            named = type(known)(f"stage {self._job['stage']!r}: {known.message}", hint=known.hint)
            took = round(time.perf_counter() - start, 3)
            self._tell(Failure(named, attempts, took, self.scratch / "log.txt"))

    def _attempt(self) -> Mapping[str, Any]:
        """One try; what the worker answered.

        Raises:
            _TryAgain: it failed so that another try may succeed.
            EdgekitError: it failed.
        """
        answer = self.scratch / "answer.json"
        self.scratch.mkdir(parents=True, exist_ok=True)
        answer.unlink(missing_ok=True)
        code = self._run(answer)
        try:
            told = json.loads(answer.read_text())
        except (OSError, ValueError):
            raise _TryAgain(self._crash(code)) from None
        if "error" not in told:
            about: dict[str, Any] = told
            return about
        error = _error_of(told["error"], self.scratch)
        names = {f"{k.__module__}.{k.__qualname__}" for k in self._options.retry_on}
        if names & set(told["error"]["ancestors"]):
            raise _TryAgain(error)
        raise error

    def _run(self, answer: Path) -> int:
        """Starts the worker and passes on what it tells; its exit code."""
        assert self._held is not None
        read, write = os.pipe()
        job = self.scratch / "job.json"
        told = {
            **self._job,
            "scratch": str(self.scratch),
            "result": str(self.scratch / "result"),
            "answer": str(answer),
            "events": write,
            "lock": self._held.fileno(),
        }
        job.write_text(json.dumps(told))
        # Sets and dictionaries keep one order, and threads are the stage's, not the machine's.
        environment = {
            **os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": str(self.threads),
            "OPENBLAS_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads),
        }  # fmt: skip
        cores.spin_briefly(environment)
        with (self.scratch / "log.txt").open("wb") as log, os.fdopen(read, "r") as events:
            try:
                with self._lock:
                    if self._stopped:
                        raise WorkerCrashed("it was stopped")
                    # -P: nothing in the directory that the user is in stands for a module.
                    self._child = subprocess.Popen(
                        [sys.executable, "-P", "-m", "edgekit.recipe.worker", str(job)],
                        # It ends when this pipe does, so also when this process is killed.
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        pass_fds=(write, self._held.fileno()),
                        env=environment,
                        # What the stage starts is ended with it.
                        start_new_session=True,
                    )
            finally:
                os.close(write)
            child = self._child
            threading.Thread(target=_end_rest, args=(child.pid,), daemon=True).start()
            try:
                for line in events:
                    with contextlib.suppress(ValueError):
                        self._tell(json.loads(line))
            finally:
                code = child.wait()
                assert child.stdin is not None
                child.stdin.close()
            return code

    def _crash(self, code: int) -> EdgekitError:
        log = self.scratch / "log.txt"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        tail = "".join(f"\n  {line}" for line in lines[-_TAIL:])
        cause = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return WorkerCrashed(
            f"its process {cause}{tail}",
            hint="signal 9 is often the system's, for want of memory" if code == -9 else "",
        )


def _end_rest(leader: int) -> None:
    """Ends what a stage's process leaves behind, which may hold its pipe, once that has ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, leader, os.WEXITED | os.WNOWAIT)
        _end_group(leader)


def _end_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _error_of(told: Mapping[str, Any], scratch: Path) -> EdgekitError:
    """The error that a worker told of, as one of ours."""
    message, place = told["message"], told["place"]
    if told["ours"] and isinstance(kind := getattr(errors, told["kind"], None), type):
        known: EdgekitError = kind(message, hint=told["hint"])
        return known
    at = f" ({place})" if place else ""
    if told["module"]:
        package = told["module"].partition(".")[0]
        return MissingDependency(f"{package} is not installed{at}", hint=f"pip install {package}")
    if told["errno"] in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"no space is left{at}: {message}", hint="free some space; finished stages stay"
        )
    return GateFailed(
        f"{told['kind']}: {message}{at}", hint=f"the whole traceback is in {scratch / 'log.txt'}"
    )


def _as_ours(error: Exception, scratch: Path) -> EdgekitError:
    if isinstance(error, EdgekitError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return MissingDependency(f"{error.name} is not installed", hint=install_command("recipes"))
    if isinstance(error, OSError):
        return storage_error(scratch, error)
    return EdgekitError(f"{type(error).__name__}: {error}")
