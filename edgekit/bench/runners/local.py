"""``local:``: this machine, through the same scripts as any other device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekit.bench.process import Finished
from edgekit.bench.runners.url import DeviceUrl
from edgekit.errors import DeviceUnreachable, EdgekitError

__all__ = ["LocalLink"]


class LocalLink:
    """A link without a wire: the script and its words are handed to ``sh`` as they are."""

    identity = "local"

    def __init__(self, url: DeviceUrl) -> None:
        self.url, self.folder = url.text, ""

    def command(self, script: str, words: Sequence[str], step: str) -> list[str]:
        """See `edgekit.bench.runners.shell.Link.command`."""
        return ["sh", "-c", script, "sh", *words]

    def broken(self, done: Finished) -> EdgekitError:
        """See `edgekit.bench.runners.shell.Link.broken`."""
        return DeviceUnreachable(f"its shell {done.death()} ({self.url})")

    def transfer(self, local: Path, remote: str) -> list[str] | None:
        """See `edgekit.bench.runners.shell.Link.transfer`."""
        return None
