"""What code a stage is: its own text, all that it reaches in its script, and versions of the rest.

A stage's text is that of its function and, from there, of every function, class and constant of the
script that is named, without comments, layout, docstrings and annotations (see
`edgekit.recipe.script`). Modules of the user's own are taken whole. Of anything else that is
imported, its distribution's version counts.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import edgekit
from edgekit.keys import code, versions
from edgekit.recipe.script import Script, imports
from edgekit.recipe.stages import Recipe

__all__ = ["Code", "class_code", "code_of", "unchanged"]

_ALWAYS = ("numpy",)
_INSTALLED = frozenset(("site-packages", "dist-packages"))
_NO_CODE = ("cli", "__pycache__", "_devices", "_recipes")


@dataclass(frozen=True)
class Code:
    """The code of a stage.

    Attributes:
        text: sha256 of all text of the script and of the user's modules that the stage reaches.
        script: sha256 of what of this is the script's.
        files: the user's modules among it, each with the sha256 of its text.
        versions: by distribution, of what it imports, with edgekit itself and Python.
    """

    text: str
    script: str
    files: Mapping[str, str]
    versions: Mapping[str, str]


def code_of(recipe: Recipe, stage: str) -> Code:
    """The code of one stage of a recipe."""
    parts, modules = _script(recipe.path.read_text(encoding="utf-8")).reach(stage)
    text, packages, files = _digest(parts, modules, recipe.path.parent)
    python = ".".join(map(str, sys.version_info[:2]))
    found = _versions(packages, *_ALWAYS)
    every = {"python": python, "edgekit": _edgekit(), **found}
    return Code(text, _sha("\0".join(parts)), files, every)


def unchanged(code: Mapping[str, Any], script: Path, stage: str) -> bool:
    """Whether the files still say what they said as ``code`` was made; see `Code`."""
    parts, _ = _script(script.read_text(encoding="utf-8")).reach(stage)
    if _sha("\0".join(parts)) != code["script"]:
        return False
    found = {f: Path(f) for f in code["files"]}
    return all(p.is_file() and _sha_of(p) == code["files"][f] for f, p in found.items())


def class_code(kind: type, script: ModuleType) -> str:
    """What a class's behaviour depends on, as a digest: its text, or its distribution's version.

    A stage that is handed an object calls methods that it does not name.

    Args:
        kind: the class.
        script: the recipe, beside which the user's modules lie.
    """
    file = getattr(script, "__file__", None)
    if file is None:
        return ""  # made by hand: there is no text
    if kind.__module__ == script.__name__:
        script_text = Path(file).read_text(encoding="utf-8")
        parts, modules = _script(script_text).reach(kind.__qualname__.partition(".")[0])
    else:
        parts, modules = [], {kind.__module__}
    text, packages, _ = _digest(parts, modules, Path(file).parent)
    return _sha(f"{text}{sorted(_versions(packages).items())}")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sha_of(path: Path) -> str:
    return _sha(path.read_text(encoding="utf-8"))


def _digest(
    parts: list[str], modules: set[str], beside: Path
) -> tuple[str, set[str], dict[str, str]]:
    local, packages = _divided(modules, beside)
    texts = [*parts, *(f"{p.name}\0{p.read_text(encoding='utf-8')}" for p in local)]
    return _sha("\0".join(texts)), packages, {str(p): _sha_of(p) for p in local}


def _versions(packages: set[str], *more: str) -> dict[str, str]:
    found = {d for p in packages - {"edgekit"} for d in _distributions().get(p, ())}
    return versions(*sorted({*found, *more}))


@functools.cache
def _edgekit() -> str:
    """edgekit's version and, as it may be worked on, its code, the command line's aside."""
    root = Path(edgekit.__file__).parent
    parts = sorted(
        p.name
        for p in root.iterdir()
        if (p.is_dir() or p.suffix == ".py") and p.name not in _NO_CODE
    )
    return f"{edgekit.__version__}+{code(*parts)[:12]}"


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@functools.lru_cache(maxsize=8)
def _script(text: str) -> Script:
    return Script(text)


def _divided(modules: set[str], beside: Path) -> tuple[list[Path], set[str]]:
    """Files of the user's own modules with all that they import there, and other packages."""
    files: dict[Path, None] = {}
    packages: set[str] = set()
    wanted = [(module, beside) for module in sorted(modules)]
    asked = set(wanted)
    while wanted:
        module, root = wanted.pop()
        top = module.partition(".")[0]
        if top == "edgekit" or not top:
            continue
        found = _files(module, root)
        if not found and not _files(top, root):
            home = None if root.joinpath(top).is_dir() else _home(top)
            again = [] if home is None or home == root else [(module, home)]
            if not again:
                packages.add(top)
        else:
            # Else it is a name in one of the user's modules.
            again = []
            for path in found:
                if path not in files:
                    files[path] = None
                    again += [(name, place) for name, place in _all_imports(path, root)]
        wanted += [a for a in again if a not in asked]
        asked.update(again)
    return sorted(files), packages - sys.stdlib_module_names


def _files(module: str, root: Path) -> list[Path]:
    """Files of a module below ``root``: of a package all, as its parts import each other."""
    top = root / module.partition(".")[0]
    if (top / "__init__.py").is_file():
        return sorted(top.rglob("*.py"))
    place = root.joinpath(*module.split("."))
    if place.with_name(f"{place.name}.py").is_file():
        return [place.with_name(f"{place.name}.py")]
    return sorted(place.rglob("*.py")) if (place / "__init__.py").is_file() else []


@functools.cache
def _home(top: str) -> Path | None:
    """Where a module of the user's own lies that is elsewhere on the path, or None."""
    if top in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ()) or [spec.origin or ""]
    path = Path(places[0])
    if _INSTALLED & set(path.parts) or not path.is_absolute() or not path.exists():
        return None
    return path.parent


def _all_imports(path: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """Modules that a file imports, each with the folder that it is looked for in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for module in imports(tree):
        dots = len(module) - len(module.lstrip("."))
        place = path.parents[dots - 1] if dots else root
        if module[dots:]:
            yield module[dots:], place
