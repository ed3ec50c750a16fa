"""A worker process: one artifact's sessions, and the loop that runs groups of requests in them.

The server starts it with a socket and shared memory (`edgekit.serve.layout`) as file descriptors.
First comes one JSON message that says what to load, and goes one that says what was found; then
groups and answers. When the socket closes, because the server ended or died, it ends. A crash in a
runtime's own code ends this process and not the server.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadData, EdgekitError, MissingDependency, TrustError
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.runtime.preprocess import AudioPreprocess, ImagePreprocess, TextPreprocess
from edgekit.runtime.session import Array, Session
from edgekit.runtime.wav import BadWav, read_wav
from edgekit.serve.layout import (
    BAD,
    CANCELLED,
    EXPIRED,
    FAILED,
    OK,
    Answer,
    Group,
    Item,
    Layout,
    Slot,
    pack_answers,
    unpack_group,
)
from edgekit.serve.variants import Variants, Wanted, open_variants

__all__ = ["Runner", "main"]

_MESSAGE = 1 << 18
_TOGETHER_NS = 200_000
"""Answers that come within this time go in one message: each costs the server a wake-up."""


class Runner:
    """Runs groups in one artifact's sessions.

    Args:
        variants: the sessions.
        slots: the shared memory, slot by slot.
        feeder: turns raw bytes into the model's inputs.
        send: takes each message to the server.
    """

    def __init__(
        self, variants: Variants, slots: list[Slot], feeder: Feeder | None, send: Any
    ) -> None:
        self._variants = variants
        self._slots = slots
        self._feeder = feeder
        self._send = send
        self._signature = variants.single.signature
        self._sizes = sorted(variants.batches, reverse=True)

    def run(self, group: Group) -> None:
        """Executes a group and sends its answers, the last with the slot's release."""
        slot = self._slots[group.slot]
        job = _Job(group, slot)
        ready = [i for i, item in enumerate(group.items) if self._prepare(job, i, item)]
        for first, rows in _spans(group, ready):
            at = first
            while at < first + rows:
                size = self._size(first + rows - at)
                self._execute(job, at, size, group.wide)
                at += size
                done = job.finished(at)
                if done and time.monotonic_ns() - job.sent_ns > _TOGETHER_NS and job.waiting:
                    self._answer(job, last=False)
        self._answer(job, last=True)

    def _prepare(self, job: _Job, index: int, item: Item) -> bool:
        """Whether a request is to be executed; otherwise its answer is given."""
        if job.slot.given_up[index]:
            job.settle(index, CANCELLED, "")
        elif time.monotonic_ns() >= item.deadline_ns:
            job.settle(index, EXPIRED, "")
        else:
            wrong = self._feed(job.slot, item)
            if wrong is None:
                return True
            job.settle(index, BAD, wrong)
        return False

    def _feed(self, slot: Slot, item: Item) -> str | None:
        """Puts raw bytes in place as tensors; says what is wrong with what is there."""
        if item.raw_size:
            if self._feeder is None:
                return "this model takes tensors only"
            raw = bytes(slot.raw[item.raw_at : item.raw_at + item.raw_size])
            try:
                feeds = self._feeder.feeds(raw)
            except (BadData, BadWav, UnicodeDecodeError, MissingDependency) as error:
                return str(getattr(error, "message", error))
            for spec, rows in zip(self._signature.inputs, slot.inputs, strict=True):
                rows[item.row] = feeds[spec.name]
        for spec, rows in zip(self._signature.inputs, slot.inputs, strict=True):
            value = rows[item.row : item.row + item.rows]
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                return f"input {spec.name!r} holds NaN or infinity"
            if spec.high is not None and (value.min() < 0 or value.max() > spec.high):
                return f"input {spec.name!r} holds values outside 0 to {spec.high}"
        return None

    def _size(self, rows: int) -> int:
        return next((size for size in self._sizes if size <= rows), 1)

    def _execute(self, job: _Job, at: int, size: int, wide: bool) -> None:
        """Runs rows together. If that fails, each half by itself, until the one that fails is
        alone: the others get their answers."""
        session = self._variants.batches.get(size) if size > 1 else self._variants.single
        if size == 1 and wide and self._variants.wide is not None:
            session = self._variants.wide
        start = time.perf_counter_ns()
        try:
            if session is None:
                raise _NoSuchBatch
            outputs = session.run(self._rows(job.slot, at, size))
        except (EdgekitError, _NoSuchBatch) as error:
            if size > 1:
                half = size // 2
                self._execute(job, at, half, wide)
                self._execute(job, at + half, size - half, wide)
                return
            text = str(getattr(error, "message", error))
            job.failed[at] = text
        else:
            for spec, rows in zip(self._signature.outputs, job.slot.outputs, strict=True):
                value = outputs[spec.name]
                rows[at : at + size] = value.reshape((size, *spec.shape))
            job.executions += 1
        job.spent(at, size, time.perf_counter_ns() - start)

    def _rows(self, slot: Slot, at: int, size: int) -> dict[str, Array]:
        feeds = {}
        for spec, rows in zip(self._signature.inputs, slot.inputs, strict=True):
            chosen = rows[at : at + size]
            shape = spec.shape if size == 1 else (size, *spec.shape[1:])
            feeds[spec.name] = chosen.reshape(shape)
        return feeds

    def _answer(self, job: _Job, *, last: bool) -> None:
        message = pack_answers(
            job.group.slot, job.group.number, job.waiting, executions=job.executions, last=last
        )
        job.waiting, job.executions, job.sent_ns = [], 0, time.monotonic_ns()
        self._send(message)


