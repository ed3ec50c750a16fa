"""Runners on this machine and through a real OpenSSH server: RUN-01, 03, 04, 06, 07 and 11."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.bench.process import Cancel, Cancelled
from edgekit.bench.runners import open_runner, scripts
from edgekit.bench.runners.shell import ShellRunner
from edgekit.errors import (
    BadData,
    DeviceUnreachable,
    StorageError,
    TrustError,
    UsageError,
    WorkerCrashed,
)


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest) -> str:
    """A device's URL: this machine, and the same through ssh."""
    if request.param == "local":
        return "local:"
    url: str = request.getfixturevalue("sshd").url()
    return url


@pytest.fixture
def runner(url: str) -> Iterator[ShellRunner]:
    """An open runner."""
    with open_runner(url) as opened:
        yield opened


def test_files_and_words_arrive_as_they_are(
    runner: ShellRunner, tmp_path: Path, hostile: tuple[str, ...], echo: str
) -> None:
    content = os.urandom(300_000) + b"\n@edgekit-0 end 0\n"
    (tmp_path / "here").write_bytes(content)
    runner.push(tmp_path / "here", "-f it's $(id)\n/ü")
    runner.pull("-f it's $(id)\n/ü", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    words = [word for word in hostile if len(word) < 4096]
    done = runner.run([sys.executable, "-c", echo, *words], timeout=30, env={"WORD": "'; id\n"})
    import json

    assert json.loads(done.stdout) == [words, "'; id\n"]
    assert done.code == 0 and done.stderr == ""


def test_a_program_runs_in_the_workspace_and_says_how_it_ended(runner: ShellRunner) -> None:
    there = runner.run(["pwd"], timeout=10)
    assert there.stdout.decode().strip() == runner.workspace
    done = runner.run(["sh", "-c", "cat; echo oops >&2; exit 7"], timeout=10, stdin=b"in\0put")
    assert (done.code, done.stdout, done.stderr) == (7, b"in\0put", "oops\n")
    assert runner.run(["sh", "-c", "kill -SEGV $$"], timeout=10).death() == "died from SIGSEGV"
    assert runner.run(["no-such-program"], timeout=10).code == 127
    executable = Path(runner.workspace) / "hello world"
    source = executable.parent / "source"
    source.write_text("#!/bin/sh\necho hello\n")
    runner.push(source, "hello world", executable=True)
    assert runner.run(["./hello world"], timeout=10).stdout == b"hello\n"
    assert stat.S_IMODE(executable.stat().st_mode) == 0o700


def test_run_01_hostile_names_neither_escape_nor_hurt(
    runner: ShellRunner, tmp_path: Path, hostile: tuple[str, ...]
) -> None:
    names = [n for n in hostile if n and "/" not in n and len(n) < 256]
    for number, name in enumerate(names):
        (tmp_path / "here").write_bytes(bytes([number]) * 10)
        runner.push(tmp_path / "here", name)
    there = sorted(p.name for p in Path(runner.workspace).iterdir() if p.name[:8] != ".edgekit")
    assert there == sorted(names)
    runner.pull(names[-1], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == bytes([len(names) - 1]) * 10
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    for name in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(UsageError):
            runner.push(outside, name)
        with pytest.raises(UsageError):
            runner.pull(name, tmp_path / "stolen")
    assert not (tmp_path / "stolen").exists()


def test_programs_and_variables_of_no_allowed_form_are_refused(runner: ShellRunner) -> None:
    for argv in ([], [""], ["-x"], ["A=B", "id"]):
        with pytest.raises(UsageError, match="name of a program"):
            runner.run(argv, timeout=5)
    for name in ("A B", "", "1A", "A=B", "A;id"):
        with pytest.raises(UsageError, match="environment variable"):
            runner.run(["true"], timeout=5, env={name: "x"})


def test_run_03_only_a_workspace_of_ours_is_deleted(tmp_path: Path) -> None:
    lookalike = tmp_path / "edgekit-abc123"
    lookalike.mkdir()
    linked = tmp_path / "edgekit-link00"
    ours = tmp_path / "edgekit-ours00"
    ours.mkdir()
    (ours / scripts.MARKER).write_text("me word\n")
    linked.symlink_to(ours)
    home = Path.home()
    for path in (
        "",
        "/",
        "~",
        str(home),
        "..",
        "/data",
        str(tmp_path),
        str(lookalike),
        str(linked),
    ):
        for word in ("me word", ""):
            command = ["sh", "-c", scripts.REMOVE, "sh", path, word]
            assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 65
    for path in (f"{tmp_path}/x/../edgekit-ours00", f"{tmp_path}//edgekit-ours00"):
        command = ["sh", "-c", scripts.REMOVE, "sh", path, "me word"]
        assert subprocess.run(command, check=False).returncode == 65
    wrong = ["sh", "-c", scripts.REMOVE, "sh", str(ours), "another word"]
    assert subprocess.run(wrong, check=False).returncode == 65
    assert ours.is_dir() and lookalike.is_dir() and home.is_dir()
    right = ["sh", "-c", scripts.REMOVE, "sh", str(ours), "me word"]
    assert subprocess.run(right, check=False).returncode == 0
    assert not ours.exists()


def test_run_04_a_hang_ends_at_the_deadline_with_all_it_started(
    runner: ShellRunner, gone: Any
) -> None:
    code = """
        import os, subprocess, sys, time
        child = subprocess.Popen(["sleep", "600"])
        open("pids", "w").write(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    """
    start = time.monotonic()
    with pytest.raises(WorkerCrashed, match="timeout:run"):
        runner.run([sys.executable, "-c", textwrap.dedent(code)], timeout=1)
    assert time.monotonic() - start < 10
    pids = [int(pid) for pid in (Path(runner.workspace) / "pids").read_text().split()]
    assert all(map(gone, pids))
    assert runner.run(["echo", "next"], timeout=10).stdout == b"next\n"


def test_run_04_a_flood_is_cut_off_and_its_writer_ended(runner: ShellRunner, gone: Any) -> None:
    flood = "echo $$ >pid; exec cat /dev/zero"
    with pytest.raises(WorkerCrashed, match="run wrote more than 1000000 bytes"):
        runner.run(["sh", "-c", flood], timeout=30, max_output=1_000_000)
    pid = int((Path(runner.workspace) / "pid").read_text())
    assert gone(pid)
    exact = runner.run(["head", "-c", "1000", "/dev/zero"], timeout=10, max_output=1000)
    assert exact.stdout == bytes(1000)
    with pytest.raises(WorkerCrashed, match="more than 999 bytes"):
        runner.run(["head", "-c", "1000", "/dev/zero"], timeout=10, max_output=999)


def test_run_04_without_us_the_device_ends_a_hang_itself(tmp_path: Path, gone: Any) -> None:
    (tmp_path / "edgekit-abcdef").mkdir()
    words = [str(tmp_path / "edgekit-abcdef"), "1", "1", "sh", "-c", "echo $$; exec sleep 600"]
    command = ["sh", "-c", scripts.RUN, "sh", *words]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.returncode == 137
    assert gone(int(done.stdout))


def test_run_08_a_reused_process_number_is_left_alone(tmp_path: Path, gone: Any) -> None:
    workspace = tmp_path / "edgekit-abcdef"
    workspace.mkdir()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as innocent:
        stat_line = Path(f"/proc/{innocent.pid}/stat").read_text()
        start = int(stat_line.rpartition(")")[2].split()[19])
        job = workspace / ".edgekit-job-1"
        command = ["sh", "-c", scripts.KILL, "sh", str(workspace)]
        for wrong in (start - 1, ""):
            job.write_text(f"{innocent.pid} {wrong}\n")
            subprocess.run(command, check=True)
            assert not job.exists() and innocent.poll() is None
        job.write_text(f"{innocent.pid} {start}\n")
        subprocess.run(command, check=True)
        assert gone(innocent.pid)


def test_run_06_only_a_whole_answer_counts(runner: ShellRunner, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is no such file"):
        runner.pull("absent", tmp_path / "back")
    big = Path(runner.workspace) / "big"
    big.write_bytes(bytes(5000))
    with pytest.raises(BadData, match="more than 1000 bytes"):
        runner.pull("big", tmp_path / "back", max_bytes=1000)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("unplug@open", DeviceUnreachable, "link broke"),
        pytest.param("hang@open", DeviceUnreachable, "timeout:open", marks=pytest.mark.slow),
        pytest.param("hang@push", DeviceUnreachable, "timeout:push", marks=pytest.mark.slow),
        pytest.param("hang@run", WorkerCrashed, "timeout:run", marks=pytest.mark.slow),
        pytest.param("hang@pull", DeviceUnreachable, "timeout:pull", marks=pytest.mark.slow),
        ("unplug@run", DeviceUnreachable, "link broke"),
        ("unplug@pull", DeviceUnreachable, "link broke"),
        ("flood@run", WorkerCrashed, "run wrote more than"),
        ("full@push", StorageError, "No space left"),
        ("spoil@push", TrustError, "arrived damaged"),
        ("spoil@pull", TrustError, "arrived damaged"),
    ],
)
def test_run_04_05_07_each_fault_has_its_error(
    tmp_path: Path, fault: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    with (
        pytest.raises(error, match=words),
        open_runner(f"fake:phone?fault={fault}", timeout=3) as runner,
    ):
        runner.push(tmp_path / "model", "model")
        runner.run(["true"], timeout=0.5 if fault == "hang@run" else 30, max_output=100_000)
        runner.pull("model", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    with open_runner("fake:phone") as again:  # the lease is free, and the device as before
        again.push(tmp_path / "model", "model")


def test_a_fault_that_nobody_knows_is_refused() -> None:
    for fault in ("melt@run", "hang@tea", "hang"):
        with (
            pytest.raises(UsageError, match="no known fault"),
            open_runner(f"fake:a?fault={fault}"),
        ):
            pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_run_07_a_full_disk_is_said(runner: ShellRunner, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"x" * 100_000)
    (Path(runner.workspace) / "model").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        runner.push(tmp_path / "here", "model")


def test_run_11_a_cancelled_run_leaves_nothing(url: str, gone: Any) -> None:
    cancel = Cancel()
    timer = threading.Timer(0.8, cancel.ask)
    workspace = ""
    try:
        with pytest.raises(Cancelled), open_runner(url, cancel=cancel) as runner:
            workspace = runner.workspace
            timer.start()
            runner.run(["sh", "-c", f"echo $$ >{workspace}.pid; exec sleep 600"], timeout=60)
    finally:
        timer.cancel()
        cancel.close()
    pid = Path(f"{workspace}.pid")
    assert not Path(workspace).exists()
    assert gone(int(pid.read_text()))
    pid.unlink()


@pytest.mark.parametrize(
    ("number", "again"),
    [
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
        (signal.SIGTERM, False),
        (signal.SIGTERM, True),
    ],
)
def test_run_11_signals_leave_nothing(
    url: str, tmp_path: Path, number: int, again: bool, gone: Any, eventually: Any
) -> None:
    code = f"""
        import sys
        from edgekit.bench.interrupts import ended_by_signals
        from edgekit.bench.runners import open_runner
        with ended_by_signals(), open_runner({url!r}) as runner:
            print(runner.workspace, flush=True)
            runner.run(["sh", "-c", "echo $$ >../{tmp_path.name}.pid; exec sleep 600"], timeout=60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process, process.stdout:
        workspace = Path(process.stdout.readline().decode().strip())
        pid = workspace.parent / f"{tmp_path.name}.pid"
        assert eventually(lambda: pid.exists() and pid.read_text().strip() != "")
        process.send_signal(number)
        if again:
            # While it cleans up.
            time.sleep(0.1)
            process.send_signal(number)
        assert process.wait(30) != 0
    assert not workspace.exists()
    assert gone(int(pid.read_text()))
    pid.unlink()
    with open_runner(url):
        pass  # the lease is free


def test_what_a_killed_holder_left_is_deleted_by_the_next(url: str) -> None:
    code = f"""
        import os, signal
        from edgekit.bench.runners import open_runner
        with open_runner({url!r}) as runner:
            print(runner.workspace, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    workspace = Path(done.stdout.decode().strip())
    assert done.returncode == -signal.SIGKILL and workspace.is_dir()
    # On one machine under another name is another device, whose workspace is none of ours.
    with open_runner("fake:neighbour") as neighbour, open_runner(url):
        assert not workspace.exists()
        assert Path(neighbour.workspace).is_dir()


def test_pulling_leaves_no_file_open(runner: ShellRunner, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    runner.push(tmp_path / "a", "a")
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(2):
        runner.pull("a", tmp_path / "back")
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_another_state_folders_job_is_no_leftover(tmp_path: Path) -> None:
    # Two containers may have one host name, user and home; each has its own leases all the same.
    with open_runner("fake:shared") as first:
        (tmp_path / "state").rename(tmp_path / "of-the-other")
        with open_runner("fake:shared") as second:
            assert Path(first.workspace).is_dir() and Path(second.workspace).is_dir()
        assert Path(first.workspace).is_dir()


def test_facts_are_the_devices(runner: ShellRunner) -> None:
    facts = runner.facts()
    assert facts["machine"] == os.uname().machine and facts["kernel"] == os.uname().release
    assert facts["cores"] == os.cpu_count() and facts["os"] == os.uname().sysname


def only(folder: Path, programs: dict[str, str]) -> str:
    """A PATH of these programs, each under a name, and of nothing else."""
    folder.mkdir()
    for name, program in programs.items():
        found = shutil.which(program)
        if found is None:
            pytest.skip(f"{program} is not installed: apt-get install -y {program}")
        (folder / name).symlink_to(found)  # busybox and toybox go by the name they are called
    return str(folder)


TOOLS = [
    *("cat", "chmod", "cut", "env", "grep", "head", "mkdir", "mktemp", "rm", "sed"),
    *("sleep", "sha256sum"),
]
SYSTEMS = {
    **{shell: {"sh": shell} for shell in ("dash", "bash", "mksh", "busybox")},
    "android": {"sh": "mksh"} | dict.fromkeys([*TOOLS, "setsid", "uname", "printf"], "toybox"),
    "without setsid": {"sh": "dash", "perl": "perl"} | dict(zip(TOOLS, TOOLS, strict=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_scripts_run_on_every_common_system(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: Any
) -> None:
    path = only(tmp_path / "bin", SYSTEMS[system])
    rest = [] if len(SYSTEMS[system]) > 1 else [os.environ["PATH"]]
    monkeypatch.setenv("PATH", ":".join([path, *rest]))
    (tmp_path / "here").write_bytes(b"content")
    with open_runner("local:") as runner:
        runner.push(tmp_path / "here", "it's\\")
        runner.pull("it's\\", tmp_path / "back")
        done = runner.run(["sh", "-c", "cat; kill -SEGV $$"], timeout=10, stdin=b"in")
        assert (done.stdout, done.stderr, done.death()) == (b"in", "", "died from SIGSEGV")
        with pytest.raises(WorkerCrashed, match="timeout:run"):
            runner.run(["sh", "-c", "echo $$ >pid; exec sleep 600"], timeout=0.5)
        pid = int((Path(runner.workspace) / "pid").read_text())
        assert gone(pid)
        assert system != "android" or runner.facts()["os"] == os.uname().sysname
        workspace = runner.workspace
    assert not Path(workspace).exists()
