"""Asks a worker: one request, one process, one answer that carries the request's nonce.

`LocalWorker` runs it on this machine. A worker elsewhere is another class with the same three
members; what it has to bring to the device is named with each question.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import edgekit
from edgekit import cores, errors
from edgekit.bench.facts import host_facts
from edgekit.bench.process import Finished, run_bounded
from edgekit.errors import EdgekitError, WorkerCrashed
from edgekit.scratch import scratch

__all__ = ["COMMAND", "Files", "LocalWorker", "Worker", "environment", "part", "read_answer"]

COMMAND = (sys.executable, "-m", "edgekit.bench.worker")

Files = Mapping[str, Sequence[Path]]
"""Of a question's fields that are paths: the file that each names, and the files beside it."""


class Worker(Protocol):
    """Where artifacts are measured.

    Attributes:
        where: for the document, ``local`` or a device's URL.
    """

    where: str

    def ask(
        self,
        question: Mapping[str, Any],
        files: Files,
        *,
        what: str,
        timeout: float,
        threads: int = 1,
    ) -> dict[str, Any]:
        """One question (`edgekit.bench.worker`), in a process of its own.

        Args:
            question: without its nonce and without its paths.
            files: its paths. A file keeps its name, and files of one field stay beside each other.
            what: names it in errors.
            timeout: seconds until it is stopped.
            threads: of the runtime; numpy's own are bounded by it.

        Raises:
            WorkerCrashed: the worker died, did not finish, or did not answer this question.
            EdgekitError: what the worker found wrong, as the same error.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What machine it is (`edgekit.bench._machine.machine_facts`)."""
        ...


class LocalWorker:
    """A worker on this machine.

    Args:
        command: the program and its arguments; the path of the request is added.
    """

    where = "local"

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = tuple(command)

    def ask(
        self,
        question: Mapping[str, Any],
        files: Files,
        *,
        what: str,
        timeout: float,
        threads: int = 1,
    ) -> dict[str, Any]:
        """See `Worker.ask`; the files are read where they are."""
        nonce = secrets.token_hex(16)
        paths = {field: str(found[0].absolute()) for field, found in files.items()}
        with scratch("bench") as folder:
            path = folder / "request.json"
            asked = {**question, **paths, "nonce": nonce, "asker": os.getpid()}
            path.write_text(json.dumps(asked, allow_nan=False), encoding="utf-8")
            argv = [*self._command, str(path)]
            done = run_bounded(argv, timeout=timeout, what=what, env=environment(threads))
        return read_answer(done, nonce, what)

    def facts(self) -> dict[str, Any]:
        """This machine's."""
        return host_facts()


def read_answer(done: Finished, nonce: str, what: str) -> dict[str, Any]:
    """What a worker wrote, if it is the answer to the question with this nonce.

    Raises:
        WorkerCrashed: it died, wrote something else, or answered another question.
        EdgekitError: what the worker found wrong, as the same error.
    """
    if done.code != 0:
        killed = done.code == -signal.SIGKILL
        raise WorkerCrashed(
            f"{what}: the worker {done.death()}",
            hint="the system kills so where memory runs out; is there enough for it?"
            if killed
            else "the file may be damaged, or this version of the runtime may have a fault",
        )
    try:
        answer = json.loads(done.stdout)
    except (ValueError, RecursionError) as error:
        raise WorkerCrashed(f"{what}: the worker's answer is not JSON") from error
    if not isinstance(answer, dict) or answer.get("nonce") != nonce:
        raise WorkerCrashed(f"{what}: the worker's answer does not carry its request's nonce")
    if "error" in answer:
        raise _as_error(answer["error"], what)
    return answer


def part(answer: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    """What an answer holds under a key.

    Raises:
        WorkerCrashed: nothing, or another thing than it should.
    """
    found = answer.get(key)
    if not isinstance(found, dict):
        raise WorkerCrashed(f"{what}: the worker's {key} is {repr(found)[:80]}")
    return found


def _as_error(error: Mapping[str, Any], what: str) -> EdgekitError:
    kind = getattr(errors, str(error.get("kind")), None)
    message = f"{what}: {error.get('message')}"
    if isinstance(kind, type) and issubclass(kind, EdgekitError):
        return kind(message, hint=str(error.get("hint") or ""))
    return WorkerCrashed(message)


def environment(threads: int) -> dict[str, str]:
    """This process's environment, with edgekit importable and numpy's own threads bounded."""
    env = dict(os.environ)
    cores.as_it_comes(env)
    root = str(Path(edgekit.__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join(p for p in (root, env.get("PYTHONPATH")) if p)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env[name] = str(threads)
    return env
