"""The error tree. Every error that a user can meet carries its exit code and a remedy.

EdgekitError                     70  a bug, unless a subclass says otherwise
├── UsageError                    2  the request itself is wrong (unknown device, bad option)
├── GateFailed                    1  a check was made and did not pass
│   └── Abstained                 1  no answer was sure enough, or none came in time
├── MissingDependency             3  an extra or a system tool is not installed
├── DeviceUnreachable             4  the device did not answer
├── CloudError                    4  the server did not answer, or not as it should
├── UnsupportedError              5  the model, an operator or a scheme is not supported there
├── TrustError                    6  a file is not what its signature or hash says, or may run code
├── BadData                       7  wrong shape, NaN, too few samples, unreadable file
├── StorageError                  8  no space, or no permission
├── Locked                        9  another run holds the lock
└── WorkerCrashed                 5  a converter or runtime died in its own process
"""

from __future__ import annotations

__all__ = [
    "Abstained",
    "BadData",
    "CloudError",
    "DeviceUnreachable",
    "EdgekitError",
    "GateFailed",
    "Locked",
    "MissingDependency",
    "StorageError",
    "TrustError",
    "UnsupportedError",
    "UsageError",
    "WorkerCrashed",
]


class EdgekitError(Exception):
    """Base of every error edgekit raises on purpose.

    Args:
        message: what is wrong, naming the culprit and, where there is one, what is allowed.
        hint: what to do about it, one line; shown after the message.
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive pickling by default.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[EdgekitError], message: str, hint: str) -> EdgekitError:
    return kind(message, hint=hint)


class UsageError(EdgekitError):
    """The request itself is wrong."""

    exit_code = 2


class GateFailed(EdgekitError):
    """A check was made and did not pass."""

    exit_code = 1


class Abstained(GateFailed):
    """No answer was sure enough, or none came in time.

    Args:
        message, hint: as of every error here.
        why: the reason, as `edgekit.runtime.answers.Answer.why` has it.
        best: the device's answer that was not sure enough (an `edgekit.runtime.answers.Answer`);
            None where there is none at all.
    """

    def __init__(self, message: str, *, hint: str = "", why: str = "", best: object = None) -> None:
        super().__init__(message, hint=hint)
        self.why = why
        self.best = best

    def __reduce__(self) -> tuple[object, ...]:
        rest = {"why": self.why, "best": self.best}
        return (_rebuild, (type(self), self.message, self.hint), rest)


class MissingDependency(EdgekitError):
    """An extra or a system tool is not installed; the hint names the install command."""

    exit_code = 3


class DeviceUnreachable(EdgekitError):
    """The device did not answer."""

    exit_code = 4


class CloudError(EdgekitError):
    """The server did not answer, or not as it should.

    Args:
        message, hint: as of every error here; they hold no key and no tensor.
        kind: what happened, one of `edgekit.runtime.cloud.KINDS`.
        retry_after_s: how long the server asked to be left alone; None where it did not.
        attempts: how often it was asked.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        kind: str = "server",
        retry_after_s: float | None = None,
        attempts: int = 0,
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.attempts = attempts

    def __reduce__(self) -> tuple[object, ...]:
        rest = {"kind": self.kind, "retry_after_s": self.retry_after_s, "attempts": self.attempts}
        return (_rebuild, (type(self), self.message, self.hint), rest)


class UnsupportedError(EdgekitError):
    """The model, an operator or a scheme is not supported there."""

    exit_code = 5


class WorkerCrashed(UnsupportedError):
    """A converter or a runtime died, or ran out of time, in the process of its own."""


class TrustError(EdgekitError):
    """A file is not what its hash says, or opening it could run code."""

    exit_code = 6


class BadData(EdgekitError):
    """Wrong shape, NaN, too few samples, or an unreadable file."""

    exit_code = 7


class StorageError(EdgekitError):
    """No space left, or no permission to write."""

    exit_code = 8


class Locked(EdgekitError):
    """Another run holds the lock."""

    exit_code = 9
