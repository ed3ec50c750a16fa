"""Runs the README: every Python block and every command in it, in order, in a directory of its own.

A block ``python file=NAME`` (or ``toml``) is written to that file, a ``run`` one is executed.
Commands that start with ``edgekit`` are run for real, through the installed entry point, and must
end with exit code 0 or with the one that a comment (``# exits with 7``) tells. What ``make`` and
``pip`` lines name must exist. The tables are held to the code.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

import edgekit
from edgekit import device
from edgekit.cli.export import command as export
from edgekit.names import EXIT_CODES
from edgekit.parity import TOLERANCES
from edgekit.schemas import validate

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)([^\n]*)\n(.*?)^```$", README, re.M | re.S)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first column has that heading."""
    table = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", README, re.M)
    assert table is not None, heading
    return [[c.strip() for c in line.strip("|").split("|")] for line in table[1].splitlines()]


def commands(body: str) -> list[tuple[list[str], int]]:
    """The words of every command, and its exit code."""
    found = []
    for line in body.replace("\\\n", " ").splitlines():
        code = re.search(r"# exits with (\d+)", line)
        if words := shlex.split(line, comments=True):
            found.append((words, int(code[1]) if code else 0))
    return found


# -- what is told is what there is ----------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {language for language, _, _ in BLOCKS} == {"python", "sh", "text", "toml"}
    assert all(re.fullmatch(r"( file=\S+)?( run)?", info) for _, info, _ in BLOCKS)
    assert not [info for language, info, _ in BLOCKS if language in ("python", "toml") and not info]


def test_make_and_pip_lines_name_what_there_is() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    shell = [body for language, _, body in BLOCKS if language == "sh"]
    lines = [words for body in shell for words, _ in commands(body)]
    made = {words[1] for words in lines if words[0] == "make"}
    assert made == {"demo", "test"}
    assert made | set(re.findall(r"`make ([a-z-]+)`", README)) <= targets
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    packages = {re.split(r"[<>=\[]", line)[0] for lines in extras.values() for line in lines}
    for words in lines:
        if words[0] == "pip":
            assert words[1] == "install" and set(words[2:]) <= packages | {"edgekit"}, words
    assert set(re.findall(r"pip install '\.\[([a-z]+)\]'", README)) <= set(extras)


def test_the_exit_codes_are_those_of_the_table_of_names() -> None:
    assert {int(code): meaning for code, meaning in rows("exit code")} == EXIT_CODES


def test_every_option_of_export_is_told_and_no_other() -> None:
    options = [p for p in export.params if isinstance(p, click.Option)]
    known = {name for p in options for name in p.opts if name.startswith("--")}
    told = {name for row in rows("option") for name in re.findall(r"--[a-z-]+", row[0])}
    assert told == known - {"--verbose", "--quiet"}
    limits = {p.name: p.default for p in options}
    assert f"{limits['calib_limit']} samples" in README
    assert f"{limits['eval_limit']} samples" in README


def test_the_devices_are_the_profiles_that_there_are() -> None:
    told = {row[0].strip("`"): row[1:] for row in rows("id")}
    assert set(told) == set(device.available())
    for name, (shown, targets) in told.items():
        profile = device.load(name)
        assert shown.startswith(profile.name)
        assert targets.split(", ") == list(dict.fromkeys(t.target for t in profile.targets))


def test_the_figures_of_verify_are_the_frozen_ones() -> None:
    told = {row[0].strip("`"): row[1] for row in rows("scheme")}
    int8, float_ = TOLERANCES["w8a8"], TOLERANCES["fp32"]
    assert f"{int8.within_fraction:.1%}".replace("%", " %") in told["w8a8"]
    assert f"within {int8.within_steps:.0f} quantization steps" in told["w8a8"]
    assert f"SQNR at least {int8.sqnr_db:.0f} dB" in told["w8a8"]
    assert f"{int8.agreement:.1%}".replace("%", " %") in told["w8a8"]
    assert float_.atol == 1e-4 and float_.rtol == 1e-3
    assert "within 1e-4 + 0.1 %" in told["fp32"]
    assert f"SQNR at least {float_.sqnr_db:.0f} dB" in told["fp32"]
    assert {t.repeats for t in TOLERANCES.values()} == {20}
    assert "over 20 runs" in told["all"]


def test_the_public_names_are_all_told() -> None:
    told = README.partition("Public names:")[2].partition("\n\n")[0]
    assert re.findall(r"`(\w+)`", told) == edgekit.__all__


def test_the_files_it_names_are_there() -> None:
    for name in re.findall(r"\b(?:[A-Z]+\.md|(?:recipes|edgekit)/[\w/]+\.(?:py|md))\b", README):
        assert (ROOT / name).is_file(), name


# -- what it says to do works ---------------------------------------------------------------------


@pytest.mark.runtime
def test_the_readme_does_what_it_says(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "EDGEKIT_STORE": str(tmp_path / "store"),
        "PYTHONWARNINGS": "ignore",
        "NO_COLOR": "1",
    }
    entry_point = shutil.which("edgekit", path=str(Path(sys.executable).parent))
    assert entry_point is not None
    ran = []
    for language, info, body in BLOCKS:
        if name := re.search(r"file=(\S+)", info):
            (tmp_path / name[1]).write_text(body, encoding="utf-8")
        if language == "python" and "run" in info.split():
            run([sys.executable, "-c", body], 0, tmp_path, environment)
        if language != "sh":
            continue
        for words, code in commands(body):
            if words[0] == "edgekit":
                run([entry_point, *words[1:]], code, tmp_path, environment)
                ran.append(words[1])
            else:
                assert words[0] in ("make", "pip"), words
    assert {"devices", "export", "verify", "inspect", "bench"} <= set(ran)
    for bundle in ("bundle", "second"):
        validate(read(tmp_path / "out" / bundle / "manifest.json"))
    assert not (tmp_path / "out" / "never").exists()


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def run(command: list[str], code: int, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
