"""Devices for tests: a real OpenSSH server on loopback, and an adb that is a script."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HOSTILE = (
    "",
    "a b",
    "$(touch pwned)",
    "`touch pwned`",
    ";touch pwned",
    "&& touch pwned",
    "| touch pwned",
    "> pwned",
    "'",
    "''",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "'$(touch pwned)'",
    "\\",
    "\\'; touch pwned #",
    "a\\",
    "\n",
    "a\ntouch pwned\n",
    "\r\n",
    "\t",
    "-rf",
    "--",
    "-oProxyCommand=touch pwned",
    "*",
    "?",
    "[a-z]",
    "{a,b}",
    "~",
    "~root",
    "!!",
    "#",
    "%s%n",
    "$HOME",
    "${IFS}touch${IFS}pwned",
    "a=b",
    "ü ß 漢字 🙂",
    "\u202e\u200b",
    "\x01\x1b[31m",
    "x" * 4096,
)
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass(frozen=True)
class Server:
    """A running sshd: where it is, and the client's configuration that reaches it."""

    port: int
    folder: Path

    @property
    def config(self) -> Path:
        """The client's configuration."""
        return self.folder / "client"

    def url(self, host: str = "bench-1", query: str = "") -> str:
        """The URL of this device."""
        return f"ssh://{host}?config={self.config}{query}"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leases and results of a test are its own."""
    folder = tmp_path / "state"
    monkeypatch.setenv("EDGEKIT_STATE", str(folder))
    return folder


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """OpenSSH's server on a free port, with keys of its own, as the current user."""
    if SSHD is None:
        pytest.skip("no OpenSSH server is installed: apt-get install -y openssh-server")
    folder = tmp_path_factory.mktemp("sshd")
    for key in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(port, folder)
    _configure(server)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it locks itself in; its package makes it
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd")], stderr=log)
        try:
            _wait_for(port, process, folder / "log")
            yield server
        finally:
            process.terminate()
            process.wait(10)


def _configure(server: Server) -> None:
    folder = server.folder
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "sshd").write_text(
        f"""
        Port {server.port}
        ListenAddress 127.0.0.1
        HostKey {folder}/host
        PidFile {folder}/pid
        AuthorizedKeysFile {folder}/authorized
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        PermitRootLogin prohibit-password
        MaxStartups 100
        """
    )
    public = (folder / "host.pub").read_text()
    (folder / "known").write_text(f"[127.0.0.1]:{server.port} {public}")
    (folder / "client").write_text(
        f"""
        Host bench-*
          HostName 127.0.0.1
          Port {server.port}
        Host *
          User {getpass.getuser()}
          IdentityFile {folder}/user
          IdentitiesOnly yes
          UserKnownHostsFile {folder}/known
          GlobalKnownHostsFile none
        """
    )


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    pytest.fail(f"sshd did not start: {log.read_text(errors='replace')}")


@pytest.fixture
def hostile() -> tuple[str, ...]:
    """Words that would do harm if a shell read them otherwise than as they are."""
    return HOSTILE


@pytest.fixture
def echo() -> str:
    """A Python program that prints its arguments and ``WORD`` of its environment as JSON."""
    return "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('WORD')]))"


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], bool]:
    """Whether a condition comes true within ten seconds."""
    return _eventually


@pytest.fixture
def gone() -> Callable[[int], bool]:
    """Whether a process ends within ten seconds; a zombie has."""
    return lambda pid: _eventually(lambda: not _alive(pid))


def _eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
