"""The runner of every device that has a shell: what ssh, adb and this machine have in common."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from edgekit.bench.interrupts import held_back
from edgekit.bench.leases import holder_id
from edgekit.bench.process import MAX_OUTPUT, Cancel, Finished, attempt
from edgekit.bench.runners import scripts
from edgekit.bench.runners.facts import read_facts
from edgekit.bench.runners.quoting import check_name, check_word
from edgekit.errors import (
    BadData,
    DeviceUnreachable,
    EdgekitError,
    StorageError,
    TrustError,
    UnsupportedError,
    UsageError,
    WorkerCrashed,
)

__all__ = ["Link", "ShellRunner"]

_FRAME_BYTES = 4096  # what stands around a script's output, and what a login script may print
_CLEANUP = 30.0  # seconds in which a device must answer while we clean up
_LATER = 10.0  # the device's own deadline comes after ours: it is for when the link is gone
_PROBE = "a b\t'\"`$(id)`\\n*;&|<>~#!{x}[y]?\n -- ü\\"
_WORKSPACE = re.compile(r"/(?:[^/\n]+/)+edgekit-[A-Za-z0-9]{6}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Link(Protocol):
    """How a script reaches a device's shell.

    Attributes:
        url: the device's URL.
        identity: names the device, however it was addressed; leases go by it.
        folder: where to make workspaces, empty for the device's usual place.
    """

    url: str
    identity: str
    folder: str

    def command(self, script: str, words: Sequence[str], step: str) -> list[str]:
        """The command, on this machine, that runs a script there with these arguments."""
        ...

    def broken(self, done: Finished) -> EdgekitError:
        """What a command says that ended without the script's last line."""
        ...

    def transfer(self, local: Path, remote: str) -> list[str] | None:
        """The command that copies a file there; None where its shell's ``cat`` does it."""
        ...


