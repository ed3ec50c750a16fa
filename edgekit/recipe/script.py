"""A script as text: which of its statements a name leads to, and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import Final

from edgekit.recipe.stages import CONFIG

__all__ = ["Script", "imports"]

Def = ast.FunctionDef | ast.AsyncFunctionDef
_DEFS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_ANY_NAME: Final = frozenset(("eval", "exec", "globals"))
_HOOKS: Final = ("__init_subclass__", "__subclasses__", "metaclass")


class Script:
    """A module's top-level statements by the names that they bind, or may change."""

    def __init__(self, text: str) -> None:
        body = ast.parse(text).body
        self._docs = "__doc__" in text
        self._hooks = any(word in text for word in _HOOKS)
        self._imported = {n for s in body if _is_import(s) for n in _names_bound(s)}
        self._functions = {s.name: s for s in body if isinstance(s, (*_DEFS, ast.ClassDef))}
        self._own = {n for s in body for n in _names_bound(s)} - self._imported
        self._bound: dict[str, list[ast.stmt]] = {}
        for statement in body:
            for name in {*_binds(statement), *self._changed(statement)}:
                self._bound.setdefault(name, []).append(statement)
        used = {n.id for s in body for n in ast.walk(s) if isinstance(n, ast.Name)}
        # Names that nobody can tell, and modules that are imported for what this does.
        self._always = {
            module
            for s in body
            if _is_import(s) and not used & set(_names_bound(s))
            for module in imports(s)
        }

    def reach(self, name: str) -> tuple[list[str], set[str]]:
        """Texts that ``name`` leads to, in a fixed order, and modules that they import."""
        seen: dict[int, ast.stmt] = {}
        wanted, done, modules = [name], set[str](), set(self._always)
        texts = list[str]()
        start = self._functions.get(name)
        if isinstance(start, _DEFS) and "cfg" in _parameters(start):
            texts, methods, more = self._config()
            wanted += methods
            modules |= more
        while wanted:
            asked = wanted.pop()
            if asked in done:
                continue
            done.add(asked)
            for statement in self._bound.get(asked, ()):
                modules.update(_imports(statement, asked))
                if id(statement) in seen:
                    continue
                seen[id(statement)] = statement
                wanted += _needs(self._bare(statement))
                if _reads_any(statement):
                    wanted += [n for n in self._own if n != CONFIG]
        texts += [ast.unparse(self._bare(s)) for s in seen.values()]
        return sorted(texts), modules

    def _config(self) -> tuple[list[str], list[str], set[str]]:
        """What of `Config` and of its sections is code: all but their fields, whose values are
        recorded as they are read. Texts, names that these lead to, and modules of sections."""
        texts, needs, modules = list[str](), list[str](), set[str]()
        wanted, done = [CONFIG], set[str]()
        while wanted:
            asked = wanted.pop()
            if asked in done:
                continue
            done.add(asked)
            for statement in self._bound.get(asked, ()):
                if _is_import(statement):
                    modules.update(_imports(statement, asked))
                if not isinstance(statement, ast.ClassDef):
                    continue
                fields = [s for s in statement.body if _is_field(s)]
                wanted += [n for part in (*statement.bases, *fields) for n in _names(part)]
                bare = self._bare(statement)
                assert isinstance(bare, ast.ClassDef)
                bare.body = [s for s in bare.body if not (_is_field(s) or _is_nothing(s))]
                if bare.body:
                    texts.append(ast.unparse(bare))
                    needs += [n for s in bare.body for n in _names(s)]
        return texts, needs, modules

    def _changed(self, statement: ast.stmt) -> Iterator[str]:
        """Names of the script that the statement changes as it is run, beside those it binds."""
        for part in _run_at_import(statement):
            yield from self._effects(part, set())
        if isinstance(statement, (*_DEFS, ast.ClassDef)):
            yield from (n for d in statement.decorator_list if not _is_mark(d) for n in _names(d))
        if isinstance(statement, ast.ClassDef) and self._hooks:
            yield from (n for base in statement.bases for n in _names(base) if n in self._own)

    def _effects(self, part: ast.AST, done: set[str]) -> Iterator[str]:
        for node in ast.walk(part):
            if isinstance(node, ast.Global):
                yield from node.names
            elif isinstance(node, ast.Subscript | ast.Attribute):
                if not isinstance(node.ctx, ast.Load):
                    yield from self._base(node)
            elif isinstance(node, ast.Call):
                if isinstance(node.func, ast.Attribute):
                    yield from self._base(node.func)
                elif isinstance(node.func, ast.Name) and node.func.id in self._functions:
                    given = (*node.args, *(k.value for k in node.keywords))
                    yield from (a.id for a in given if isinstance(a, ast.Name))
            elif isinstance(node, ast.Name) and node.id not in done:
                done.add(node.id)
                if (called := self._functions.get(node.id)) is not None:
                    yield from self._effects(called, done)

    def _base(self, node: ast.expr) -> Iterator[str]:
        while isinstance(node, ast.Subscript | ast.Attribute):
            node = node.value
        if isinstance(node, ast.Name) and node.id in self._own:
            yield node.id

    def _bare(self, statement: ast.stmt) -> ast.stmt:
        """The statement without docstrings, annotations and `stage`, none of which make results."""
        copied = ast.parse(ast.unparse(statement)).body[0]
        for node in ast.walk(copied):
            if isinstance(node, _DEFS):
                node.decorator_list = [d for d in node.decorator_list if not _is_mark(d)]
                if not node.decorator_list:  # else annotations may be looked at
                    _drop_annotations(node)
            if isinstance(node, (*_DEFS, ast.ClassDef)) and not self._docs:
                _drop_docstring(node)
        return copied


