"""The allow-list: every attribute that telemetry may carry, and which values it may have.

What is not on it is not sent. Nothing on it is free text: values are out of a list, numbers in a
range, or match a pattern that leaves no room for an address, a coordinate or a name of a person.
``edgekit/schemas/telemetry.json`` says the same to those who read; a test holds the two together.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgekit import errors
from edgekit.names import DELEGATES, SCHEMES, TARGETS

__all__ = ["ATTRIBUTES", "DROPS", "ERRORS", "OUTCOMES", "REASONS", "SOURCES", "Rule", "allowed"]


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


Value = str | int | float | bool

OTHER: Final = "other"
SOURCES: Final = ("device", "cloud", "none")
REASONS: Final = (
    "sure", "unsure", "cloud-unavailable", "cloud-failed", "deadline", "device-missing",
    "device-failed", "device-failing", "device-slow", "device-late", "memory", "hot", "failed",
    "bad-input", OTHER,
)  # fmt: skip
"""Why an answer came from where it did, in the router's words."""

OUTCOMES: Final = ("installed", "rolled-back", "refused", "failed", "rollback-failed", OTHER)
OTA_REASONS: Final = (
    "none", "signature", "hash", "expired", "clock", "hardware", "runtime", "space", "network",
    "health", "accuracy", "latency", "crash", "loop", "locked", OTHER,
)  # fmt: skip
DROPS: Final = (
    "quota", "expired", "torn", "damaged", "lost", "disk", "rejected", "refused", "poison", OTHER,
)  # fmt: skip
KINDS: Final = (
    "timeout", "dns", "connect", "tls", "reset", "busy", "unavailable", "server", "refused",
    "redirect", "garbage", "wrong-answer", "told-to-wait", "breaker-open", "closed",
)  # fmt: skip
"""What a failure of the cloud may be called, in its client's words."""

ERRORS: Final = (
    *sorted(
        {
            *(name for name, value in vars(builtins).items() if _is_error(value)),
            *errors.__all__,
        }
        # The list is the same on every Python and system.
        - {"PythonFinalizationError", "WindowsError", "_IncompleteInputError"}
    ),
    *KINDS,
    OTHER,
)
"""What an error may be called: Python's own classes, edgekit's, and kinds of the cloud's failures.
A class of anybody else's is ``other``, as its name may say too much."""

DEVICES: Final = (
    "android-low-end", "arm-server", "coral-dev-board", "core-ultra", "galaxy-s22", "galaxy-s24",
    "host", "intel-nuc", "ipad", "iphone-12", "iphone-15-pro", "jetson-orin-nano", "pixel-6",
    "pixel-8", "raspberry-pi-4", "raspberry-pi-5", "x86-server", OTHER,
)  # fmt: skip
"""Classes of devices: the profiles that ship with edgekit."""


@dataclass(frozen=True)
class Rule:
    """Which values an attribute may have: of a list, matching a pattern, or a number in a range.

    Attributes:
        values: the list.
        pattern: of the whole text.
        low, high: the range of a whole number.
        fallback: what stands for a value that is not allowed; None: the attribute is left out.
    """

    values: tuple[str, ...] = ()
    pattern: str = ""
    low: int = 0
    high: int = 0
    fallback: str | None = None

    def admits(self, value: object) -> bool:
        """Whether a value is allowed."""
        if self.values:
            return isinstance(value, str) and value in self.values
        if self.pattern:
            return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None
        return type(value) is int and self.low <= value <= self.high

    def to_schema(self) -> dict[str, Any]:
        """The same as JSON Schema."""
        if self.values:
            return {"enum": list(self.values)}
        if self.pattern:
            return {"type": "string", "pattern": f"^(?:{self.pattern})$"}
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


_NAME: Final = r"(?!.*[0-9]{6})[a-z](?:[a-z0-9]|[-_](?=[a-z0-9])){0,47}"
_VERSION: Final = (
    r"(?:0|[1-9][0-9]{0,3})(?:[.](?:0|[1-9][0-9]{0,2})){0,2}"
    r"(?:-(?:alpha|beta|rc|dev)(?:[.][0-9]{1,3})?)?"
)
_LONG: Final = (1 << 63) - 1

ATTRIBUTES: Final[Mapping[str, Rule]] = {
    "service.name": Rule(values=("edgekit",)),
    "service.version": Rule(pattern=_VERSION),
    "service.instance.id": Rule(pattern="[0-9a-f]{32}"),
    "telemetry.sdk.name": Rule(values=("edgekit",)),
    "telemetry.sdk.language": Rule(values=("python",)),
    "telemetry.sdk.version": Rule(pattern=_VERSION),
    "os.type": Rule(values=("linux", "darwin", "windows", OTHER), fallback=OTHER),
    "host.arch": Rule(values=("amd64", "arm64", "arm32", "x86", OTHER), fallback=OTHER),
    "edgekit.device.class": Rule(values=DEVICES, fallback=OTHER),
    "edgekit.bundle.name": Rule(pattern=_NAME),
    "edgekit.bundle.version": Rule(pattern=_VERSION),
    "edgekit.bundle.digest": Rule(pattern="[0-9a-f]{64}"),
    "edgekit.artifact.target": Rule(values=(*TARGETS, "null", OTHER), fallback=OTHER),
    "edgekit.artifact.scheme": Rule(values=(*SCHEMES, OTHER), fallback=OTHER),
    "edgekit.artifact.delegate": Rule(
        values=(*sorted({d for names in DELEGATES.values() for d in names}), OTHER),
        fallback=OTHER,
    ),
    "edgekit.source": Rule(values=SOURCES, fallback="none"),
    "edgekit.reason": Rule(values=REASONS, fallback=OTHER),
    "edgekit.class": Rule(low=-1, high=4095),
    "edgekit.input": Rule(low=0, high=63),
    "edgekit.noise.epsilon": Rule(low=1, high=100_000),
    "edgekit.noise.choices": Rule(low=2, high=4096),
    "edgekit.signal": Rule(values=("event", "metric")),
    "edgekit.drop.reason": Rule(values=DROPS, fallback=OTHER),
    "edgekit.sequence": Rule(low=0, high=_LONG),
    "edgekit.stack.hash": Rule(pattern="[0-9a-f]{16}"),
    "edgekit.ota.outcome": Rule(values=OUTCOMES, fallback=OTHER),
    "edgekit.ota.reason": Rule(values=OTA_REASONS, fallback=OTHER),
    "edgekit.ota.release": Rule(low=0, high=_LONG),
    "edgekit.ota.from": Rule(pattern=_VERSION),
    "edgekit.ota.to": Rule(pattern=_VERSION),
    "error.type": Rule(values=ERRORS, fallback=OTHER),
    "event.id": Rule(pattern="[0-9a-f]{32}"),
}
"""Every attribute there is, with its rule."""


def allowed(attributes: Mapping[str, object]) -> dict[str, Value]:
    """What may be sent of some attributes: those on the list, with values that their rules admit.

    A value that is not admitted gives way to the rule's fallback, or is left out. None is left out.
    """
    kept: dict[str, Value] = {}
    for key, value in attributes.items():
        rule = ATTRIBUTES.get(key)
        if rule is None or value is None:
            continue
        if rule.admits(value):
            assert isinstance(value, str | int)
            kept[key] = value
        elif rule.fallback is not None:
            kept[key] = rule.fallback
    return kept
