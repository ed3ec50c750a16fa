"""How many requests are let in, and how many go to a worker at once.

Pure rules, without clocks or sockets. The group's size follows the load by itself: while every
worker is busy requests gather in the queue, and a worker that becomes free takes its share of them;
nobody waits for a batch to fill while a worker is idle. An upper bound is found by additive
increase and multiplicative decrease under the latency objective (Clipper: A Low-Latency Online
Prediction Serving System, 2017, arXiv 1612.03079).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Admission", "GroupLimit", "ServiceTime"]

_BACK_OFF = 0.9
_SMOOTHING = 0.1
_SERIAL_US = 2_000
_LATE = 0.85
_SHARE, _LEAST_SHARE = 0.8, 0.1


class ServiceTime:
    """How long a worker takes per row, smoothed; begins with what the warm-up measured."""

    def __init__(self, row_us: float) -> None:
        self.row_us = row_us

    def observe(self, us: float, rows: int) -> None:
        """One group of ``rows`` took its worker ``us`` microseconds."""
        self.row_us += _SMOOTHING * (us / rows - self.row_us)


class GroupLimit:
    """The most rows that go to a worker at once.

    Args:
        objective_ms: what a request may take from its arrival to its answer.
        largest: never more rows than this.
        best_batch: the largest batch that the artifact runs at once; 1 if it runs rows one by one.
            Then a group only saves messages, and no more go together than take 2 ms.
    """

    def __init__(self, objective_ms: float, largest: int, best_batch: int) -> None:
        # Who arrives just after a group began waits for it, and then is in one itself.
        self._budget_us = objective_ms * 1000 / 2
        self._largest = largest
        self._best_batch = best_batch
        self._limit = float(min(largest, max(best_batch, 1)))

    @property
    def limit(self) -> int:
        """The bound that the objective sets now."""
        return max(1, int(self._limit))

    def rows(self, row_us: float) -> int:
        """The bound for the next group, of rows that take ``row_us`` each."""
        worthwhile = max(self._best_batch, int(_SERIAL_US / max(row_us, 1.0)), 1)
        return min(self.limit, worthwhile, self._largest)

    def observe(self, us: float, rows: int) -> None:
        """A group took its worker this long."""
        if us > self._budget_us:
            self._limit = max(1.0, min(self._limit, float(rows)) * _BACK_OFF)
        elif rows >= self.limit:
            self._limit = min(float(self._largest), self._limit + 1)


@dataclass
class Admission:
    """A bounded queue with a high and a low mark.

    At the high mark requests are refused, and go on to be until the queue is below the low mark:
    a server at its limit otherwise changes its mind with every request. Where the marks follow the
    rate of answers, what answers really took corrects them, as groups are bounded: a flood takes
    part of the processors from the workers, and a request's own time comes on top of the queue's.

    Attributes:
        objective_ms: the queue holds no more than can be answered in a share of this time.
        fixed: the high mark, in rows, where it is given; else it follows the rate of answers.
        workers: alive.
        row_us: `ServiceTime.row_us`.
        shedding: whether requests are refused now.
        share: of the objective.
    """

    objective_ms: float
    fixed: int | None = None
    workers: int = 1
    row_us: float = 1000.0
    shedding: bool = False
    share: float = _SHARE

    def observe(self, us: float) -> None:
        """A request was answered so many microseconds after it came."""
        if us > _LATE * self.objective_ms * 1000:
            self.share = max(_LEAST_SHARE, self.share * 0.98)
        else:
            self.share = min(_SHARE, self.share + 0.002)

    @property
    def high(self) -> int:
        """Rows at which refusing begins."""
        if self.fixed is not None:
            return self.fixed
        rate = self.workers / max(self.row_us, 1.0)
        return max(4 * self.workers, min(4096, int(self.share * self.objective_ms * 1000 * rate)))

    @property
    def low(self) -> int:
        """Rows below which it ends."""
        return max(1, self.high * 3 // 4)

    def admits(self, queued: int, rows: int) -> bool:
        """Whether a request of ``rows`` is let in where ``queued`` wait."""
        if self.shedding and queued < self.low:
            self.shedding = False
        elif not self.shedding and queued and queued + rows > self.high:
            self.shedding = True
        return not self.shedding

    def retry_after_s(self, queued: int) -> int:
        """Whole seconds until the queue will have passed its low mark, at least 1."""
        rate = self.workers / max(self.row_us, 1.0) * 1e6
        return max(1, math.ceil((queued - self.low) / rate))