def imports(tree: ast.AST) -> list[str]:
    """Modules that are imported anywhere in ``tree``, relative ones with their dots."""
    found = set[str]()
    for node in ast.walk(tree):
        found.update(_import(node))
    return sorted(found)


def _import(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        module = f"{'.' * node.level}{node.module or ''}"
        yield module
        joint = "" if module.endswith(".") else "."
        yield from (f"{module}{joint}{alias.name}" for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("import_module", "__import__")
    ):
        for given in node.args[:1]:
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                yield given.value


def _imports(statement: ast.stmt, name: str) -> Iterable[str]:
    """Modules that the statement imports; of a plain import, those that bind ``name``."""
    if not isinstance(statement, ast.Import):
        return imports(statement)
    return [a.name for a in statement.names if _bound_as(a) == name]


def _is_import(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _bound_as(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _names(tree: ast.AST) -> list[str]:
    return [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]


def _names_bound(statement: ast.stmt) -> list[str]:
    """Names that the statement binds in the module, as far as its text tells."""
    if isinstance(statement, (*_DEFS, ast.ClassDef)):
        return [statement.name]
    found = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append(node.id)
        elif isinstance(node, (*_DEFS, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found += [_bound_as(alias) for alias in node.names]
    return found


def _binds(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (*_DEFS, ast.ClassDef)) or _is_import(statement):
        return _names_bound(statement)
    if _is_plain(statement):
        return _names_bound(statement)
    # A compound statement, or one such as `TABLE["x"] = 1` or `TABLE.update(more)`: it may change
    # all that it names.
    return [*_names(statement), *_names_bound(statement)]


def _is_plain(statement: ast.stmt) -> bool:
    """Whether it binds names to a value and does nothing else: ``A = B = 1``, ``A: int = 1``."""
    if isinstance(statement, ast.Assign):
        return all(isinstance(t, ast.Name | ast.Tuple) for t in statement.targets)
    return isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)


def _run_at_import(statement: ast.stmt) -> list[ast.AST]:
    """What of the statement runs as the script is imported: of a function, only what is around."""
    if isinstance(statement, _DEFS):
        arguments = statement.args
        defaults = [*arguments.defaults, *(d for d in arguments.kw_defaults if d is not None)]
        return [*(d for d in statement.decorator_list if not _is_mark(d)), *defaults]
    if isinstance(statement, ast.ClassDef):
        inner = [part for s in statement.body for part in _run_at_import(s)]
        return [*statement.decorator_list, *statement.bases, *statement.keywords, *inner]
    return [statement]


def _parameters(function: Def) -> set[str]:
    arguments = function.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return {a.arg for a in every}


def _needs(statement: ast.stmt) -> list[str]:
    """Names that a statement leads to; a function's own parameters stand for no other thing."""
    if not isinstance(statement, _DEFS):
        own = [statement.name] if isinstance(statement, ast.ClassDef) else []
        return [*own, *_names(statement)]
    inside = {n for s in statement.body for n in _names(s)} - _parameters(statement)
    around = [n for part in (*statement.decorator_list, statement.args) for n in _names(part)]
    return [statement.name, *sorted(inside), *around]


def _reads_any(statement: ast.stmt) -> bool:
    """Whether it may look at names that its text does not tell."""
    return any(
        (isinstance(n, ast.Name) and n.id in _ANY_NAME)
        or (isinstance(n, ast.Attribute) and ast.unparse(n) == "sys.modules")
        for n in ast.walk(statement)
    )


def _is_field(statement: ast.stmt) -> bool:
    """Whether, in a class of settings, it is one: its value is recorded where it is read."""
    return (
        isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and not statement.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(statement.annotation)
    )


def _is_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _is_mark(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return ast.unparse(called).rpartition(".")[2] == "stage"


def _drop_annotations(function: Def) -> None:
    function.returns = None
    arguments = function.args
    for argument in (
        *arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs,
        arguments.vararg, arguments.kwarg,
    ):  # fmt: skip
        if argument is not None:
            argument.annotation = None


def _drop_docstring(node: Def | ast.ClassDef) -> None:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        node.body[0] = ast.Pass()
