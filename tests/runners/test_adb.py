"""adb devices, on an adb that is a script: RUN-01, 04, 05, 06, 07 and 08."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit.bench.runners import open_runner
from edgekit.bench.runners.adb import AdbLink
from edgekit.bench.runners.url import parse
from edgekit.errors import (
    DeviceUnreachable,
    EdgekitError,
    MissingDependency,
    StorageError,
    TrustError,
    UsageError,
    WorkerCrashed,
)


class Phone:
    """The fake adb's folder and its device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / "it's $(touch pwned) ;`touch pwned`"
        self.url = f"adb://PHONE1{self.storage}"
        self.storage.mkdir()

    def calls(self) -> list[list[str]]:
        """The argument list of every call so far."""
        return [json.loads(line) for line in (self.folder / "argv").read_text().splitlines()]

    def breaks(self, fault: str, at: int = 0) -> None:
        """Has a fault happen from the next call on, or a later one."""
        count = self.folder / "count"
        done = int(count.read_text()) if count.exists() else 0
        (self.folder / "fault").write_text(f"{fault}@{done + 1 + at}")

    def repaired(self) -> None:
        """As it was."""
        (self.folder / "fault").unlink()


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    """A device behind an adb on PATH."""
    program = tmp_path / "bin" / "adb"
    program.parent.mkdir()
    source = Path(__file__).with_name("fake_adb.py").read_text()
    program.write_text(source.replace("/usr/bin/env python3", sys.executable, 1))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_ADB", str(tmp_path))
    return Phone(tmp_path)


def test_run_01_the_device_reads_every_word_as_it_is(
    phone: Phone, tmp_path: Path, hostile: tuple[str, ...], echo: str
) -> None:
    (tmp_path / "here").write_bytes(os.urandom(5000))
    with open_runner(phone.url) as runner:
        runner.push(tmp_path / "here", "a/-f '$(touch pwned)'\n\\")
        runner.pull("a/-f '$(touch pwned)'\n\\", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes()
        done = runner.run([sys.executable, "-c", echo, *hostile], timeout=30, env={"WORD": "'\n"})
        assert json.loads(done.stdout) == [list(hostile), "'\n"]
    calls = phone.calls()
    assert all(call[:2] == ["-s", "PHONE1"] for call in calls)
    # One word per call to the shell, so that adb itself joins nothing.
    assert {len(call) for call in calls if call[2] == "shell"} == {4}
    assert list(phone.storage.iterdir()) == []
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gone", "device 'PHONE1' not found"),
        ("offline", "the device is offline"),
        ("unauthorized", "the device is unauthorized"),
    ],
)
def test_run_05_a_device_that_is_not_ready_is_said(phone: Phone, fault: str, words: str) -> None:
    phone.breaks(fault)
    with pytest.raises(DeviceUnreachable, match=words), open_runner(phone.url):
        pass
    with pytest.raises(DeviceUnreachable, match="OTHER"), open_runner("adb://OTHER"):
        pass


@pytest.mark.parametrize(
    "fault",
    [
        "unplug",
        *(
            pytest.param(fault, marks=pytest.mark.slow)
            for fault in ("gone", "offline", "unauthorized", "reboot", "server")
        ),
    ],
)
def test_run_05_a_link_that_breaks_in_a_run_gives_no_result_and_frees_the_lease(
    phone: Phone, fault: str
) -> None:
    with (
        pytest.raises(DeviceUnreachable),
        open_runner(phone.url) as runner,
    ):
        phone.breaks(fault)
        runner.run(["echo", "0.123 ms"], timeout=10)
        pytest.fail("a broken link gave a result")
    phone.repaired()
    with open_runner(phone.url) as runner:
        assert runner.run(["echo", "1"], timeout=10).stdout == b"1\n"
    assert list(phone.storage.iterdir()) == []  # the first one's is gone too


@pytest.mark.slow
def test_run_04_a_hang_ends_at_the_deadline(phone: Phone) -> None:
    with open_runner(phone.url) as runner:
        phone.breaks("hang")
        with pytest.raises(WorkerCrashed, match="timeout:run"):
            runner.run(["true"], timeout=0.5)


def test_run_06_an_exit_status_does_not_depend_on_adb(phone: Phone) -> None:
    with open_runner(phone.url) as runner:
        phone.breaks("no-status")
        assert runner.run(["sh", "-c", "exit 3"], timeout=10).code == 3


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("spoil", TrustError, "arrived damaged"),
        ("full", StorageError, "No space left"),
        ("silent-push", EdgekitError, "No such file"),
        ("gone", DeviceUnreachable, "not found"),
    ],
)
def test_run_07_what_did_not_arrive_is_not_run(
    phone: Phone, tmp_path: Path, fault: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "model").write_bytes(b"weights")
    with open_runner(phone.url) as runner:
        phone.breaks(fault)
        with pytest.raises(error, match=words):
            runner.push(tmp_path / "model", "model")


def test_run_08_a_serial_behind_another_server_is_another_device(
    phone: Phone, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = AdbLink(parse(phone.url)).identity
    assert AdbLink(parse("adb://PHONE1")).identity == here  # whatever the folder
    monkeypatch.setenv("ANDROID_ADB_SERVER_ADDRESS", "lab-2")
    assert AdbLink(parse(phone.url)).identity != here


def test_workspaces_are_made_where_android_lets_programs_run(phone: Phone) -> None:
    assert AdbLink(parse("adb://PHONE1")).folder == "/data/local/tmp"
    with pytest.raises(UsageError, match="no such folder"), open_runner("adb://PHONE1/no/such"):
        pass


def test_no_adb_at_all_is_a_missing_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(MissingDependency, match="adb is not installed"), open_runner("adb://a"):
        pass


def test_the_server_is_never_restarted(phone: Phone) -> None:
    verbs: set[Any] = set()
    with pytest.raises(DeviceUnreachable), open_runner(phone.url) as runner:
        phone.breaks("offline")
        runner.run(["true"], timeout=5)
    verbs = {call[2] for call in phone.calls()}
    assert verbs <= {"get-state", "push", "shell"}
