"""`file.py:function`: a function in a Python file that gives the model."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from edgekit._torchvision import ensure_importable
from edgekit.errors import UsageError
from edgekit.model import Model
from edgekit.sources._calls import call, user_code

__all__ = ["load_python_file"]


def load_python_file(path: Path, function: str, *, weights: Path | None = None) -> Model:
    """Runs a Python file and calls one of its functions without arguments.

    The file may import its neighbours, as it may when it is run as a script.

    Args:
        path: the file; its code is run, so it must be the user's own.
        function: gives an `edgekit.Model` or a pair ``(torch.nn.Module, {name: example})``.
        weights: a `.safetensors` file to put into what the function gives.

    Raises:
        UsageError: no such file or function, an error in the file's code, or another result.
        BadData: the weights do not fit, or the module does not run on its examples.
    """
    spec = f"{path}:{function}"
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    full = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, full)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    folder = str(full.parent)
    # Dataclasses and torch look classes up by their module's name.
    sys.modules[name] = module
    sys.path.insert(0, folder)
    try:
        with user_code(spec):
            ensure_importable()  # a model file may well say `import torchvision`
            found.loader.exec_module(module)
        return call(module, function, spec, weights)
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
