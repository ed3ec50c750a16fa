"""When a device speaks to its server, and what it makes of the answer. No I/O, no clock.

The answers are the OTLP specification's (1.x, "OTLP/HTTP Response"): 429, 502, 503, 504 and no
answer at all are tried again, by ``Retry-After`` or by exponential back-off with jitter; everything
else is final. The simulation of a fleet runs this code.
"""

from __future__ import annotations

import email.utils
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from edgekit.errors import BadData, UsageError
from edgekit.runtime import otlp

__all__ = ["Answer", "Conditions", "Pace", "Schedule", "Verdict", "judge", "retry_after"]

_METERED: Final = ("all", "events", "none")
_RETRYABLE: Final = (429, 502, 503, 504)
_SPLITTABLE: Final = (400, 413)
_AUTH: Final = (401, 403)

Fate = Literal["delivered", "retry", "split", "refused", "hold"]


@dataclass(frozen=True)
class Answer:
    """What a server said to a request.

    Attributes:
        status: HTTP's; None where there was no answer.
        retry_after: that header, or an empty text.
        content_type: that header, or an empty text.
        body: at most 64 KiB of it.
    """

    status: int | None
    retry_after: str = ""
    content_type: str = ""
    body: bytes = b""


@dataclass(frozen=True)
class Verdict:
    """What is to become of a batch.

    Attributes:
        fate: ``delivered``; ``retry`` the same; ``split``, as something in it is poison;
            ``refused``, for good; ``hold`` until the credentials change.
        rejected: how many points or log records of a delivered one the server did not take.
        wait_s: what the server asked for, in seconds.
        message: of the server, of what it did take.
    """

    fate: Fate
    rejected: int = 0
    wait_s: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Conditions:
    """How the device is, as far as it is known.

    Attributes:
        online: whether there is a network.
        metered: whether it costs money by the byte.
        battery: charge from 0 to 1; None: none, or not known.
        charging: whether it is being charged.
    """

    online: bool | None = None
    metered: bool | None = None
    battery: float | None = None
    charging: bool | None = None


@dataclass(frozen=True)
class Pace:
    """How often a device speaks.

    Attributes:
        upload_s: seconds between uploads that find nothing amiss, jittered by half either way.
        between_s: seconds between the batches of a backlog, jittered likewise.
        first_s, factor, longest_s: the back-off: the range from which the wait is drawn at random
            starts at ``first_s``, grows by ``factor``, and ends at ``longest_s``.
        longest_retry_after_s: the most that a server may ask for.
        metered: what goes out on a metered network: ``all``, ``events`` or ``none``.
        least_battery: below this charge nothing goes out, unless the device is being charged.
    """

    upload_s: float = 900.0
    between_s: float = 5.0
    first_s: float = 5.0
    factor: float = 1.5
    longest_s: float = 3600.0
    longest_retry_after_s: float = 86400.0
    metered: Literal["all", "events", "none"] = "events"
    least_battery: float = 0.2

    def __post_init__(self) -> None:
        times = (self.upload_s, self.between_s, self.first_s, self.longest_s)
        if not all(math.isfinite(t) and t > 0 for t in times) or self.first_s > self.longest_s:
            raise UsageError("the times of a pace are positive, and first_s is not over longest_s")
        if not 1 <= self.factor <= 10:
            raise UsageError(f"factor is {self.factor}; 1 to 10 is wanted")
        if self.metered not in _METERED:
            raise UsageError(f"metered is {self.metered!r}; allowed: {', '.join(_METERED)}")
        if not (0 <= self.least_battery <= 1 and self.longest_retry_after_s > 0):
            raise UsageError("least_battery is from 0 to 1, and longest_retry_after_s more than 0")


