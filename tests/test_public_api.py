"""The public names: they resolve, they are all told, and importing edgekit costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgekit


@pytest.mark.parametrize("name", edgekit.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(edgekit, name) is not None


def test_the_names_are_sorted_and_listed_by_dir() -> None:
    assert edgekit.__all__ == sorted(edgekit.__all__)
    assert set(edgekit.__all__) <= set(dir(edgekit))


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
