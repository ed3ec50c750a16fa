"""``fake:NAME``: this machine under another name, on which faults happen when they are asked for.

What it runs is run for real, here, and its results say ``fake:`` wherever they go. It is for tests
of what happens around a device, this project's and a team's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekit.bench.process import Finished
from edgekit.bench.runners.local import LocalLink
from edgekit.bench.runners.url import DeviceUrl
from edgekit.errors import DeviceUnreachable, EdgekitError, UsageError

__all__ = ["FAULTS", "STEPS", "FakeLink"]

FAULTS = {
    "unplug": "the link breaks in the middle, with output already there",
    "hang": "nothing comes back",
    "flood": "output without end",
    "full": "the disk is full",
    "spoil": "what arrives is not what was sent",
}
"""What can happen at a step; ``unplug@run``."""

STEPS = ("open", "push", "run", "pull", "facts")


class FakeLink(LocalLink):
    """A `LocalLink` of its own identity, with the fault that its URL asks for."""

    def __init__(self, url: DeviceUrl) -> None:
        super().__init__(url)
        self.identity = f"fake {url.host}"
        self._fault, _, self._step = url.option("fault").partition("@")
        if self._fault and (self._fault not in FAULTS or self._step not in STEPS):
            raise UsageError(
                f"{url.text!r} asks for no known fault",
                hint=f"KIND@STEP of {', '.join(FAULTS)} at {', '.join(STEPS)}",
            )

    def command(self, script: str, words: Sequence[str], step: str) -> list[str]:
        """See `edgekit.bench.runners.shell.Link.command`."""
        if step != self._step:
            return super().command(script, words, step)
        frame = words[0]
        return ["sh", "-c", _FAULTY[self._fault], "sh", frame]

    def broken(self, done: Finished) -> EdgekitError:
        """See `edgekit.bench.runners.shell.Link.broken`."""
        return DeviceUnreachable(f"{self.url}: the link broke (fake)")

    def transfer(self, local: Path, remote: str) -> list[str] | None:
        """See `edgekit.bench.runners.shell.Link.transfer`."""
        return None


_FAULTY = {
    "unplug": "printf '\\n%s begin\\nhalf of it' \"$1\"; exit 255",
    "hang": "exec sleep 600",
    "flood": "exec cat /dev/zero",
    "full": "printf '\\n%s begin\\n' \"$1\"; echo 'No space left on device' >&2; "
    "printf '\\n%s end 67\\n' \"$1\"",
    "spoil": 'printf \'\\n%s begin\\n%064d\\nspoilt\\n%s end 0\\n\' "$1" 0 "$1"',
}
