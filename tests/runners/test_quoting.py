"""Words that shells read anew (RUN-01), and names of files on a device."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bench.runners.quoting import check_name, quote
from edgekit.errors import UsageError

SHELLS = [
    s for s in ("sh", "dash", "bash", "mksh", "ksh", "zsh", "fish", "busybox") if shutil.which(s)
]


def read_anew(shell: str, words: list[str], folder: Path) -> list[str]:
    """What a shell makes of a line of quoted words; an escaped one would write ``pwned``."""
    command = [shell, "sh", "-c"] if shell == "busybox" else [shell, "-c"]
    line = " ".join(["printf", quote("%s\\0"), *map(quote, words)])
    done = subprocess.run([*command, line], capture_output=True, cwd=folder, timeout=30, check=True)
    assert not (folder / "pwned").exists()
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("shell", SHELLS)
def test_run_01_every_shell_reads_hostile_words_as_they_are(
    shell: str, hostile: tuple[str, ...], tmp_path: Path
) -> None:
    assert read_anew(shell, list(hostile), tmp_path) == list(hostile)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_run_01_any_words_survive_two_readings(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert read_anew("sh", words, folder) == words
    line = " ".join(["printf", quote("%s\\0"), *map(quote, words)])
    twice = ["sh", "-c", " ".join(map(quote, ["sh", "-c", line]))]
    done = subprocess.run(twice, capture_output=True, cwd=folder, timeout=30, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words


def test_words_that_no_argument_can_carry_are_refused() -> None:
    for word in ("a\0b", "\udc80"):
        with pytest.raises(UsageError, match="a word of a command"):
            quote(word)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/passwd", "a/../b", "a//b", "a/", "./a", "x" * 256, "a\0b"]
)
def test_run_01_names_that_leave_the_workspace_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


def test_names_of_our_own_are_refused_and_all_others_are_taken() -> None:
    for name in (".edgekit-workspace", ".edgekit-job-1", ".edgekit-x/y"):
        with pytest.raises(UsageError, match="edgekit's own"):
            check_name(name)
    for name in ("-rf", "a b", "$(id)", "é\n", "..a", "a/.edgekit-x", "x" * 255):
        assert check_name(name) == name
