"""Rules of the repository itself: one version, one table of names, layers, a light device side."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import edgekit
from edgekit.names import EXTRAS, TARGETS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "edgekit"
RUNTIME = sorted((PACKAGE / "runtime").rglob("*.py"))

# What the device side may import: of ours, and beside it the wheels that it drives, when it must.
RUNTIME_OURS = ("runtime", "signature", "metrics", "errors", "names")
RUNTIME_LAZILY = {"ai_edge_litert", "executorch", "onnxruntime", "openvino", "torch", "PIL"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def project_files() -> list[Path]:
    """Files that git tracks or would; in an unpacked source archive, every text file."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = done.stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = [str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*")]
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


# -- one version, one table -----------------------------------------------------------------------


def test_the_version_stands_in_one_place(project: dict[str, Any]) -> None:
    assert "version" not in project["project"]
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "edgekit/__init__.py"
    found = re.findall(r"^__version__ = \"(.+)\"$", (PACKAGE / "__init__.py").read_text(), re.M)
    assert found == [edgekit.__version__]
    assert re.fullmatch(r"\d+\.\d+\.\d+", edgekit.__version__)


def test_the_changelog_knows_the_version_or_says_unreleased() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert len(set(headings)) == len(headings)


def test_the_extras_are_the_named_ones(project: dict[str, Any]) -> None:
    assert set(project["project"]["optional-dependencies"]) == set(EXTRAS)
    assert set(metadata.metadata("edgekit").get_all("Provides-Extra") or []) == set(EXTRAS)
    assert set(TARGETS) < set(EXTRAS)


def test_the_core_has_no_framework(project: dict[str, Any]) -> None:
    names = {re.split(r"[<>=]", line)[0] for line in project["project"]["dependencies"]}
    assert names == {"numpy", "click", "pydantic", "rich"}


def test_every_constraint_is_one_exact_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.]*", pin) for pin in pins)
    names = [pin.partition("==")[0] for pin in pins]
    assert len(set(names)) == len(names)


def test_what_the_project_asks_for_is_constrained_within_its_ranges(
    project: dict[str, Any],
) -> None:
    from packaging.requirements import Requirement

    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    extras = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"]]
    for extra in ("dev", "recipes", "text"):
        lines += extras[extra]
    for target in TARGETS:
        lines += extras[target]
    for line in lines:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirement.name]), line


def test_the_console_script_leads_to_main(project: dict[str, Any]) -> None:
    assert project["project"]["scripts"] == {"edgekit": "edgekit.cli.main:main"}
    [point] = metadata.entry_points(group="console_scripts", name="edgekit")
    from edgekit.cli.main import main

    assert point.load() is main


# -- layers ---------------------------------------------------------------------------------------


def test_every_module_has_its_layer(project: dict[str, Any]) -> None:
    [contract] = project["tool"]["importlinter"]["contracts"]
    assert contract["type"] == "layers"
    assert contract["exhaustive"] is True
    named = {
        name.strip().strip("()")
        for layer in contract["layers"]
        for name in re.split(r"[|:]", layer)
    }
    present = {path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    present |= {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert present <= named, f"give these a layer in pyproject.toml: {sorted(present - named)}"


# -- the device side ------------------------------------------------------------------------------

IMPORT_UNDER_GUARD = """
import importlib, sys

OURS, MODULES = {ours!r}, {modules!r}

class Guard:
    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top == "edgekit":
            if rest and rest.partition(".")[0] not in OURS:
                raise ImportError(f"the device side imports {{name}}")
        elif top != "numpy" and top not in sys.stdlib_module_names:
            raise ImportError(f"the device side imports {{name}}")
        return None

sys.meta_path.insert(0, Guard())
for module in MODULES:
    importlib.import_module(module)
"""


def test_the_device_side_imports_numpy_and_itself_only() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in RUNTIME
    ]
    assert modules
    script = IMPORT_UNDER_GUARD.format(ours=RUNTIME_OURS, modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", RUNTIME, ids=lambda path: path.stem)
def test_the_device_side_imports_nothing_else_later_either(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            names = [node.module or ""]
            if node.module == "edgekit":
                names = [f"edgekit.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "edgekit":
                assert rest.partition(".")[0] in RUNTIME_OURS, f"{path.name}:{node.lineno}: {name}"
            else:
                allowed = {"numpy", *RUNTIME_LAZILY, *sys.stdlib_module_names}
                assert top in allowed, f"{path.name}:{node.lineno}: {name}"


def test_the_names_and_errors_import_nothing_but_the_standard_library() -> None:
    script = (
        "import sys; before = set(sys.modules)\n"
        "import edgekit.names, edgekit.errors\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'edgekit'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# -- what must not be in the files ----------------------------------------------------------------


def test_no_file_names_a_machine_or_a_package_host() -> None:
    # Written in pieces, so that this file does not find itself.
    places = [f"/{home}/" for home in ("work", "root", "home/[a-z]+", "Users/[a-z]+", "opt/[a-z]+")]
    hosts = [
        f"{name}\\.{end}" for name, end in (("pypi", "org"), ("files.python" + "hosted", "org"))
    ]
    # Only absolute paths: one that goes on from another word is relative to it.
    pattern = re.compile(rf"(?<![\w.~-])(?:{'|'.join(places)})|{'|'.join(hosts)}|(?<!\w)/tmp/[a-z]")
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line) and path != Path(__file__):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_what_git_tracks_holds_no_build_output() -> None:
    tracked = [path.relative_to(ROOT) for path in project_files()]
    assert not [p for p in tracked if p.suffix in (".pyc", ".whl", ".so") or "out" in p.parts[:1]]


# -- make and CI ----------------------------------------------------------------------------------


def test_make_has_every_target_that_the_documents_name() -> None:
    text = (ROOT / "Makefile").read_text()
    for target in ("demo", "check", "test", "test-full", "bench", "soak", "clean"):
        assert re.search(rf"^{target}:", text, re.M), target
    named = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text()))
    assert named
    assert all(re.search(rf"^{target}:", text, re.M) for target in named)


def fake_make(tmp_path: Path, script: str) -> dict[str, str]:
    """An environment in which ``make`` is ``script``."""
    make = tmp_path / "make"
    make.write_text(f"#!/bin/sh\n{script}\n")
    make.chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("script", "code", "last"),
    [
        ("echo '===== 3 passed in 0.10s ====='", 0, "===== 3 passed in 0.10s ====="),
        (
            "echo '=== 1 failed, 2 passed in 0.10s ==='; echo 'make: *** Error 1' >&2; exit 2",
            2,
            "=== 1 failed, 2 passed in 0.10s ===",
        ),
        ("echo 'ruff found 2 errors'; exit 2", 2, "ruff found 2 errors"),
        ("cat; echo '== 1 passed in 1s =='", 0, "== 1 passed in 1s =="),
    ],
    ids=["passes", "fails", "lint", "reads-no-stdin"],
)
def test_ci_ends_with_the_summary_and_makes_exit_code(
    script: str, code: int, last: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [str(ROOT / ".ci" / "run")],
        env=fake_make(tmp_path, script),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == last
