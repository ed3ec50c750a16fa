"""``ssh://``: any machine with a shell, through the system's own OpenSSH client.

It is given an argument list, and the user's configuration holds: agent, jump hosts, known hosts.
What it must not do is ask (there may be nobody), forward anything, share a connection that may
hang, or trust a host key unseen, even where the user's configuration says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from edgekit.bench.process import Finished, attempt
from edgekit.bench.runners.quoting import quote
from edgekit.bench.runners.url import DeviceUrl
from edgekit.errors import (
    DeviceUnreachable,
    EdgekitError,
    MissingDependency,
    TrustError,
    UsageError,
)

__all__ = ["SshLink"]

_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "10",  # a device that measures may be slow to say that it is there
    "ServerAliveCountMax": "6",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "EscapeChar": "none",
    "LogLevel": "ERROR",
}
_LAX = ("no", "off", "false", "accept-new")
_ASK_TIMEOUT = 20.0


class SshLink:
    """A link through ``ssh``; each step is a connection of its own."""

    def __init__(self, url: DeviceUrl) -> None:
        self.url, self.folder = url.text, url.folder
        program = shutil.which("ssh")
        if program is None:
            raise MissingDependency(
                "ssh is not installed", hint="apt-get install -y openssh-client"
            )
        config = url.option("config")
        if config and not Path(config).is_file():
            raise UsageError(f"{url.text!r}: there is no ssh configuration {config!r}")
        options = [f"-o{name}={value}" for name, value in _OPTIONS.items()]
        if config:
            options = ["-F", str(Path(config).absolute()), *options]
        if url.port is not None:
            options += ["-p", str(url.port)]
        if url.user:
            options += ["-l", url.user]
        self._host = url.host
        settings = self._settings(program, options)
        if settings.get("stricthostkeychecking", "ask").lower() in _LAX:
            options.append("-oStrictHostKeyChecking=yes")
        self._argv = [program, *options]
        host, port = settings.get("hostname", url.host), settings.get("port", "22")
        self.identity = f"ssh {host.lower()} {port}"

    def _settings(self, program: str, options: Sequence[str]) -> dict[str, str]:
        """What the user's configuration makes of this host (ssh -G), without connecting."""
        done = attempt([program, "-G", *options, "--", self._host], timeout=_ASK_TIMEOUT)
        if done.code != 0 or done.stopped:
            raise UsageError(f"{self.url}: ssh does not accept its settings: {_last(done)}")
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        return {key: value for key, _, value in (line.partition(" ") for line in lines)}

    def command(self, script: str, words: Sequence[str], step: str) -> list[str]:
        """See `edgekit.bench.runners.shell.Link.command`."""
        line = " ".join(quote(word) for word in ("sh", "-c", script, "sh", *words))
        return [*self._argv, "--", self._host, line]

    def broken(self, done: Finished) -> EdgekitError:
        """See `edgekit.bench.runners.shell.Link.broken`."""
        said = done.stderr
        if "IDENTIFICATION HAS CHANGED" in said:
            return TrustError(
                f"{self.url}: its host key is not the one that is known for it",
                hint="find out why; if it was installed anew: ssh-keygen -R HOST, then log in once",
            )
        if "Host key verification failed" in said:
            return DeviceUnreachable(
                f"{self.url}: its host key is not known here",
                hint="log in once by hand and compare its fingerprint: ssh HOST",
            )
        if "Permission denied (" in said:
            return DeviceUnreachable(
                f"{self.url}: it does not let us in: {_last(done)}",
                hint="a key without a passphrase, or an agent, is needed: ssh-copy-id HOST",
            )
        return DeviceUnreachable(
            f"{self.url}: the link broke: {_last(done)}", hint="does 'ssh HOST true' work?"
        )

    def transfer(self, local: Path, remote: str) -> list[str] | None:
        """See `edgekit.bench.runners.shell.Link.transfer`."""
        return None


def _last(done: Finished) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"ssh ended with status {done.code}, saying nothing"
