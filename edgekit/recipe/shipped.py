"""The recipes that come with edgekit."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from edgekit.errors import StorageError, UsageError
from edgekit.names import unknown

__all__ = ["available", "find", "summary"]


def available() -> dict[str, Path]:
    """Scripts by name, sorted: those in an installed wheel, else in the checkout."""
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "_recipes", package.parent / "recipes"):
        found = sorted(directory.glob("*.py"))
        if found:
            return {path.stem: path for path in found}
    raise StorageError(
        "this installation of edgekit lacks its recipes",
        hint="install it again: pip install --force-reinstall edgekit",
    )


def find(name: str) -> Path:
    """A script by its path, or one that comes along by its name.

    Raises:
        UsageError: neither; the message suggests the nearest name.
    """
    path = Path(name)
    if path.suffix == ".py" or path.is_file():
        if path.is_file():
            return path
        raise UsageError(f"no recipe {path}", hint="`edgekit recipes` lists those that come along")
    known = available()
    if name not in known:
        raise UsageError(unknown("recipe", name, known), hint="or name a script, ending in .py")
    return known[name]


def summary(path: Path) -> str:
    """The first line of a script's docstring, without running it.

    Raises:
        UsageError: it is no Python.
    """
    try:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.msg}") from error
    return inspect.cleandoc(doc).partition("\n")[0] if doc else ""
