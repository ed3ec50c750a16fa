"""The worker on a device: shipped as one file, asked through a runner."""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.artifact import files_of
from edgekit.bench.archive import worker_archive
from edgekit.bench.asking import Files, part, read_answer
from edgekit.bench.runners import Runner, parse
from edgekit.errors import MissingDependency
from edgekit.scratch import scratch

__all__ = ["Pushed", "RemoteWorker", "python_of"]

_WORKER = "worker.pyz"
_REQUEST = "request.json"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_NO_PROGRAM = (126, 127)  # what a shell gives for a program that is not there, or none
_FACTS_SECONDS = 120.0


class Pushed:
    """Files on a device, each pushed once: what did not change lies there already."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._names: dict[tuple[object, ...], str] = {}

    def place(self, files: Sequence[Path]) -> str:
        """Pushes files that belong beside each other; the name of the first, in the workspace.

        A folder among them is pushed with all that is in it.
        """
        found = [(top, part) for top in files for part in files_of(top)]
        key = tuple(_version(part) for _, part in found)
        if key not in self._names:
            text = json.dumps([str(entry) for entry in key])
            folder = f"files-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}"
            for top, part in found:
                name = part.relative_to(top.parent).as_posix()
                self._runner.push(part, f"{folder}/{name}")
            self._names[key] = f"{folder}/{files[0].name}"
        return self._names[key]


def _version(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path.absolute()), stat.st_size, stat.st_mtime_ns


def python_of(url: str) -> str:
    """The Python that runs the worker on a device: the URL's, else this one or ``python3``."""
    parsed = parse(url)
    here = parsed.scheme in ("local", "fake")
    return parsed.option("python") or (sys.executable if here else "python3")


class RemoteWorker:
    """A `edgekit.bench.asking.Worker` on a device.

    Args:
        runner: an open runner; it stays the caller's.
        python: Python 3.11 or later on the device, with numpy and the runtime's wheel.
    """

    def __init__(self, runner: Runner, python: str = "python3") -> None:
        self.where = runner.url
        self._runner, self._python = runner, python
        self._pushed = Pushed(runner)
        self._ready = False

    def ask(
        self,
        question: Mapping[str, Any],
        files: Files,
        *,
        what: str,
        timeout: float,
        threads: int = 1,
    ) -> dict[str, Any]:
        """See `edgekit.bench.asking.Worker.ask`.

        Raises:
            MissingDependency: there is no such Python on the device.
            DeviceUnreachable: the link broke; nothing of the answer is given.
        """
        self._ship()
        nonce = secrets.token_hex(16)
        paths = {field: self._pushed.place(found) for field, found in files.items()}
        asked = json.dumps({**question, **paths, "nonce": nonce}, allow_nan=False)
        # The request comes in with the call: one connection for each, and none is ever stale.
        script = 'cat >"$1" || exit 67; shift; exec "$@" </dev/null'
        done = self._runner.run(
            ["sh", "-c", script, "sh", _REQUEST, self._python, _WORKER, _REQUEST],
            timeout=timeout,
            env=dict.fromkeys(_THREADS, str(threads)),
            stdin=asked.encode(),
        )
        what = f"{what} ({self.where})"
        if done.code in _NO_PROGRAM:
            raise MissingDependency(
                f"{what}: there is no program {self._python!r} on the device: {done.death()}",
                hint="name its Python in the URL: ?python=/path/to/python3",
            )
        return read_answer(done, nonce, what)

    def facts(self) -> dict[str, Any]:
        """What the device is, by the worker; its shell tells of what the worker does not know."""
        answer = self.ask({"op": "facts"}, {}, what="facts", timeout=_FACTS_SECONDS)
        told = part(answer, "facts", self.where)
        if told.get("board") is None:
            told["board"] = self._runner.facts().get("board")
        return told

    def _ship(self) -> None:
        if self._ready:
            return
        with scratch("worker") as folder:
            self._runner.push(worker_archive(folder / _WORKER), _WORKER)
        self._ready = True
