"""What a function of the user gives becomes a Model; its errors are told by file and line."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from edgekit.errors import EdgekitError, UsageError
from edgekit.model import Model
from edgekit.model._adapter import unwrap
from edgekit.names import unknown
from edgekit.sources.weights import apply_weights, load_weights

__all__ = ["call", "user_code"]

_EDGEKIT = str(Path(__file__).parent.parent)
_TAKEN = "an edgekit.Model, or a pair (torch.nn.Module, {input name: example tensor})"


def call(module: ModuleType, function: str, spec: str, weights: Path | None) -> Model:
    """The model that a function of a loaded Python module gives.

    Args:
        module: where the function is.
        function: its name; it is called without arguments.
        spec: what the user asked for, for messages.
        weights: a `.safetensors` file to put into what the function gives.

    Raises:
        UsageError: no such function, it needs arguments, fails, or gives something else; an error
            in the user's code is told with its file and line.
        BadData: the weights do not fit, or the module does not run on its examples.
    """
    found = getattr(module, function, None)
    if not callable(found):
        own = [
            name
            for name, value in vars(module).items()
            if callable(value)
            and not name.startswith("_")
            and getattr(value, "__module__", None) == module.__name__
        ]
        raise UsageError(unknown(f"function in {spec.rpartition(':')[0]}", function, own))
    with user_code(spec):
        needed = [
            p.name
            for p in inspect.signature(found).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
    if needed:
        raise UsageError(
            f"{spec} needs the arguments {', '.join(needed)}; it is called without any",
            hint="write a function without parameters that fills them in",
        )
    with user_code(spec):
        given = found()
    return _model(given, spec, function, weights)


@contextlib.contextmanager
def user_code(spec: str) -> Iterator[None]:
    """Turns an error in the user's own code into a UsageError that names its file and line."""
    try:
        yield
    except EdgekitError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError):
            place = f"{error.filename}:{error.lineno}"
        else:
            frames = traceback.extract_tb(error.__traceback__)
            own = [f for f in frames if not f.filename.startswith((_EDGEKIT, "<"))]
            place = f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}" if own else spec
        raise UsageError(f"{spec} fails at {place}: {type(error).__name__}: {error}") from error


def _model(given: Any, spec: str, name: str, weights: Path | None) -> Model:
    if isinstance(given, Model):
        if weights is not None:
            apply_weights(unwrap(given.module), load_weights(weights), weights.name)
        return given
    if not isinstance(given, tuple) or len(given) != 2:
        raise UsageError(f"{spec} gives {_kind(given)}; wanted: {_TAKEN}")
    module, examples = given
    if not isinstance(module, torch.nn.Module) or not isinstance(examples, Mapping):
        raise UsageError(f"{spec} gives ({_kind(module)}, {_kind(examples)}); wanted: {_TAKEN}")
    if weights is not None:
        apply_weights(module, load_weights(weights), weights.name)
    return Model.from_module(module, examples, name=name)


def _kind(value: Any) -> str:
    if isinstance(value, torch.nn.Module):
        return f"a module ({type(value).__name__})"
    return "nothing" if value is None else f"a {type(value).__name__}"