class _NoSuchBatch(Exception):
    """Half of a batch has a size that there is no session for."""


class _Job:
    """A group while it runs.

    Attributes:
        failed: by row, what the runtime said.
        waiting: answers that are not sent yet.
        executions: calls of the runtime since the last message.
        sent_ns: when that was.
    """

    def __init__(self, group: Group, slot: Slot) -> None:
        self.group = group
        self.slot = slot
        self.failed: dict[int, str] = {}
        self.waiting: list[Answer] = []
        self.executions = 0
        self.sent_ns = time.monotonic_ns()
        self._us: dict[int, int] = {}
        self._settled: set[int] = set()

    def settle(self, index: int, status: int, text: str) -> None:
        """Gives the answer of a request that is not executed."""
        self._settled.add(index)
        self.waiting.append(Answer(index, status, 0, text))

    def spent(self, at: int, size: int, ns: int) -> None:
        """Notes how long rows took that were run together."""
        for row in range(at, at + size):
            self._us[row] = ns // 1000

    def finished(self, upto: int) -> bool:
        """Gives the answers of requests whose rows all lie below a row; whether there are any."""
        any_new = False
        for index, item in enumerate(self.group.items):
            if index in self._settled or item.row + item.rows > upto:
                continue
            rows = range(item.row, item.row + item.rows)
            texts = [self.failed[row] for row in rows if row in self.failed]
            took = max(self._us.get(row, 0) for row in rows)
            self._settled.add(index)
            status, text = (FAILED, texts[0]) if texts else (OK, "")
            self.waiting.append(Answer(index, status, took, text))
            any_new = True
        return any_new


def _spans(group: Group, ready: list[int]) -> list[tuple[int, int]]:
    """First row and number of rows of what lies side by side."""
    spans: list[tuple[int, int]] = []
    for index in ready:
        item = group.items[index]
        if spans and sum(spans[-1]) == item.row:
            spans[-1] = (spans[-1][0], spans[-1][1] + item.rows)
        else:
            spans.append((item.row, item.rows))
    return spans


class Feeder:
    """From a picture, a text or a recording to an artifact's inputs, by the bundle's own rule."""

    def __init__(self, bundle: Bundle, artifact: BundleArtifact) -> None:
        self._rule = bundle.preprocess()
        self._artifact = artifact
        if isinstance(self._rule, ImagePreprocess):
            self._rule = self._rule.for_io(artifact.io)

    def feeds(self, raw: bytes) -> dict[str, Array]:
        """The inputs by name.

        Raises:
            BadData, BadWav, UnicodeDecodeError: the bytes are not what the model takes.
            MissingDependency: what decodes them is not installed.
        """
        rule, inputs = self._rule, self._artifact.signature.inputs
        if isinstance(rule, TextPreprocess):
            return dict(rule.apply(raw.decode("utf-8")))
        if isinstance(rule, AudioPreprocess):
            sound = read_wav(raw)
            return {inputs[0].name: rule.apply(sound.samples, sound.rate)}
        if isinstance(rule, ImagePreprocess):
            picture = rule.decode(raw)
            pixels = inputs[0].dtype == "uint8"
            return {inputs[0].name: rule.pixels(picture) if pixels else rule.apply(picture)}
        raise BadData("the bundle does not say how its inputs are made; send tensors")


def _load(order: dict[str, Any]) -> tuple[Bundle, BundleArtifact, Variants]:
    bundle = Bundle.open(Path(order["bundle"]))
    try:
        if bundle.digest != order["digest"]:
            raise TrustError("the bundle changed since the server read it")
        artifact = bundle.artifact(order["artifact"])
        known = order["known"]
        wanted = Wanted(
            threads=order["threads"],
            wide=order["wide"],
            largest=order["largest"],
            known=None if known is None else (tuple(known[0]), bool(known[1])),
            forced=order["forced"],
        )
        return bundle, artifact, open_variants(bundle, artifact, wanted)
    except BaseException:
        bundle.close()
        raise


def main(argv: list[str]) -> int:
    """The process: ``worker.py SOCKET_FD MEMORY_FD``."""
    # The server tells its workers to end by closing the socket, also after Ctrl-C.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    link = socket.socket(fileno=int(argv[0]))
    order = json.loads(link.recv(_MESSAGE))
    try:
        bundle, artifact, variants = _load(order)
    except EdgekitError as error:
        kind = type(error).__name__
        link.send(json.dumps({"ok": False, "kind": kind, "reason": error.message}).encode())
        return 1
    layout = Layout(artifact.signature, order["rows"], order["raw_bytes"], order["slots"])
    with contextlib.closing(bundle):
        memory = mmap.mmap(int(argv[1]), layout.size)
        slots = [layout.slot(memory, i) for i in range(layout.slots)]
        feeder = Feeder(bundle, artifact) if bundle.preprocess() is not None else None
        runner = Runner(variants, slots, feeder, link.send)
        found = {
            "ok": True,
            "batches": sorted(variants.batches),
            "wide": variants.wide is not None,
            "row_us": variants.row_us,
            "runtime": variants.single.runtime_version,
            "notes": variants.notes,
        }
        link.send(json.dumps(found).encode())
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            while message := link.recv(_MESSAGE):
                runner.run(unpack_group(message))
        _close(variants)
    return 0


def _close(variants: Variants) -> None:
    sessions: list[Session] = [variants.single, *variants.batches.values()]
    sessions += [variants.wide] if variants.wide is not None else []
    for session in sessions:
        session.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
