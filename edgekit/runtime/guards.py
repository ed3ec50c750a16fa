"""What keeps a client from doing harm: a circuit breaker, a retry budget, a memory of latencies.

All three are safe to use from several threads and take the clock as an argument.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Breaker", "Latencies", "RetryBudget"]

Clock = Callable[[], float]


class RetryBudget:
    """Retries as a share of requests, by a token bucket, as in Finagle and gRPC.

    Every request puts in ``ratio`` tokens, every retry takes one out. The bucket starts empty, so
    at no time have there been more retries than ``ratio`` times the requests: a server that fails
    everybody is not also asked twice by everybody.

    Args:
        ratio: retries per request, 0 to 1.
        most: tokens that a quiet time may save up.
    """

    def __init__(self, ratio: float = 0.1, most: float = 10.0) -> None:
        self._ratio, self._most = ratio, most
        self._tokens = 0.0
        self._lock = threading.Lock()

    def deposit(self) -> None:
        """Counts one request."""
        with self._lock:
            self._tokens = min(self._most, self._tokens + self._ratio)

    def withdraw(self) -> bool:
        """Takes one retry; False where there is none left."""
        with self._lock:
            # Ten tenths are a little less than one.
            if self._tokens < 1 - 1e-9:
                return False
            self._tokens = max(0.0, self._tokens - 1)
            return True


class Breaker:
    """A circuit breaker: closed, open, half-open (Nygard, "Release It!").

    It opens when at least ``least`` of the last ``window`` calls are known and ``share`` of them or
    more failed. ``open_s`` later one call is let through as a probe: if it succeeds the breaker
    closes, else it stays open twice as long as before, up to ``longest_s``.

    Args:
        window: calls that are looked back on.
        least: fewest calls that tell anything.
        share: of failures, at which it opens.
        age_s: calls older than this are forgotten.
        open_s, longest_s: seconds until the first probe, and at most.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        window: int = 20,
        least: int = 5,
        share: float = 0.5,
        age_s: float = 60.0,
        open_s: float = 5.0,
        longest_s: float = 60.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._least, self._share, self._age = least, share, age_s
        self._first_wait, self._longest = open_s, longest_s
        self._wait = open_s
        self._clock = clock
        self._calls: deque[tuple[float, bool]] = deque(maxlen=window)
        self._reopen: float | None = None  # when open: the time of the next probe
        self._probe: float | None = None  # when a probe is under way: since when
        self._held = -math.inf
        self._generation = 0
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        with self._lock:
            if self._reopen is None:
                return "closed"
            return "half-open" if self._clock() >= self._reopen else "open"

    @property
    def wait_s(self) -> float:
        """Seconds until the next call may be let through; 0 where one may now."""
        with self._lock:
            return self._waits(self._clock())

    def _waits(self, now: float) -> float:
        wait = max(0.0, self._held - now)
        if self._reopen is None:
            return wait
        if self._probe is not None:
            # A probe that never came back must not keep everybody out for good.
            return max(wait, self._probe + self._longest - now, 0.0)
        return max(wait, self._reopen - now)

    def admit(self) -> int | None:
        """Lets a call through: a ticket for `settle`; None where it is to be left alone."""
        with self._lock:
            now = self._clock()
            if self._waits(now) > 0:
                return None
            if self._reopen is not None:
                self._probe = now
                self._generation += 1
            return self._generation

    def settle(self, ticket: int, ok: bool | None) -> None:
        """How a call ended; None where that says nothing about the other side.

        A call of before the breaker last changed its mind does not count any more.
        """
        with self._lock:
            if ticket != self._generation:
                return
            now = self._clock()
            if self._reopen is not None:
                self._settle_probe(now, ok)
            elif ok is not None:
                self._calls.append((now, ok))
                self._judge(now)

    def _settle_probe(self, now: float, ok: bool | None) -> None:
        self._probe = None
        if ok is None:
            return
        self._generation += 1
        if ok:
            self._reopen, self._wait = None, self._first_wait
            self._calls.clear()
        else:
            self._wait = min(self._longest, 2 * self._wait)
            self._reopen = now + self._wait

    def _judge(self, now: float) -> None:
        recent = [ok for when, ok in self._calls if now - when <= self._age]
        failures = recent.count(False)
        if len(recent) >= self._least and failures >= self._share * len(recent):
            self._reopen = now + self._wait
            self._generation += 1
            self._calls.clear()

    def hold(self, seconds: float) -> None:
        """Lets nothing through for so long: the other side asked for it (``Retry-After``)."""
        with self._lock:
            self._held = max(self._held, self._clock() + seconds)

    @property
    def held(self) -> bool:
        """Whether `hold` is in force."""
        with self._lock:
            return self._held > self._clock()


class Latencies:
    """The recent latencies of one side, in seconds.

    Those older than ``age_s`` are forgotten, so that a side which was slow once is tried again.

    Args:
        window: how many are kept.
        least: fewest that a 95th percentile is given of.
        age_s: how long they count.
        clock: monotonic seconds.
    """

    def __init__(
        self, window: int = 64, least: int = 10, age_s: float = 60.0, clock: Clock = time.monotonic
    ) -> None:
        self._kept: deque[tuple[float, float]] = deque(maxlen=window)
        self._least, self._age, self._clock = least, age_s, clock
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """One call that took so long, or was given up after so long."""
        with self._lock:
            self._kept.append((self._clock(), seconds))

    @property
    def median(self) -> float | None:
        """Half of the recent calls took this or less; None where nothing is known."""
        return self._rank(0.5, 1)

    @property
    def p95(self) -> float | None:
        """The 95th percentile (nearest rank) of the recent calls; None of too few."""
        return self._rank(0.95, self._least)

    def _rank(self, q: float, least: int) -> float | None:
        with self._lock:
            now = self._clock()
            recent = sorted(s for when, s in self._kept if now - when <= self._age)
        if len(recent) < least:
            return None
        return recent[max(0, math.ceil(q * len(recent) - 1e-9) - 1)]
