"""One request on its way through the engine, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.serve.refusal import Refusal

__all__ = ["Outcome", "Work"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Outcome:
    """A request that was executed.

    Attributes:
        outputs: in the signature's order, ``[rows, ...]``, the caller's own.
        queue_us: from its arrival until it was handed to a worker, in microseconds.
        exec_us: what the runtime took, for its whole batch, in microseconds.
    """

    outputs: tuple[Array, ...]
    queue_us: int
    exec_us: int


class Work:
    """A request: tensors or raw bytes, until when an answer is wanted, and its future answer.

    Args:
        inputs: in the signature's order, ``[rows, ...]``; empty for raw bytes.
        rows: samples.
        deadline_ns: by the monotonic clock.
        raw: a picture, a text or a recording.
    """

    __slots__ = (
        "arrived_ns", "deadline_ns", "future", "inputs", "place", "raw", "raw_size", "rows",
        "sent_ns",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Sequence[Array],
        rows: int,
        deadline_ns: int,
        arrived_ns: int,
        raw: bytes = b"",
    ) -> None:
        self.inputs = inputs
        self.rows = rows
        self.deadline_ns = deadline_ns
        self.arrived_ns = arrived_ns
        self.raw = raw
        self.raw_size = len(raw)
        self.sent_ns = 0
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.place: tuple[Array, int] | None = None

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done()

    def refuse(self, status: int, message: str) -> None:
        """Ends it with a status, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(Refusal(status, message))
        self.give_up()

    def give_up(self) -> None:
        """Tells a worker that has not begun with it that it need not."""
        if self.place is not None:
            flags, index = self.place
            flags[index] = 1
