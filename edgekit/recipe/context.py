"""What a stage is handed as ``run``: progress, curves, gates and its folders."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from edgekit.errors import BadData

__all__ = ["Run"]

_PAUSE_S = 0.1


class Run:
    """A stage's link to the run that it is part of; a `Watch`, and an export's listener.

    Attributes:
        folder: scratch that is still there when the stage is begun again after it was killed, for
            checkpoints. It is emptied when the stage has ended.
        out: an empty folder for the stage's files, which are kept with its result.
        threads: CPU threads that the stage has.
    """

    def __init__(self, folder: Path, out: Path, threads: int, sink: TextIO | None = None) -> None:
        self.folder, self.out, self.threads = folder, out, threads
        self.metrics: dict[str, list[list[float]]] = {}
        self.gates: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._sink = sink
        self._told = 0.0
        self._lock = threading.Lock()

    def step(self, done: int, total: int, **figures: float) -> None:
        """Shows that ``done`` of ``total`` steps are made, with figures beside (``loss=0.31``)."""
        now = time.monotonic()
        if done < total and now - self._told < _PAUSE_S:
            return
        self._told = now
        shown = {k: float(v) for k, v in figures.items() if math.isfinite(v)}
        self._tell({"event": "step", "done": int(done), "total": int(total), "figures": shown})

    def metric(self, name: str, value: float, step: int) -> None:
        """Keeps one point of a curve: it is in run.json, the report and the tracker.

        Raises:
            BadData: the value is not finite.
        """
        if not math.isfinite(value):
            raise BadData(f"metric {name!r} is {value} at step {step}")
        self.metrics.setdefault(name, []).append([int(step), float(value)])
        self._tell({"event": "metric", "name": name, "value": float(value), "step": int(step)})

    def note(self, message: str) -> None:
        """Shows one line, and keeps it."""
        message = str(message)
        self.notes.append(message)
        self._tell({"event": "note", "text": message})

    def gate(self, name: str, passed: bool | None, text: str = "") -> None:
        """Keeps the answer of a check. One that failed makes the run's exit code 1; the stages
        that follow still run, so that the report tells why.

        Args:
            name: of the check.
            passed: None where it could not be judged here.
            text: the limit and the figure, for people.
        """
        judged = None if passed is None else bool(passed)  # numpy has booleans of its own
        self.gates.append({"name": str(name), "passed": judged, "text": str(text)})

    @contextlib.contextmanager
    def progress(
        self, description: str, total: int | None = None
    ) -> Iterator[Callable[[int], None]]:
        """See `edgekit.export.Listener`."""
        done = 0
        self._tell({"event": "doing", "text": description})

        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            if total:
                self.step(done, total)

        yield advance

    def _tell(self, event: dict[str, Any]) -> None:
        if self._sink is None:
            return
        # An export's targets tell their progress from threads.
        with self._lock:
            self._sink.write(json.dumps(event) + "\n")
            self._sink.flush()
