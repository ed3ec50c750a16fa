"""Temporary folders: whole while their process lives, gone soon after."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgekit import scratch as module
from edgekit.scratch import scratch

HOLD = """
import sys
from edgekit.scratch import scratch
with scratch("held") as folder:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "large.bin").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of these tests and their processes alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "_swept", set())
    return tmp_path


def holder() -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_is_empty_and_gone_afterwards(place: Path) -> None:
    with scratch("one") as folder:
        assert folder.is_relative_to(place) and list(folder.iterdir()) == []
        (folder / "x").write_text("x")
    assert list(place.iterdir()) == []
    with pytest.raises(ValueError, match="mine"), scratch("two") as folder:
        raise ValueError("mine")
    assert list(place.iterdir()) == []


def test_a_killed_processes_folder_goes_with_the_next_and_a_living_ones_stays(place: Path) -> None:
    (dead, left), (alive, kept) = holder(), holder()
    dead.kill()
    dead.communicate()
    assert left.is_dir()
    with scratch("next"):
        assert not left.parent.exists()
        assert (kept / "a" / "b" / "large.bin").is_file()
    alive.communicate("")
    assert list(place.iterdir()) == []


def test_what_is_not_ours_is_left_alone(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".owner").touch()
    (place / "edgekit-link").symlink_to(elsewhere)
    (place / "edgekit-users").mkdir()  # no lock in it: a folder of the user's own
    (place / "edgekit-file").touch()
    with scratch("next"):
        pass
    names = sorted(path.name for path in place.iterdir())
    assert names == ["edgekit-file", "edgekit-link", "edgekit-users", "elsewhere"]


def test_processes_that_start_together_sweep_together(place: Path) -> None:
    for i in range(300):
        (place / f"edgekit-{i}").mkdir()
        (place / f"edgekit-{i}" / ".owner").touch()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(module.sweep, place) for _ in range(4)]:
            done.result()
    assert list(place.iterdir()) == []


def test_a_folder_is_not_swept_by_its_own_process(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch("outer") as outer:
        monkeypatch.setattr(module, "_swept", set())
        with scratch("inner"):
            assert outer.is_dir()