class Schedule:
    """The waits of one device.

    Args:
        pace: how often it speaks.
        random: where the jitter comes from; None: the system's own source, so that no two devices
            of a fleet that start together go on together.
    """

    def __init__(self, pace: Pace | None = None, random: random.Random | None = None) -> None:
        self.pace = pace or Pace()
        self._random = random or _system_random()
        self._failures = 0

    def first(self) -> float:
        """Seconds from the start to the first upload: anywhere within one interval."""
        return self._random.uniform(0.0, self.pace.upload_s)

    def after(self, verdict: Verdict, *, more: bool) -> float:
        """Seconds to the next try.

        Args:
            verdict: on the last one.
            more: whether there is more to send now.
        """
        if verdict.fate in ("retry", "hold"):
            return self._back_off(verdict.wait_s)
        self._failures = 0
        return self._jittered(self.pace.between_s if more else self.pace.upload_s)

    def idle(self) -> float:
        """Seconds to the next look, where there is nothing to send or it may not be sent."""
        return self._jittered(self.pace.upload_s)

    def streams(self, conditions: Conditions) -> tuple[str, ...]:
        """Which streams may be sent now."""
        low = conditions.battery is not None and conditions.battery < self.pace.least_battery
        if conditions.online is False or (low and conditions.charging is not True):
            return ()
        if conditions.metered and self.pace.metered != "all":
            return ("event",) if self.pace.metered == "events" else ()
        return ("event", "metric")

    def _back_off(self, asked: float | None) -> float:
        pace = self.pace
        # A float power overflows long before a device has failed often enough to matter.
        grown = pace.first_s * pace.factor ** min(self._failures, 200)
        self._failures += 1
        limit = min(grown, pace.longest_s)
        # Never at once: a half of the range is always waited.
        drawn = self._random.uniform(limit / 2, limit)
        if asked is None or asked <= 0:
            return drawn
        # All that were told the same time would come back together.
        capped = min(asked, pace.longest_retry_after_s)
        return capped + self._random.uniform(0.0, max(limit / 2, capped / 4))

    def _jittered(self, seconds: float) -> float:
        return seconds * self._random.uniform(0.5, 1.5)


def judge(answer: Answer, now: Callable[[], float], *, hold_on_auth: bool = False) -> Verdict:
    """What a server's answer means for the batch.

    Args:
        answer: the answer.
        now: seconds since 1970, by which a date in ``Retry-After`` is read.
        hold_on_auth: whether 401 and 403 keep the batch until the credentials change. OTLP has
            them final.
    """
    status = answer.status
    if status is None or status in _RETRYABLE:
        return Verdict("retry", wait_s=retry_after(answer.retry_after, now))
    if 200 <= status < 300:
        return _taken(answer)
    if status in _SPLITTABLE:
        return Verdict("split")
    if hold_on_auth and status in _AUTH:
        return Verdict("hold")
    if status >= 400:
        return Verdict("refused")
    # No OTLP server redirects or goes on; something is in between.
    return Verdict("retry")


def retry_after(text: str, now: Callable[[], float]) -> float | None:
    """The seconds that a ``Retry-After`` asks for; None where it says nothing that can be used."""
    text = text.strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - now()
        except (ValueError, TypeError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _taken(answer: Answer) -> Verdict:
    kind = answer.content_type.partition(";")[0].strip().lower()
    if not answer.body and kind in ("", "application/x-protobuf"):
        return Verdict("delivered")
    # A captive portal says 200 to everything, in HTML.
    if kind not in ("", "application/x-protobuf"):
        return Verdict("retry")
    try:
        count, message = otlp.rejected(answer.body)
    except BadData:
        return Verdict("retry")
    return Verdict("delivered", rejected=count, message=message[:200])


def slower(pace: Pace, factor: float) -> Pace:
    """The same pace for a fleet that is larger by a factor."""
    return replace(
        pace,
        upload_s=pace.upload_s * factor,
        between_s=pace.between_s * factor,
        longest_s=pace.longest_s * factor,
    )


def _system_random() -> random.Random:
    return random.SystemRandom()
