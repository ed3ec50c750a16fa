"""A recipe is a script: functions marked as stages, whose parameters say what they need."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar, overload

from edgekit.errors import EdgekitError, UsageError
from edgekit.names import unknown
from edgekit.settings import Settings, rooted

__all__ = ["RESERVED", "Recipe", "Stage", "load_recipe", "stage"]

F = TypeVar("F", bound=Callable[..., Any])

RESERVED: Final = {
    "cfg": "the script's Config",
    "data": "the path given by --data, or None",
    "device": "the profile of the first device",
    "devices": "the profiles of all devices, a tuple",
    "run": "progress, curves, gates and folders",
}
"""Parameters of a stage that are no other stage."""

CONFIG: Final = "Config"
_MARK: Final = "__edgekit_stage__"


@dataclass(frozen=True)
class Options:
    """What `stage` was told."""

    retries: int = 0
    retry_on: tuple[type[BaseException], ...] = (OSError,)
    threads: int | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: the function's name.
        function: the function itself.
        parameters: what it takes, in order: stages' names, or `RESERVED` ones.
        inputs: those of them that are stages.
        options: how it is run.
        doc: the first line of its docstring.
    """

    name: str
    function: Callable[..., Any]
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    options: Options
    doc: str


@dataclass(frozen=True)
class Recipe:
    """A script and the graph that its stages make.

    Attributes:
        name: the script's file name without ``.py``.
        path: the script.
        module: the script, imported.
        stages: by name, each after all that it needs, else in the script's order.
        config: its ``Config``, which all settings are in; `Settings` where there is none.
    """

    name: str
    path: Path
    module: ModuleType
    stages: Mapping[str, Stage]
    config: type[Settings]

    @property
    def doc(self) -> str:
        """The first line of the script's docstring."""
        return _first_line(self.module.__doc__)

    def defaults(self) -> Settings:
        """The settings as the script has them.

        Raises:
            UsageError: a field of ``Config`` has no default.
        """
        missing = [n for n, f in self.config.model_fields.items() if f.is_required()]
        if missing:
            raise UsageError(
                f"{self.path.name}: {CONFIG}.{missing[0]} has no default",
                hint="give every setting a default; -s changes it",
            )
        return rooted(self.config())

    def needed_for(self, names: Sequence[str]) -> list[str]:
        """The named stages and all that they need, in order."""
        wanted = set(names)
        for name in reversed(list(self.stages)):
            if name in wanted:
                wanted.update(self.stages[name].inputs)
        return [name for name in self.stages if name in wanted]


@overload
def stage(function: F, /) -> F: ...


@overload
def stage(
    *,
    retries: int = 0,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = OSError,
    threads: int | None = None,
) -> Callable[[F], F]: ...


def stage(
    function: Callable[..., Any] | None = None,
    /,
    *,
    retries: int = 0,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = OSError,
    threads: int | None = None,
) -> Any:
    """Marks a function as a stage; it stays the function that it is.

    Its parameters are other stages' names, or ``cfg``, ``data``, ``device``, ``devices`` and
    ``run`` (see `edgekit.recipe.context.Run`). It returns what `edgekit.recipe.values` can keep.

    Args:
        function: the function, where nothing else is said.
        retries: how often it is tried again after an error of ``retry_on``, or after its process
            died, with growing pauses between.
        retry_on: errors that another try may mend; by default those of files and of networks.
        threads: CPU threads that it computes with; all by default. Stages that don't need each
            other run at the same time where their threads fit.

    Raises:
        UsageError: fewer than no retries, or fewer than one thread.
    """
    if retries < 0 or (threads is not None and threads < 1):
        raise UsageError("a stage has retries of 0 or more and threads of 1 or more")
    kinds = retry_on if isinstance(retry_on, tuple) else (retry_on,)

    def mark(marked: F) -> F:
        setattr(marked, _MARK, Options(retries, kinds, threads))
        return marked

    return mark if function is None else mark(function)


def load_recipe(path: Path) -> Recipe:
    """Imports a script, which runs its top level, and makes the graph of its stages.

    Raises:
        UsageError: no such file, no stages, a parameter that names nothing, or stages in a circle.
        EdgekitError: what the script itself raises.
    """
    if not path.is_file():
        raise UsageError(f"no recipe {path}", hint="`edgekit recipes` lists those that come along")
    if path.suffix != ".py":
        raise UsageError(f"{path} is no Python script", hint="a recipe is a .py file with stages")
    module = _imported(path.resolve())
    found = {
        name: value
        for name, value in vars(module).items()
        if callable(value) and isinstance(getattr(value, _MARK, None), Options)
    }
    if not found:
        raise UsageError(
            f"{path} has no stages",
            hint="mark its functions with @stage, from edgekit.recipe",
        )
    stages = {name: _stage(name, function, found, path) for name, function in found.items()}
    config = getattr(module, CONFIG, Settings)
    if not (isinstance(config, type) and issubclass(config, Settings)):
        raise UsageError(f"{path}: {CONFIG} is not a class of edgekit.Settings")
    if config is Settings and any("cfg" in s.parameters for s in stages.values()):
        raise UsageError(
            f"{path}: a stage takes cfg, and the script has no {CONFIG}",
            hint=f"class {CONFIG}(Settings): with a default for every field",
        )
    return Recipe(path.stem, path.resolve(), module, _ordered(stages, path), config)


def _imported(path: Path) -> ModuleType:
    name = f"edgekit_recipe_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As `python recipe.py` has it, so that the script can import its neighbours.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (EdgekitError, ModuleNotFoundError):
        raise
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        line = _line_in(error, path)
        raise UsageError(
            f"{path}{line} failed as it was imported: {type(error).__name__}: {error}"
        ) from error
    return module


def _line_in(error: BaseException, path: Path) -> str:
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _stage(name: str, function: Callable[..., Any], known: Mapping[str, Any], path: Path) -> Stage:
    if function.__name__ != name:
        raise UsageError(f"{path}: stage {function.__name__!r} is also called {name!r}")
    if name in RESERVED:
        raise UsageError(f"{path}: a stage can't be called {name!r}: that is {RESERVED[name]}")
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        allowed = {*known, *RESERVED} - {name}
        if parameter.kind not in kinds:
            raise UsageError(f"{path}: stage {name!r} takes {parameter}; name each parameter")
        if parameter.name not in allowed:
            raise UsageError(
                f"{path}: stage {name!r} takes {unknown('stage', parameter.name, sorted(allowed))}"
            )
    taken = tuple(p.name for p in parameters)
    return Stage(
        name=name,
        function=function,
        parameters=taken,
        inputs=tuple(p for p in taken if p not in RESERVED),
        options=getattr(function, _MARK),
        doc=_first_line(function.__doc__),
    )


def _ordered(stages: Mapping[str, Stage], path: Path) -> dict[str, Stage]:
    ordered: dict[str, Stage] = {}
    left = dict(stages)
    while left:
        ready = next((s for s in left.values() if not set(s.inputs) & set(left)), None)
        if ready is None:
            raise UsageError(f"{path}: stages need each other in a circle: {', '.join(left)}")
        ordered[ready.name] = left.pop(ready.name)
    return ordered


def _first_line(doc: str | None) -> str:
    return inspect.cleandoc(doc).partition("\n")[0] if doc else ""
