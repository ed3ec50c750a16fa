"""What code a stage is: its own text, all that it reaches in its script, and versions of the rest.

A stage's text is that of its function and, from there, of every function, class and constant of the
script that is named, without comments, layout, docstrings and annotations. Modules beside the
script are taken whole. Of anything else that is imported, its distribution's version counts.
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

import edgekit
from edgekit.keys import code, versions
from edgekit.recipe.stages import CONFIG, Recipe

__all__ = ["Code", "code_of"]

_ALWAYS = ("numpy",)
_NO_CODE = ("cli", "__pycache__", "_devices", "_recipes")


@dataclass(frozen=True)
class Code:
    """The code of a stage.

    Attributes:
        text: sha256 of all text of the script and of modules beside it that the stage reaches.
        versions: by distribution, of what it imports, with edgekit itself and Python.
    """

    text: str
    versions: Mapping[str, str]


def code_of(recipe: Recipe, stage: str) -> Code:
    """The code of one stage of a recipe."""
    script = _script(recipe.path, recipe.path.read_text(encoding="utf-8"))
    parts, modules = script.reach(stage)
    local, packages = _divided(modules, recipe.path.parent)
    texts = [*parts, *(f"{p.name}\0{p.read_text(encoding='utf-8')}" for p in local)]
    found = {
        distribution
        for package in packages - {"edgekit"}
        for distribution in _distributions().get(package, ())
    }
    python = ".".join(map(str, sys.version_info[:2]))
    return Code(
        hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        {"python": python, "edgekit": _edgekit(), **versions(*sorted({*found, *_ALWAYS}))},
    )


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


class _Script:
    """A module's top-level statements by the names that they bind."""

    def __init__(self, text: str) -> None:
        self._bound: dict[str, list[ast.stmt]] = {}
        for statement in ast.parse(text).body:
            for name in _binds(statement):
                self._bound.setdefault(name, []).append(statement)

    def reach(self, name: str) -> tuple[list[str], set[str]]:
        """Texts that ``name`` leads to, in a fixed order, and modules that they import."""
        seen: dict[int, ast.stmt] = {}
        wanted, done, modules = [name], {CONFIG} - {name}, set[str]()
        while wanted:
            asked = wanted.pop()
            if asked in done:
                continue
            done.add(asked)
            for statement in self._bound.get(asked, ()):
                if id(statement) in seen:
                    continue
                seen[id(statement)] = statement
                bare = _bare(statement)
                wanted += [n.id for n in ast.walk(bare) if isinstance(n, ast.Name)]
                modules.update(_imports(statement, asked))
        return sorted(ast.unparse(_bare(s)) for s in seen.values()), modules


@functools.lru_cache(maxsize=8)
def _script(_path: Path, text: str) -> _Script:
    return _Script(text)


def _binds(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        for alias in statement.names:
            yield (alias.asname or alias.name).partition(".")[0]
    elif _is_plain(statement):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
    else:
        # A compound statement, or one such as `TABLE["x"] = 1` or `TABLE.update(more)`: it may
        # change all that it names.
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                yield node.id
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    yield (alias.asname or alias.name).partition(".")[0]


def _is_plain(statement: ast.stmt) -> bool:
    """Whether it binds names to a value and does nothing else: ``A = B = 1``, ``A: int = 1``."""
    if isinstance(statement, ast.Assign):
        return all(isinstance(t, ast.Name | ast.Tuple) for t in statement.targets)
    return isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)


def _bare(statement: ast.stmt) -> ast.stmt:
    """The statement without docstrings, annotations and `stage`, none of which make results."""
    copied = ast.parse(ast.unparse(statement)).body[0]
    for node in ast.walk(copied):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
            node.decorator_list = [d for d in node.decorator_list if not _is_mark(d)]
            arguments = node.args
            for argument in (
                *arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs,
                arguments.vararg, arguments.kwarg,
            ):  # fmt: skip
                if argument is not None:
                    argument.annotation = None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            _drop_docstring(node)
    return copied


def _is_mark(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called).rpartition(".")[2] == "stage"


def _drop_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        node.body[0] = ast.Pass()


def _imports(statement: ast.stmt, name: str) -> Iterator[str]:
    """Modules that the statement imports; of a plain import, those that bind ``name``."""
    plain = isinstance(statement, ast.Import | ast.ImportFrom)
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if not plain or (alias.asname or alias.name).partition(".")[0] == name:
                    yield alias.name


def _divided(modules: set[str], beside: Path) -> tuple[list[Path], set[str]]:
    """Files of modules beside the script with all that they import there, and other packages."""
    files: dict[Path, None] = {}
    packages: set[str] = set()
    wanted = sorted(modules)
    while wanted:
        module = wanted.pop()
        found = _files(module, beside)
        if not found:
            if _files(module.partition(".")[0], beside):
                continue  # a name in a module beside the script
            packages.add(module.partition(".")[0])
        for path in found:
            if path not in files:
                files[path] = None
                wanted += _all_imports(path)
    return sorted(files), packages - sys.stdlib_module_names


def _files(module: str, beside: Path) -> list[Path]:
    place = beside.joinpath(*module.split("."))
    if place.with_suffix(".py").is_file():
        return [place.with_suffix(".py")]
    return sorted(place.rglob("*.py")) if (place / "__init__.py").is_file() else []


def _all_imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module]
    return sorted(found)
