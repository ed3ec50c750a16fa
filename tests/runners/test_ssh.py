"""ssh devices: a real OpenSSH server on loopback, with keys of its own (RUN-01, 02, 04, 05)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.bench.runners import open_runner
from edgekit.bench.runners.ssh import SshLink
from edgekit.bench.runners.url import parse
from edgekit.errors import (
    DeviceUnreachable,
    MissingDependency,
    TrustError,
    UsageError,
    WorkerCrashed,
)


def test_run_01_04_through_ssh(
    sshd: Any, tmp_path: Path, hostile: tuple[str, ...], echo: str, gone: Any
) -> None:
    (tmp_path / "here").write_bytes(os.urandom(50_000))
    with open_runner(sshd.url()) as runner:
        runner.push(tmp_path / "here", "-o $(touch pwned)\n';`id`/\\")
        runner.pull("-o $(touch pwned)\n';`id`/\\", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes()
        done = runner.run([sys.executable, "-c", echo, *hostile], timeout=30, env={"WORD": "'\n"})
        assert json.loads(done.stdout) == [list(hostile), "'\n"]
        with pytest.raises(WorkerCrashed, match="timeout:run"):
            runner.run(["sh", "-c", "echo $$ >pid; exec sleep 600"], timeout=1)
        pid = int((Path(runner.workspace) / "pid").read_text())
        assert gone(pid)
        workspace = Path(runner.workspace)
    assert not workspace.exists()


@pytest.mark.slow
def test_run_01_a_hundred_hostile_names_pushed_and_pulled(
    sshd: Any, tmp_path: Path, hostile: tuple[str, ...]
) -> None:
    base = [n for n in hostile if n and "/" not in n and len(n.encode()) < 200]
    names = [f"{name}{end}" for end in ("", " x", "'", "\n-rf", "$(id)") for name in base][:120]
    assert len(set(names)) >= 100
    with open_runner(sshd.url()) as runner:
        for number, name in enumerate(names):
            (tmp_path / "here").write_bytes(f"{number} {name}".encode())
            runner.push(tmp_path / "here", name)
            runner.pull(name, tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes()
        there = {p.name for p in Path(runner.workspace).iterdir()}
        assert there == {*names, ".edgekit-workspace"}
    assert not (Path.home() / "pwned").exists()


def changed(server: Any, tmp_path: Path, known: str, *lines: str) -> str:
    """The URL of the same server with another file of known hosts, and more settings."""
    (tmp_path / "known").write_text(known)
    text = server.config.read_text()
    text = text.replace(f"{server.folder}/known", str(tmp_path / "known"))
    (tmp_path / "client").write_text("\n".join([*lines, text]))
    return f"ssh://bench-1?config={tmp_path / 'client'}"


def test_run_02_an_unknown_or_changed_host_key_is_refused(sshd: Any, tmp_path: Path) -> None:
    for settings in (
        (),
        ("StrictHostKeyChecking no",),
        ("StrictHostKeyChecking off",),
        ("StrictHostKeyChecking accept-new",),
    ):
        url = changed(sshd, tmp_path, "", *settings)
        with pytest.raises(DeviceUnreachable, match="host key is not known"), open_runner(url):
            pass
        assert (tmp_path / "known").read_text() == ""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True
    )
    other = (tmp_path / "other.pub").read_text()
    url = changed(sshd, tmp_path, f"[127.0.0.1]:{sshd.port} {other}", "StrictHostKeyChecking no")
    with pytest.raises(TrustError, match="not the one that is known"), open_runner(url):
        pass


def test_run_02_nobody_is_asked_for_a_password(sshd: Any, tmp_path: Path) -> None:
    text = sshd.config.read_text().replace(f"{sshd.folder}/user", str(tmp_path / "absent"))
    (tmp_path / "client").write_text(text)
    start = time.monotonic()
    url = f"ssh://bench-1?config={tmp_path / 'client'}"
    with pytest.raises(DeviceUnreachable, match="does not let us in"), open_runner(url):
        pass
    assert time.monotonic() - start < 30


def test_hosts_that_are_not_there_are_unreachable(sshd: Any, tmp_path: Path) -> None:
    url = f"ssh://127.0.0.1:1?config={sshd.config}"
    with pytest.raises(DeviceUnreachable, match="Connection refused"), open_runner(url):
        pass
    with pytest.raises(UsageError, match="no ssh configuration"), open_runner("ssh://a?config=/x"):
        pass
    (tmp_path / "bad").write_text("NoSuchSetting yes\n")
    url = f"ssh://a?config={tmp_path / 'bad'}"
    with pytest.raises(UsageError, match="does not accept its settings"), open_runner(url):
        pass
    with (
        pytest.raises(UsageError, match="no such folder"),
        open_runner(f"ssh://bench-1/no/such/folder?config={sshd.config}"),
    ):
        pass


@pytest.mark.slow
def test_run_05_a_connection_that_is_cut_gives_no_result_and_its_program_is_ended(
    sshd: Any, gone: Any
) -> None:
    # The program ends the server's process of its own connection, as a lost link would.
    cut = """
        echo $$ >pid; echo 0.1 ms; parent=$PPID
        until ps -o comm= -p $parent | grep -q sshd; do parent=$(ps -o ppid= -p $parent); done
        kill -9 $parent; exec sleep 600
    """
    with open_runner(sshd.url()) as runner:
        with pytest.raises(DeviceUnreachable, match="the link broke"):
            runner.run(["sh", "-c", cut], timeout=60)
        assert gone(int((Path(runner.workspace) / "pid").read_text()))
        workspace = Path(runner.workspace)
    assert not workspace.exists()
    with open_runner(sshd.url()):
        pass  # the lease is free


def test_one_device_under_two_names_has_one_identity(sshd: Any) -> None:
    first, second = (SshLink(parse(sshd.url(host))) for host in ("bench-1", "bench-2"))
    plain = SshLink(parse(f"ssh://x@127.0.0.1:{sshd.port}?config={sshd.config}"))
    other = SshLink(parse(f"ssh://127.0.0.1:2?config={sshd.config}"))
    assert first.identity == second.identity == plain.identity != other.identity


def test_run_02_the_command_asks_forwards_and_shares_nothing(sshd: Any) -> None:
    command = SshLink(parse(f"ssh://pi@bench-1?config={sshd.config}")).command("id", ["a"], "run")
    assert command[-3:-1] == ["--", "bench-1"] and command[-1] == "'sh' '-c' 'id' 'sh' 'a'"
    for setting in ("BatchMode=yes", "ControlPath=none", "ForwardAgent=no"):
        assert f"-o{setting}" in command
    assert not any("StrictHostKeyChecking" in word for word in command)  # the user's own holds


def test_no_ssh_at_all_is_a_missing_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(MissingDependency, match="ssh is not installed"), open_runner("ssh://a"):
        pass
