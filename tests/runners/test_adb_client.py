"""The real adb, talking to a device that is a script (`fake_adbd`): RUN-01, 04, 06."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.bench.runners import open_runner
from edgekit.errors import DeviceUnreachable, WorkerCrashed

ADB = shutil.which("adb")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ADB is None, reason="adb is not installed: apt-get install -y adb"),
]


@pytest.fixture
def serial(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serial of a device that a server of adb's own, on a port of its own, is connected to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(probe.getsockname()[1]))
    command = [sys.executable, str(Path(__file__).with_name("fake_adbd.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as device:
        assert device.stdout is not None and ADB is not None
        name = f"127.0.0.1:{device.stdout.readline().strip()}"
        try:
            done = subprocess.run(
                [ADB, "connect", name], capture_output=True, text=True, timeout=60
            )
            assert "connected to" in done.stdout
            yield name
        finally:
            subprocess.run([ADB, "kill-server"], capture_output=True, timeout=60, check=False)
            device.terminate()


def test_run_01_words_and_files_pass_through_adb_as_they_are(
    serial: str, tmp_path: Path, hostile: tuple[str, ...], echo: str, gone: Any
) -> None:
    folder = tmp_path / "it's $(touch pwned)"
    folder.mkdir()
    (tmp_path / "here").write_bytes(os.urandom(500_000))
    with open_runner(f"adb://{serial}{folder}") as runner:
        for name in ("-rf", "a b/$(touch pwned)\n'`id`\\", "*"):
            runner.push(tmp_path / "here", name)
            runner.pull(name, tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes()
        done = runner.run([sys.executable, "-c", echo, *hostile], timeout=60, env={"WORD": "'\n"})
        assert json.loads(done.stdout) == [list(hostile), "'\n"]
        done = runner.run(["sh", "-c", "cat; echo oops >&2; exit 3"], timeout=60, stdin=b"a\0b\r\n")
        assert (done.code, done.stdout, done.stderr) == (3, b"a\0b\r\n", "oops\n")
        with pytest.raises(WorkerCrashed, match="timeout:run"):
            runner.run(["sh", "-c", "echo $$ >pid; exec sleep 600"], timeout=1)
        assert gone(int((Path(runner.workspace) / "pid").read_text()))
    assert list(folder.iterdir()) == [] and not list(tmp_path.rglob("pwned"))


def test_run_05_a_device_that_is_not_there_is_said(serial: str) -> None:
    with pytest.raises(DeviceUnreachable, match="'nobody' not found"), open_runner("adb://nobody"):
        pass
