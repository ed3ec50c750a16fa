"""Sources: one file per kind of model that a team arrives with."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import UsageError
from edgekit.model import Model
from edgekit.sources.weights import refuse_pickle

__all__ = ["TAKEN", "load"]

TAKEN = (
    "PROGRAM.pt2",
    "FILE.py:FUNCTION",
    "MODULE:FUNCTION",
    "torchvision:NAME[@WEIGHTS]",
    "a folder of a Hugging Face classifier of text",
)
"""The forms that `load` takes."""

_HINT = f"taken: {', '.join(TAKEN)}"


def load(spec: str, *, weights: Path | None = None) -> Model:
    """The model that a command line or a recipe names.

    Args:
        spec: one of `TAKEN`. Of these, ``FILE.py:FUNCTION`` and ``MODULE:FUNCTION`` run the user's
            own code; a ``.pt2`` file runs none.
        weights: a `.safetensors` file to put into the model; not for ``.pt2`` and folders, which
            have their own.

    Raises:
        UsageError: another form, an absent file, or an unknown name.
        TrustError: a pickled file, or one that would run code.
        BadData: a file that can't be read, weights that don't fit, or a module that does not run.
        UnsupportedError: a model that we can't take.
        MissingDependency: a package that the model needs is not installed.
        StorageError: no permission, or weights that can't be fetched.
    """
    if spec.startswith("torchvision:"):
        from edgekit.sources.torchvision_zoo import load_torchvision

        return load_torchvision(spec.removeprefix("torchvision:"), weights=weights)
    left, colon, function = spec.rpartition(":")
    if colon and function.isidentifier() and not Path(spec).exists():
        if left.endswith(".py"):
            from edgekit.sources.python_file import load_python_file

            return load_python_file(Path(left), function, weights=weights)
        from edgekit.sources.python_module import load_python_module

        return load_python_module(left, function, weights=weights)
    return _load_file(Path(spec), weights)


def _load_file(path: Path, weights: Path | None) -> Model:
    refuse_pickle(path)
    if path.suffix == ".py":
        raise UsageError(f"{path} names no function", hint=f"say which: {path}:FUNCTION")
    folder = path.is_dir() and (path / "config.json").is_file()
    if path.suffix != ".pt2" and not folder:
        absent = "" if path.exists() else ", and there is no such file"
        raise UsageError(f"{str(path)!r} is no kind of model that is taken{absent}", hint=_HINT)
    if not path.exists():
        raise UsageError(f"there is no file {path}", hint=_HINT)
    if weights is not None:
        raise UsageError(
            f"{path.name} has weights of its own; --weights is for models built by code"
        )
    if folder:
        from edgekit.sources.hugging_face import load_hugging_face

        return load_hugging_face(path)
    from edgekit.sources.pt2 import load_pt2

    return load_pt2(path)
