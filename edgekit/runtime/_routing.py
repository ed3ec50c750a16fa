"""One request on its way through a router: whom to ask, when to ask the other, what to take."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from edgekit.errors import Abstained, CloudError
from edgekit.runtime._sides import Arrays, CloudSide, DeviceSide
from edgekit.runtime.answers import REASONS, Answer, Event
from edgekit.runtime.cloud import CloudAnswer
from edgekit.runtime.conditions import Conditions, Limits, too_much
from edgekit.runtime.lanes import Job
from edgekit.runtime.policy import Policy
from edgekit.signature import TensorSpec

__all__ = ["Routing", "Setup"]

_LEAST_LATE_S: Final = 0.005
"""A network takes longer than this: to be later than that is what counts as late."""

_GUARD_S: Final = 0.001
"""How long before the deadline an answer is given: the caller wants to have it by then."""


@dataclass(frozen=True)
class Setup:
    """What all requests of a router have in common; see `edgekit.runtime.router.Router`."""

    device: DeviceSide
    cloud: CloudSide
    policy: Policy
    scored: TensorSpec | None
    limits: Limits
    conditions: Callable[[], Conditions] | None
    hedge: bool
    version: str | None


@dataclass
class _Side:
    """How it stands with one side: what `Event` says of it, and since when it is awaited."""

    told: str = "not asked"
    since: float | None = None
    ms: float | None = None

    @property
    def pending(self) -> bool:
        return self.told == "pending"

    @property
    def untouched(self) -> bool:
        """Not asked yet, and able for all that is known."""
        return self.told == "not asked" or self.told in _MAY_STILL


_MAY_STILL: Final = ("skipped: memory", "skipped: hot", "skipped: device-slow")
"""A device that was spared may still be asked where nobody else answers."""


@dataclass
class Routing:
    """One request."""

    setup: Setup
    feeds: Arrays
    cloud_feeds: Arrays | Callable[[], Arrays]
    deadline_ms: float
    started: float = field(default_factory=time.monotonic)
    inbox: queue.SimpleQueue[Job] = field(default_factory=queue.SimpleQueue)
    device: _Side = field(default_factory=_Side)
    cloud: _Side = field(default_factory=_Side)
    own: dict[str, Any] | None = None  # the device's outputs
    confidence: float | None = None
    asked_for: str = "unsure"  # why the cloud was asked
    hedged: bool = False
    attempts: int = 0

    @property
    def deadline(self) -> float:
        return self.started + self.deadline_ms / 1000

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def settle(self) -> Answer:
        """The answer.

        Raises:
            Abstained: there is none, or none that is sure enough where the policy says so.
        """
        self._begin()
        while self.device.pending or self.cloud.pending:
            late = self._late_at()
            until = min(self.deadline - _GUARD_S, late)
            try:
                job = self.inbox.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                if time.monotonic() < self.deadline - _GUARD_S and late <= time.monotonic():
                    self._ask_the_other()
                    continue
                if time.monotonic() >= self.deadline - _GUARD_S:
                    return self._last_word("deadline")
                continue
            found = self._from_device(job) if job.side == "device" else self._from_cloud(job)
            if found is not None:
                return found
        return self._last_word(self._gave_up())

    # -- asking -------------------------------------------------------------------------------

    def _begin(self) -> None:
        reason = self._device_unfit()
        if reason is None and self._ask_device():
            return
        reason = reason or "device-failing"
        self.device.told = f"skipped: {reason}"
        if not self._ask_cloud(reason):
            self._ask_device_after_all()

    def _device_unfit(self) -> str | None:
        setup = self.setup
        reason = setup.device.unfit(self.left)
        if reason is None and setup.conditions is not None:
            reason = too_much(setup.conditions(), setup.limits)
        return reason

    def _ask_device(self) -> bool:
        if not self.setup.device.ask(self.feeds, self.inbox, self.deadline):
            return False
        self.device.told, self.device.since = "pending", time.monotonic()
        return True

    def _ask_device_after_all(self) -> bool:
        return self.device.untouched and self._ask_device()

    def _ask_cloud(self, why: str) -> bool:
        """Whether it was asked; where no answer of the device can come, a slow one will do."""
        if self.cloud.told != "not asked":
            return self.cloud.pending
        reason = self.setup.cloud.unfit(self.left)
        alone = self.own is None and not self.device.pending and not self.device.untouched
        if reason == "slow" and alone:
            reason = None
        if reason is None and not self.setup.cloud.ask(
            self.cloud_feeds, self.inbox, self.deadline - _GUARD_S
        ):
            reason = "busy-here"
        if reason is not None:
            self.cloud.told = f"skipped: {reason}"
            return False
        self.asked_for = why
        self.cloud.told, self.cloud.since = "pending", time.monotonic()
        return True

    # -- hedging: Dean and Barroso, "The Tail at Scale", 2013 ---------------------------------

    def _late_at(self) -> float:
        """When the side that is awaited is later than 19 of 20 times, and the other is free."""
        never = float("inf")
        if not self.setup.hedge or (self.device.pending and self.cloud.pending):
            return never
        if self.device.pending and self.cloud.told == "not asked":
            return self._late(self.device, self.setup.device.waits.p95)
        if self.cloud.pending and self.own is None and self.device.untouched:
            return self._late(self.cloud, self.setup.cloud.latencies.p95)
        return never

    def _late(self, side: _Side, p95: float | None) -> float:
        since = self.started if side.since is None else side.since
        # Of a side that is not known yet: when half of the time is over.
        return since + (self.deadline_ms / 2000 if p95 is None else max(p95, _LEAST_LATE_S))

    def _ask_the_other(self) -> None:
        if self.device.pending:
            self.hedged = self._ask_cloud("device-late")
        else:
            self.hedged = self._ask_device_after_all()
            if not self.hedged:
                self.device.told = "skipped: device-failing"

    # -- hearing ------------------------------------------------------------------------------

    def _from_device(self, job: Job) -> Answer | None:
        if job.error is not None:
            self.device.told = f"failed: {type(job.error).__name__}"
            self._ask_cloud("device-failed")
            return None
        self.device.told, self.device.ms = "answered", 1000 * job.seconds
        self.own = job.result
        policy, scored = self.setup.policy, self.setup.scored
        if scored is not None:
            self.confidence = policy.certainty(job.result[scored.name])
        if self.confidence is None or policy.sure(self.confidence):
            return self._answer("device", "sure", True)
        if policy.otherwise == "answer":
            return self._last_word("unsure")
        if self.cloud.pending or (policy.otherwise == "cloud" and self._ask_cloud("unsure")):
            return None
        return self._last_word(self._gave_up())

    def _from_cloud(self, job: Job) -> Answer | None:
        if job.error is None:
            answer: CloudAnswer = job.result
            self.cloud.told, self.cloud.ms = "answered", 1000 * answer.seconds
            self.attempts = answer.attempts
            return self._answer("cloud", self.asked_for, True, answer)
        known = isinstance(job.error, CloudError)
        self.cloud.told = f"failed: {job.error.kind if known else type(job.error).__name__}"  # type: ignore[attr-defined]
        self.attempts = getattr(job.error, "attempts", 0)
        if self.own is None and not self.device.pending:
            self._ask_device_after_all()
        return None

    # -- answering ----------------------------------------------------------------------------

    def _gave_up(self) -> str:
        """Why there is no better answer than what is at hand."""
        if self.cloud.told == "failed: timeout":
            return "deadline"
        if self.own is None:
            return "failed"
        if self.setup.policy.otherwise != "cloud":
            return "unsure"
        return "cloud-failed" if self.cloud.told.startswith("failed") else "cloud-unavailable"

    def _last_word(self, why: str) -> Answer:
        best = None if self.own is None else self._answer("device", why, False)
        if best is not None and self.setup.policy.otherwise != "abstain":
            return best
        if self.setup.policy.otherwise == "abstain" and best is not None and why != "deadline":
            why = "unsure"
        raise Abstained(
            f"no answer: {REASONS[why]} (device {self.device.told}, cloud {self.cloud.told})",
            why=why,
            best=best,
        )

    def _answer(
        self, source: str, why: str, sure: bool, cloud: CloudAnswer | None = None
    ) -> Answer:
        latencies = {"total": self._total_ms()}
        latencies |= {
            name: side.ms
            for name, side in (("device", self.device), ("cloud", self.cloud))
            if side.ms is not None
        }
        outputs = cloud.outputs if cloud is not None else self.own
        version = cloud.version if cloud is not None else self.setup.version
        assert outputs is not None
        return Answer(outputs, source, why, sure, self.confidence, latencies, version)

    def _total_ms(self) -> float:
        return 1000 * (time.monotonic() - self.started)

    def event(self, answer: Answer | None, why: str) -> Event:
        """What happened, for telemetry."""
        return Event(
            source=None if answer is None else answer.source,
            why=why,
            sure=answer is not None and answer.sure,
            confidence=self.confidence,
            device=self.device.told,
            cloud=self.cloud.told,
            hedged=self.hedged,
            attempts=self.attempts,
            total_ms=self._total_ms() if answer is None else answer.latencies["total"],
            device_ms=self.device.ms,
            cloud_ms=self.cloud.ms,
            deadline_ms=self.deadline_ms,
            breaker=self.setup.cloud.breaker_state,
            version=None if answer is None else answer.version,
        )
