"""Real artifacts for every runtime, converted once for this folder's tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make_artifacts.py` fills; about 15 seconds."""
    folder = tmp_path_factory.mktemp("artifacts")
    script = Path(__file__).with_name("make_artifacts.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder
