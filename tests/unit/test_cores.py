"""Sharing the machine: how threads wait, and how many there are while others compute too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from edgekit import cores

ASK = """
import os, sys
from edgekit.cli.main import main
assert main(["devices"]) == 0 and "torch" not in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"))
"""


def told(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    ruled = (*cores._POLICIES, cores._OURS)
    own = {k: v for k, v in os.environ.items() if k not in ruled}
    done = subprocess.run(
        [sys.executable, "-c", code], env=own | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_threads_of_the_command_spin_briefly() -> None:
    assert told(ASK) == "1000"


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [("OMP_WAIT_POLICY", "ACTIVE", "None"), ("GOMP_SPINCOUNT", "infinity", "infinity")],
)
def test_the_users_policy_holds(name: str, value: str, seen: str) -> None:
    assert told(ASK, **{name: value}) == seen


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"GOMP_SPINCOUNT": "1000", cores._OURS: "1", "A": "b"}, {"A": "b"}),
        ({"GOMP_SPINCOUNT": "1000"}, {"GOMP_SPINCOUNT": "1000"}),
    ],
)
def test_what_is_measured_waits_as_it_comes(given: dict[str, str], left: dict[str, str]) -> None:
    cores.as_it_comes(given)
    assert given == left


def test_cores_are_shared_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "usable", lambda: 8)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        with cores.shared(3):
            assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (2, "2")
        assert torch.get_num_threads() == 8 and "OMP_NUM_THREADS" not in os.environ
        with pytest.raises(ValueError), cores.shared(100):
            assert torch.get_num_threads() == 1
            raise ValueError
        assert torch.get_num_threads() == 8 and "OMP_NUM_THREADS" not in os.environ
    finally:
        torch.set_num_threads(before)


def test_the_users_threads_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    before = torch.get_num_threads()
    with cores.shared(3):
        assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (before, "5")
    assert os.environ["OMP_NUM_THREADS"] == "5"