class ShellRunner:
    """A `edgekit.bench.runners.Runner` over a `Link`; made by `edgekit.bench.runners.open_runner`.

    Args:
        link: how to reach the device.
        timeout: seconds for each step but `run`.
        cancel: ends every step early.
    """

    def __init__(self, link: Link, *, timeout: float = 60.0, cancel: Cancel | None = None) -> None:
        self.url, self._name = link.url, link.url.rstrip(":")
        self.workspace = ""
        self._link, self._timeout, self._cancel = link, timeout, cancel
        self._jobs = 0
        self._marker = f"{holder_id(link.identity)} {secrets.token_hex(16)}"
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        out = self._script("open", scripts.OPEN, [self._link.folder, self._marker, _PROBE])
        digest, _, rest = out.partition(b"\n")
        made, _, echo = rest.partition(b"\n")
        if (
            echo != _PROBE.encode()
            or digest != hashlib.sha256(_PROBE.encode()).hexdigest().encode()
        ):
            raise UnsupportedError(
                f"{self._name}: its shell does not pass words on as they are, or lacks sha256sum",
                hint="its login shell must be POSIX or fish; sha256sum, shasum or openssl be there",
            )
        workspace = made.decode("utf-8", "replace")
        if not _WORKSPACE.fullmatch(workspace) or ".." in workspace:
            raise UnsupportedError(f"{self._name}: its mktemp made {workspace[:200]!r}")
        self.workspace = workspace
        holder = self._marker.split(" ")[0]
        self._script("open", scripts.SWEEP, [workspace, holder])

    def push(self, local: Path, name: str, *, executable: bool = False) -> None:
        """See `edgekit.bench.runners.Runner.push`."""
        check_name(name)
        mode = "700" if executable else "600"
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            command = self._link.transfer(local.absolute(), f"{self.workspace}/{name}")
            file.seek(0)
            words = [self.workspace, name, mode]
            if command is None:
                there = self._script("push", scripts.PUSH, words, stdin=file)
            else:
                if "/" in name:
                    folder = name.rpartition("/")[0]
                    self._script("push", scripts.MKDIR, [self.workspace, folder])
                self._transfer(command)
                there = self._script("push", scripts.CHECK, words)
        if there.strip().decode("ascii", "replace") != digest:
            raise TrustError(
                f"{self._name}: {name!r} arrived damaged: its sha256 is not that of {local}",
                hint="try again; a device that spoils files may have a failing disk or card",
            )

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        stdin: bytes | IO[bytes] | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> Finished:
        """See `edgekit.bench.runners.Runner.run`."""
        words = [*_assignments(env or {}), *_program(argv)]
        self._jobs += 1
        limit = str(int(timeout + _LATER) + 1)
        command = [self.workspace, str(self._jobs), limit, *words]
        try:
            return self._ask("run", scripts.RUN, command, timeout, stdin, max_output)
        except BaseException:
            with contextlib.suppress(EdgekitError, OSError):
                self._clean("kill", scripts.KILL, [self.workspace])
            raise

    def pull(self, name: str, local: Path, *, max_bytes: int = MAX_OUTPUT) -> None:
        """See `edgekit.bench.runners.Runner.pull`."""
        check_name(name)
        words = [self.workspace, name]
        try:
            out = self._script("pull", scripts.PULL, words, max_output=max_bytes + 128)
        except WorkerCrashed as error:
            raise BadData(f"{self._name}: {name!r} has more than {max_bytes} bytes") from error
        digest, _, content = out.partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != digest:
            raise TrustError(
                f"{self._name}: {name!r} arrived damaged: its sha256 changed on the way"
            )
        descriptor, made = tempfile.mkstemp(prefix=".pull-", dir=local.absolute().parent)
        aside = Path(made)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            aside.replace(local)
        finally:
            aside.unlink(missing_ok=True)

    def facts(self) -> dict[str, Any]:
        """See `edgekit.bench.runners.Runner.facts`."""
        return read_facts(self._script("facts", scripts.FACTS, []))

    def close(self) -> None:
        """See `edgekit.bench.runners.Runner.close`.

        A device that is gone keeps its workspace; the next runner that is opened on it for the same
        user of this machine deletes it.
        """
        if not self.workspace:
            return
        workspace, self.workspace = self.workspace, ""
        with contextlib.suppress(EdgekitError, OSError):
            self._clean("remove", scripts.REMOVE, [workspace, self._marker])

    def _script(
        self,
        step: str,
        script: str,
        words: Sequence[str],
        *,
        stdin: IO[bytes] | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> bytes:
        """What one of our own scripts printed; an error where it did not succeed."""
        done = self._ask(step, script, words, self._timeout, stdin, max_output)
        if done.code != 0:
            raise _refused(f"{self._name}: {step}", done)
        return done.stdout

    def _ask(
        self,
        step: str,
        script: str,
        words: Sequence[str],
        timeout: float,
        stdin: bytes | IO[bytes] | None,
        max_output: int,
    ) -> Finished:
        """Runs a script on the device; what comes back is the script's own, and whole."""
        frame = f"@edgekit-{secrets.token_hex(8)}"
        for word in words:
            check_word(word)
        command = self._link.command(scripts.framed(script), [frame, *words], step)
        limit = max_output + _FRAME_BYTES
        done = attempt(command, timeout=timeout, stdin=stdin, max_output=limit, cancel=self._cancel)
        if done.stopped:
            raise self._stopped(step, done, timeout, max_output)
        found = _unframe(done.stdout, frame.encode())
        if found is None:
            raise self._link.broken(done)
        code, out = found
        if len(out) > max_output:
            raise self._stopped(step, done, timeout, max_output)
        return Finished(code, out, done.stderr, done.seconds)

    def _stopped(self, step: str, done: Finished, timeout: float, limit: int) -> EdgekitError:
        kind = WorkerCrashed if step == "run" else DeviceUnreachable
        if done.stopped == "timeout":
            return kind(
                f"{self._name}: timeout:{step}: it was not done within {timeout:.0f} s",
                hint="allow it more time"
                if step == "run"
                else "is the device asleep, or its link?",
            )
        return WorkerCrashed(f"{self._name}: {step} wrote more than {limit} bytes and was stopped")

    def _transfer(self, command: list[str]) -> None:
        done = attempt(command, timeout=self._timeout, cancel=self._cancel)
        if done.stopped:
            raise self._stopped("push", done, self._timeout, MAX_OUTPUT)
        if done.code != 0:
            if "No space left" in done.stderr:
                raise _refused(f"{self._name}: push", done)
            raise self._link.broken(done)

    def _clean(self, step: str, script: str, words: Sequence[str]) -> None:
        """A script that must run even if the work was called off, within a bounded time."""
        cancel, self._cancel = self._cancel, None
        try:
            with held_back():
                self._ask(step, script, words, min(_CLEANUP, self._timeout), None, MAX_OUTPUT)
        finally:
            self._cancel = cancel


def _program(argv: Sequence[str]) -> list[str]:
    if not argv or not argv[0] or argv[0].startswith("-") or "=" in argv[0]:
        raise UsageError(
            f"{argv[0] if argv else ''!r} cannot be the name of a program on a device",
            hint="it is not empty, does not begin with '-' and holds no '='",
        )
    return list(argv)


def _assignments(env: Mapping[str, str]) -> list[str]:
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise UsageError(f"{name!r} is no name of an environment variable")
    return [f"{name}={value}" for name, value in env.items()]


def _unframe(out: bytes, frame: bytes) -> tuple[int, bytes] | None:
    """Exit status and output of a framed script; None where its last line did not arrive."""
    _, begun, rest = out.partition(b"\n" + frame + b" begin\n")
    body, ended, tail = rest.rpartition(b"\n" + frame + b" end ")
    if not begun or not ended or not re.fullmatch(rb"[0-9]{1,4}\n", tail):
        return None
    code = int(tail)
    return (128 - code if 128 < code <= 192 else code), body


def _refused(what: str, done: Finished) -> EdgekitError:
    """Why a script of ours did not succeed, as the device's own tools put it."""
    said = " ".join(done.stderr.split())[-300:]
    if "No space left" in said or "Permission denied" in said or "Read-only" in said:
        return StorageError(f"{what}: {said}", hint="free some space there, or name another folder")
    if done.code == 66:
        return UsageError(f"{what}: there is no such folder on it: {said}")
    if done.code == 68:
        return BadData(f"{what}: there is no such file on it")
    return UnsupportedError(f"{what}: {said or f'exit status {done.code}'}")
