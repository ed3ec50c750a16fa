"""The public names: they resolve, they are all told, and importing edgekit costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit


@pytest.mark.parametrize("name", edgekit.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(edgekit, name) is not None


def test_the_names_are_sorted_and_listed_by_dir() -> None:
    assert edgekit.__all__ == sorted(edgekit.__all__)
    assert set(edgekit.__all__) <= set(dir(edgekit))


def test_type_checkers_are_told_the_same_names() -> None:
    tree = ast.parse(Path(edgekit.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {}
    for node in ast.walk(block):
        if isinstance(node, ast.ImportFrom):
            told |= {a.asname: f"{node.module}:{a.name}" for a in node.names}
    told["errors"] = "edgekit.errors:"
    assert told == edgekit._HOMES
    assert sorted(told) == edgekit.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = edgekit.no_such_name


def test_importing_edgekit_imports_no_other_library() -> None:
    code = (
        "import sys, edgekit;"
        "print(sorted(m for m in ('torch', 'numpy', 'click', 'pydantic', 'rich', 'PIL')"
        " if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
