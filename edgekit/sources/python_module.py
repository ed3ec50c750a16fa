"""`module:function`: a function of an importable Python module that gives the model."""

from __future__ import annotations

import importlib
from pathlib import Path

from edgekit._torchvision import ensure_importable
from edgekit.errors import EdgekitError, MissingDependency, UsageError
from edgekit.model import Model
from edgekit.sources._calls import call, user_code

__all__ = ["load_python_module"]


def load_python_module(module: str, function: str, *, weights: Path | None = None) -> Model:
    """Imports a module and calls one of its functions without arguments.

    Args:
        module: dotted name, importable from here.
        function: gives an `edgekit.Model` or a pair ``(torch.nn.Module, {name: example})``.
        weights: a `.safetensors` file to put into what the function gives.

    Raises:
        UsageError: no such module or function, an error in its code, or another result.
        MissingDependency: the module imports a package that is not installed.
        BadData: the weights do not fit, or the module does not run on its examples.
    """
    spec = f"{module}:{function}"
    if not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"{module!r} is neither a file nor the name of a Python module")
    with user_code(spec):
        try:
            ensure_importable()  # a model file may well say `import torchvision`
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise _absent(error, module) from error
    return call(loaded, function, spec, weights)


def _absent(error: ModuleNotFoundError, module: str) -> EdgekitError:
    missing = error.name or ""
    if module == missing or module.startswith(missing + "."):
        return UsageError(
            f"there is no Python module {missing!r}",
            hint="install it, or give the file instead: path/to/file.py:function",
        )
    return MissingDependency(
        f"{module} imports {missing!r}, which is not installed", hint=f"pip install {missing}"
    )
