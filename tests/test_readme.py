"""Runs the README: every Python block and every command in it, in order, in a directory of its own.

Blocks of ``python file=NAME`` are written to that file, ``run`` ones are executed. Commands that
start with ``edgekit`` are run for real; ``make TARGET`` must name a target of the Makefile.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit.names import EXIT_CODES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", README, re.M | re.S)


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {language for language, _, _ in BLOCKS} == {"python", "sh"}
    assert len(BLOCKS) >= 6


def test_make_lines_name_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", README)) - {"a"}
    assert {"demo", "test", "help"} <= named <= targets | {"demo"}


def test_the_exit_codes_are_all_told() -> None:
    told = README.partition("**Exit codes**:")[2].partition("\n\n")[0]
    assert {int(n) for n in re.findall(r"\b\d+\b", told)} == set(EXIT_CODES)


def test_the_public_names_are_all_told() -> None:
    told = README.partition("Public names:")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`", told)) == sorted(edgekit.__all__)


@pytest.mark.runtime
def test_the_readme_does_what_it_says(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "EDGEKIT_STORE": str(tmp_path / "store"),
        "PYTHONWARNINGS": "ignore",
        "NO_COLOR": "1",
    }
    ran = 0
    for language, info, body in BLOCKS:
        if language == "python":
            name = re.search(r"file=(\S+)", info)
            if name:
                (tmp_path / name.group(1)).write_text(body, encoding="utf-8")
            if "run" in info.split():
                _run([sys.executable, "-c", body], tmp_path, environment)
                ran += 1
            continue
        for line in body.splitlines():
            words = shlex.split(line)
            if words and words[0] == "edgekit":
                _run([sys.executable, "-m", "edgekit.cli.main", *words[1:]], tmp_path, environment)
                ran += 1
            else:
                assert words[:1] in ([], ["make"]), line
    assert ran >= 7
    assert (tmp_path / "out" / "bundle" / "manifest.json").is_file()


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
