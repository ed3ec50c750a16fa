"""Leases: one job at a time on a device (RUN-08)."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from edgekit.bench.leases import lease
from edgekit.bench.process import Cancel, Cancelled
from edgekit.bench.runners import device_identity, open_runner
from edgekit.errors import Locked, StorageError
from edgekit.export import measuring

HOLD = """
    import sys, time
    from edgekit.bench.leases import lease
    with lease("phone", what="adb://phone"):
        print("held", flush=True)
        time.sleep(600)
"""


def holder() -> subprocess.Popen[bytes]:
    """A process that has the lease of ``phone``."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_run_08_the_second_job_waits_and_says_for_whom(state: Path) -> None:
    with holder() as process:
        said: list[str] = []
        with (
            pytest.raises(Locked, match=f"in use by process {process.pid} since"),
            lease("phone", what="adb://phone", waiting=said.append),
        ):
            pass
        assert said == []
        with lease("another phone", what="adb://other"):
            pass
        threading.Timer(0.5, process.kill).start()
        start = time.monotonic()
        with lease("phone", what="adb://phone", wait=30, waiting=said.append):
            assert 0.3 < time.monotonic() - start < 10
        assert len(said) == 1 and f"process {process.pid}" in said[0]


def test_run_08_a_killed_holder_has_no_lease() -> None:
    with holder() as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lease("phone", what="adb://phone"):
            pass


def test_run_08_a_reused_process_number_is_not_taken_for_the_holder(state: Path) -> None:
    with lease("phone", what="adb://phone"):
        (path,) = (state / "leases").iterdir()
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, "started": "1"}))
        with pytest.raises(Locked, match="in use by another job"), lease("phone", what="p"):
            pass
        path.write_text("not JSON")
        with pytest.raises(Locked, match="in use by another job"), lease("phone", what="p"):
            pass


def test_an_export_waits_for_another_measurement_and_is_not_lost_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    held = lease(device_identity("local:"), what="this machine")
    with held:
        monkeypatch.setattr(measuring, "_WAIT_SECONDS", 0.5)
        with measuring.alone(said.append):
            pass
    assert "waiting for it" in said[0]
    assert said[1].endswith("still: measured beside it")
    with (
        measuring.alone(said.append),
        pytest.raises(Locked),
        lease(device_identity("local:"), what="this machine"),
    ):
        pass
    assert len(said) == 2


def test_a_wait_can_be_called_off() -> None:
    cancel = Cancel()
    with lease("phone", what="p"):
        timer = threading.Timer(0.3, cancel.ask)
        timer.start()
        with pytest.raises(Cancelled), lease("phone", what="p", wait=60, cancel=cancel):
            pass
    cancel.close()


def test_a_state_folder_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="EDGEKIT_STATE"), open_runner("local:"):
        pass


def test_run_08_an_open_runner_has_the_lease_and_two_devices_do_not_share_one() -> None:
    both = open_runner("fake:a"), open_runner("fake:b")
    with both[0], both[1], pytest.raises(Locked), open_runner("fake:a"):
        pass
    with open_runner("fake:a"):
        pass
