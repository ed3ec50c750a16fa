"""What the server and a worker process share: memory for tensors, and short messages about it.

A worker has a few slots. A slot holds one group of requests: the rows of every input one after the
other, so that several rows are a batch in place, the rows of every output, raw bytes that are yet
to be preprocessed, and one byte per request that says it has been given up.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from edgekit.signature import Signature, TensorSpec

__all__ = [
    "BAD",
    "CANCELLED",
    "EXPIRED",
    "FAILED",
    "OK",
    "Answer",
    "Group",
    "Item",
    "Layout",
    "Slot",
    "batched",
    "pack_answers",
    "pack_group",
    "row_signature",
    "unpack_answers",
    "unpack_group",
]

Array = np.ndarray[Any, Any]

OK, BAD, FAILED, EXPIRED, CANCELLED = range(5)
"""What became of one request of a group: ``BAD`` for an input that the model does not take,
``FAILED`` where the runtime gave up; the last two were not executed."""

MAX_ITEMS: Final = 256
_ALIGN = 64
_TEXT = 300

_GROUP = struct.Struct("<BBHI")
_ITEM = struct.Struct("<HHIIq")
_ANSWERS = struct.Struct("<BBHII")
_ANSWER = struct.Struct("<HBxIH")


class Item(NamedTuple):
    """One request of a group.

    Attributes:
        row, rows: its first row and how many it has.
        raw_at, raw_size: where its raw bytes are; size 0 for tensors, which are in place.
        deadline_ns: by the monotonic clock, which all processes of a machine share.
    """

    row: int
    rows: int
    raw_at: int
    raw_size: int
    deadline_ns: int


class Group(NamedTuple):
    """Requests that a worker is to execute, in order.

    Attributes:
        slot: where their tensors are.
        wide: whether the session with all threads runs them.
        number: counts groups, so that an answer is known to be of this one.
        items: at most `MAX_ITEMS`.
    """

    slot: int
    wide: bool
    number: int
    items: tuple[Item, ...]


class Answer(NamedTuple):
    """What became of one request.

    Attributes:
        item: its place in the group.
        status: `OK` and so on.
        exec_us: how long it was executed, in microseconds.
        text: what was wrong.
    """

    item: int
    status: int
    exec_us: int
    text: str


def pack_group(group: Group) -> bytes:
    """The message for a worker."""
    head = _GROUP.pack(group.slot, group.wide, len(group.items), group.number)
    return head + b"".join(_ITEM.pack(*item) for item in group.items)


def unpack_group(message: bytes) -> Group:
    """The inverse of `pack_group`."""
    slot, wide, n, number = _GROUP.unpack_from(message)
    items = (_ITEM.unpack_from(message, _GROUP.size + i * _ITEM.size) for i in range(n))
    return Group(slot, bool(wide), number, tuple(Item(*item) for item in items))


def pack_answers(
    slot: int, number: int, answers: Sequence[Answer], *, executions: int, last: bool
) -> bytes:
    """A worker's message: some of a group's answers; ``last`` frees its slot."""
    parts = [_ANSWERS.pack(slot, last, len(answers), number, executions)]
    for item, status, exec_us, text in answers:
        said = text.encode()[:_TEXT]
        parts += [_ANSWER.pack(item, status, min(exec_us, 2**32 - 1), len(said)), said]
    return b"".join(parts)


def unpack_answers(message: bytes) -> tuple[int, int, list[Answer], int, bool]:
    """The inverse: slot, number, answers, executions, last."""
    slot, last, n, number, executions = _ANSWERS.unpack_from(message)
    at, answers = _ANSWERS.size, []
    for _ in range(n):
        item, status, exec_us, size = _ANSWER.unpack_from(message, at)
        at += _ANSWER.size
        text = message[at : at + size].decode("utf-8", "replace") if size else ""
        at += size
        answers.append(Answer(item, status, exec_us, text))
    return slot, number, answers, executions, bool(last)


def row_signature(signature: Signature) -> bool:
    """Whether every input and output is one sample, its first dimension 1: then requests of
    several samples, and batches of several requests, have a meaning."""
    specs = (*signature.inputs, *signature.outputs)
    return all(spec.shape[:1] == (1,) for spec in specs)


def batched(signature: Signature, rows: int) -> Signature:
    """The signature with ``rows`` samples at once."""

    def of(spec: TensorSpec) -> TensorSpec:
        return TensorSpec(
            spec.name, (rows, *spec.shape[1:]), spec.dtype, spec.layout, spec.labels, spec.high
        )

    return Signature(tuple(map(of, signature.inputs)), tuple(map(of, signature.outputs)))


@dataclass(frozen=True)
class Slot:
    """One slot's memory, as arrays over it.

    Attributes:
        given_up: uint8 ``[MAX_ITEMS]``, 1 where nobody waits for that request any more.
        inputs, outputs: in the signature's order, ``[rows, 1, ...]`` with the model's own shape
            behind the rows.
        raw: for files and texts.
    """

    given_up: Array
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    raw: memoryview


@dataclass(frozen=True)
class Layout:
    """Where in the shared memory everything is.

    Attributes:
        signature: the artifact's.
        rows: how many a slot holds.
        raw_bytes: how many raw bytes a slot holds.
        slots: how many there are.
    """

    signature: Signature
    rows: int
    raw_bytes: int
    slots: int

    @property
    def size(self) -> int:
        """Bytes in all; pages that are not written to take no memory."""
        return self.slots * self._slot_size()

    def slot(self, memory: mmap.mmap, index: int) -> Slot:
        """Arrays over one slot."""
        base = index * self._slot_size()
        at = base + MAX_ITEMS
        tensors: list[tuple[Array, ...]] = []
        for specs in (self.signature.inputs, self.signature.outputs):
            arrays = []
            for spec in specs:
                shape = (self.rows, *spec.shape)
                count = math.prod(shape)
                flat = np.frombuffer(memory, np.dtype(spec.dtype), count, at)
                arrays.append(flat.reshape(shape))
                at += _aligned(flat.nbytes)
            tensors.append(tuple(arrays))
        given_up = np.frombuffer(memory, np.uint8, MAX_ITEMS, base)
        raw = memoryview(memory)[at : at + self.raw_bytes]
        return Slot(given_up, tensors[0], tensors[1], raw)

    def _slot_size(self) -> int:
        sizes = [
            _aligned(self.rows * math.prod(spec.shape) * np.dtype(spec.dtype).itemsize)
            for spec in (*self.signature.inputs, *self.signature.outputs)
        ]
        whole = MAX_ITEMS + sum(sizes) + self.raw_bytes
        return -(-whole // mmap.PAGESIZE) * mmap.PAGESIZE


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
