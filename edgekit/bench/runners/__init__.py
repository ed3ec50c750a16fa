"""Runners: how files and commands get to a device and back. They know nothing of models.

A device is named by a URL, and `open_runner` gives its runner:

- ``local:`` this machine;
- ``ssh://[USER@]HOST[:PORT][/FOLDER][?config=FILE]`` through the system's own ssh, with the user's
  configuration, agent and known hosts;
- ``adb://SERIAL[/FOLDER]`` through the system's own adb;
- ``fake:NAME[?fault=KIND@STEP]`` this machine under another name, with faults on demand, for tests.

An open runner holds the device's lease (`edgekit.bench.leases`) and one directory on it, which
`close` deletes together with every process that was started there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from edgekit.bench.leases import lease
from edgekit.bench.process import Cancel, Finished
from edgekit.bench.runners.adb import AdbLink
from edgekit.bench.runners.fake import FakeLink
from edgekit.bench.runners.local import LocalLink
from edgekit.bench.runners.shell import Link, ShellRunner
from edgekit.bench.runners.ssh import SshLink
from edgekit.bench.runners.url import SCHEMES, DeviceUrl, parse

__all__ = [
    "SCHEMES",
    "DeviceUrl",
    "Finished",
    "Runner",
    "device_identity",
    "open_runner",
    "parse",
]


class Runner(Protocol):
    """A device that files can be put on and commands run on.

    Every step has a deadline. Each raises `DeviceUnreachable` where the link broke or
    ``timeout:<step>`` passed, and gives no partial result.

    Attributes:
        url: the device's URL, as it was given.
        workspace: absolute path of the one directory on the device that it owns.
    """

    url: str
    workspace: str

    def push(self, local: Path, name: str, *, executable: bool = False) -> None:
        """Copies a file into the workspace and has the device check its sha256.

        Args:
            local: the file.
            name: its name there, any characters; ``/`` makes folders.
            executable: whether it is a program.

        Raises:
            UsageError: the name leaves the workspace.
            StorageError: the device has no space left, or refuses to write.
            TrustError: what arrived is not what was sent.
        """
        ...

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        stdin: bytes | IO[bytes] | None = None,
        max_output: int = ...,
    ) -> Finished:
        """Runs a program in the workspace, with its processes killed at the end whatever happens.

        Args:
            argv: the program and its arguments; each arrives as it is.
            timeout: seconds until it is killed, on the device too.
            env: variables added to the device's own.
            stdin: what it reads.
            max_output: bytes of stdout after which it is killed.

        Raises:
            WorkerCrashed: ``timeout:run``, or it wrote more than ``max_output``.
        """
        ...

    def pull(self, name: str, local: Path, *, max_bytes: int = ...) -> None:
        """Copies a file from the workspace; ``local`` is written whole or not at all.

        Raises:
            BadData: there is no such file, or it is larger than ``max_bytes``.
            TrustError: what arrived is not what was there.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What the device is, by its own shell; None where it does not say."""
        ...

    def close(self) -> None:
        """Ends what runs there and deletes the workspace; closing twice is allowed."""
        ...


_LINKS: dict[str, Callable[[DeviceUrl], Link]] = {
    "local": LocalLink,
    "ssh": SshLink,
    "adb": AdbLink,
    "fake": FakeLink,
}


def device_identity(url: str) -> str:
    """Names a device, however it is addressed; it is not asked.

    Raises:
        UsageError: the URL is none of the forms above.
        MissingDependency: ssh or adb is not installed.
    """
    parsed = parse(url)
    return _LINKS[parsed.scheme](parsed).identity


@contextlib.contextmanager
def open_runner(
    url: str,
    *,
    wait: float = 0.0,
    timeout: float = 60.0,
    cancel: Cancel | None = None,
    waiting: Callable[[str], None] = lambda _: None,
) -> Iterator[ShellRunner]:
    """The runner of a device, with its lease; both are given back at the end, however it comes.

    Args:
        url: one of the forms above.
        wait: seconds to wait while another job has the device.
        timeout: seconds for each step but `Runner.run`.
        cancel: ends every step early.
        waiting: called once with who has the device, before waiting.

    Raises:
        UsageError: the URL is not one of them.
        MissingDependency: ssh or adb is not installed.
        DeviceUnreachable: the device did not answer, or is not ready.
        UnsupportedError: its shell does not pass words on as they are, or lacks a program.
        Locked: another job still had it after ``wait`` seconds.
    """
    link = _LINKS[(parsed := parse(url)).scheme](parsed)
    with lease(link.identity, what=url, wait=wait, cancel=cancel, waiting=waiting):
        runner = ShellRunner(link, timeout=timeout, cancel=cancel)
        try:
            yield runner
        finally:
            runner.close()
