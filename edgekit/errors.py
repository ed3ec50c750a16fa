"""The error tree. Every error that a user can meet carries its exit code and a remedy.

EdgekitError                     70  a bug, unless a subclass says otherwise
├── UsageError                    2  the request itself is wrong (unknown device, bad option)
├── GateFailed                    1  a check was made and did not pass
├── MissingDependency             3  an extra or a system tool is not installed
├── DeviceUnreachable             4  the device did not answer
├── UnsupportedError              5  the model, an operator or a scheme is not supported there
├── TrustError                    6  a file is not what its signature or hash says, or may run code
├── BadData                       7  wrong shape, NaN, too few samples, unreadable file
├── StorageError                  8  no space, or no permission
├── Locked                        9  another run holds the lock
└── WorkerCrashed                 5  a converter or runtime died in its own process
"""

from __future__ import annotations

__all__ = [
    "BadData",
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


class MissingDependency(EdgekitError):
    """An extra or a system tool is not installed; the hint names the install command."""

    exit_code = 3


class DeviceUnreachable(EdgekitError):
    """The device did not answer."""

    exit_code = 4


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
