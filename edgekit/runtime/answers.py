"""What a router gives: an answer with its reasons, and the event that tells telemetry of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

__all__ = ["REASONS", "Answer", "Event"]

REASONS: Final[Mapping[str, str]] = {
    "sure": "the device's answer is sure enough",
    "unsure": "the device's answer was not sure enough",
    "cloud-unavailable": "the device's answer is not sure enough, and the cloud could not be asked",
    "cloud-failed": "the device's answer is not sure enough, and the cloud failed",
    "deadline": "the deadline came first",
    "device-missing": "there is no model on the device",
    "device-failed": "the device's session failed",
    "device-failing": "the device's session failed too often of late, and was not asked",
    "device-slow": "the device would not have answered in time, and was not asked",
    "device-late": "the device was late, and the cloud was asked beside it",
    "memory": "the device has too little memory free",
    "hot": "the device is too hot",
    "failed": "neither side gave an answer",
    "bad-input": "the inputs do not fit the model",
}
"""What `Answer.why` and `Event.why` may be."""


@dataclass(frozen=True)
class Answer:
    """An answer, and where it comes from.

    Attributes:
        outputs: arrays by output name, as the signature has them.
        source: ``device`` or ``cloud``.
        why: one of `REASONS`. From the device: ``sure``, ``unsure`` (the policy takes it all the
            same), ``cloud-unavailable``, ``cloud-failed`` or ``deadline``. From the cloud: why it
            was asked.
        sure: whether it is as good as the policy demands: every answer of the cloud is.
        confidence: how sure the device was, by the policy's signal, whichever answer this is; None
            where it gave none or nothing is known of its scores.
        latencies: milliseconds: ``total``, and ``device`` and ``cloud`` where they answered.
        version: of the bundle, or of the cloud's model where its server says it.
    """

    outputs: dict[str, np.ndarray[Any, Any]]
    source: str
    why: str
    sure: bool
    confidence: float | None
    latencies: Mapping[str, float]
    version: str | None


@dataclass(frozen=True)
class Event:
    """What happened to one request: exactly one per call. It holds no input and no output.

    Attributes:
        source: ``device``, ``cloud``, or None where there was no answer.
        why: one of `REASONS`.
        sure: as `Answer.sure`; False where there was no answer.
        confidence: as `Answer.confidence`.
        device: ``answered``, ``pending``, ``not asked``, ``skipped: REASON`` or
            ``failed: ERROR CLASS``.
        cloud: ``answered``, ``pending``, ``not asked``, ``skipped: REASON`` or ``failed: KIND``
            (`edgekit.runtime.cloud.KINDS`).
        hedged: whether one side was asked because the other was late.
        attempts: how often the cloud was asked, of what had come back by then.
        total_ms, device_ms, cloud_ms: the answer's latency, and those of the two sides where they
            came back in time; milliseconds.
        deadline_ms: what was allowed.
        breaker: the state of the cloud's circuit breaker after it; None without a cloud.
        version: as `Answer.version`.
    """

    source: str | None
    why: str
    sure: bool
    confidence: float | None
    device: str
    cloud: str
    hedged: bool
    attempts: int
    total_ms: float
    device_ms: float | None
    cloud_ms: float | None
    deadline_ms: float
    breaker: str | None
    version: str | None

    def to_json(self) -> dict[str, Any]:
        """The same as a plain dictionary."""
        return asdict(self)
