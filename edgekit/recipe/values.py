"""What a stage may return, and how it is kept: JSON, tensors as safetensors, files; no pickles.

Kept are None, booleans, whole and finite numbers, strings, lists, tuples, dictionaries with
strings as keys, numpy arrays, torch tensors, paths in the stage's own folder, and dataclasses of
these. A module is not: a stage returns its ``state_dict()`` (`edgekit.compress.state`), and the
next one builds the module anew.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.artifact import files_of, fingerprint, sha256_of
from edgekit.errors import BadData
from edgekit.recipe.source import class_code

if TYPE_CHECKING:
    from types import ModuleType

    import torch

__all__ = ["FILES", "digest", "read", "small", "write"]

FILES: Final = "files"
_VALUE: Final = "value.json"
_TENSORS: Final = "tensors.safetensors"
_KIND: Final = "$"
_SCRIPT: Final = "recipe"
_SMALL: Final = 4096


def write(value: Any, folder: Path, *, script: ModuleType) -> None:
    """Writes a stage's result into ``folder``, in which its files lie under ``files``.

    Raises:
        BadData: something that is not kept; the message says where in the result, and what to do.
    """
    _without_links(folder / FILES)
    tensors: dict[str, Any] = {}
    tree = _encoded(value, "result", _Place(folder / FILES, tensors, script))
    if tensors:
        from safetensors.numpy import save_file

        arrays = {name: array for name, array in tensors.items() if isinstance(array, np.ndarray)}
        if len(arrays) == len(tensors):
            save_file(arrays, folder / _TENSORS)
        else:
            import torch
            from safetensors.torch import save_file as save_tensors

            held = {
                n: torch.from_numpy(t) if isinstance(t, np.ndarray) else t
                for n, t in tensors.items()
            }
            save_tensors(held, folder / _TENSORS)
    # Dictionaries keep their order, which loops over them see.
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False)
    (folder / _VALUE).write_text(text, encoding="utf-8")


def _without_links(files: Path) -> None:
    """Puts what links name in their place: an entry of the store holds all that it consists of."""
    for path in sorted(files.rglob("*")):
        if not path.is_symlink():
            continue
        target = path.resolve()
        if not target.exists() or target in path.parents:
            raise BadData(
                f"the stage's file {path.relative_to(files)} is a link to {path.readlink()}, "
                "which can't be kept",
                hint="write files into run.out, not links",
            )
        path.unlink()
        if target.is_dir():
            shutil.copytree(target, path)
        else:
            shutil.copy2(target, path)


def read(folder: Path, *, script: ModuleType) -> Any:
    """A result as `write` was given it; paths lie in ``folder``, and are for reading only."""
    tree = json.loads((folder / _VALUE).read_text(encoding="utf-8"))
    return _decoded(tree, folder, script)


def digest(folder: Path) -> str:
    """sha256 over all that was kept: equal results, equal digest."""
    names = [p for p in files_of(folder) if p.relative_to(folder).parts[0] in _KEPT]
    return fingerprint(**{p.relative_to(folder).as_posix(): sha256_of(p) for p in names})


_KEPT: Final = (_VALUE, _TENSORS, FILES)


def small(folder: Path) -> Any:
    """A result for people to read in a document: as it is where it is short JSON, else None."""
    text = (folder / _VALUE).read_text(encoding="utf-8")
    return json.loads(text) if len(text) <= _SMALL else None


@dataclasses.dataclass(frozen=True)
class _Place:
    files: Path
    tensors: dict[str, Any]
    script: ModuleType


def _encoded(value: Any, where: str, place: _Place) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise BadData(f"{where} is {value}", hint="JSON has no such number; return None for it")
        return float(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Path):
        return {_KIND: "path", "path": _inside(value, where, place.files)}
    if isinstance(value, list):
        return [_encoded(v, f"{where}[{i}]", place) for i, v in enumerate(value)]
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            raise BadData(
                f"{where} is a named tuple ({type(value).__name__}), whose names would be lost",
                hint="return a frozen dataclass, or a plain tuple",
            )
        items = [_encoded(v, f"{where}[{i}]", place) for i, v in enumerate(value)]
        return {_KIND: "tuple", "items": items}
    if isinstance(value, dict):
        return _mapping(value, where, place)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        held = {n: _encoded(v, f"{where}.{n}", place) for n, v in fields.items()}
        kind = type(value)
        return {
            _KIND: "dataclass",
            "class": _class_name(kind, where, place),
            # Stages that are handed it call methods that they don't name.
            "code": class_code(kind, place.script),
            "fields": held,
        }
    if isinstance(value, np.ndarray):
        return _array(value, where, place)
    return _tensor(value, where, place)


def _mapping(value: dict[Any, Any], where: str, place: _Place) -> Any:
    wrong = next((k for k in value if not isinstance(k, str)), None)
    if wrong is not None:
        raise BadData(f"{where} has the key {wrong!r}; keys of a result are strings")
    held = {k: _encoded(v, f"{where}[{k!r}]", place) for k, v in value.items()}
    return {_KIND: "dict", "items": held} if _KIND in held else held


def _array(value: npt.NDArray[Any], where: str, place: _Place) -> Any:
    if isinstance(value, np.ma.MaskedArray):
        raise BadData(f"{where} is a masked array; return its data and its mask")
    if value.dtype.kind not in "biuf":
        raise BadData(
            f"{where} is an array of {value.dtype}; kept are arrays of numbers and booleans",
            hint="return texts as a list",
        )
    name = f"t{len(place.tensors)}"
    place.tensors[name] = np.ascontiguousarray(value)
    return {_KIND: "array", "name": name, "shape": list(value.shape)}


def _tensor(value: Any, where: str, place: _Place) -> Any:
    kind = type(value)
    if kind.__module__.partition(".")[0] == "torch" or hasattr(value, "state_dict"):
        import torch

        if isinstance(value, torch.Tensor):
            name = f"t{len(place.tensors)}"
            # Two names of one memory are two tensors here.
            place.tensors[name] = value.detach().cpu().clone().contiguous()
            return {_KIND: "tensor", "name": name}
        if isinstance(value, torch.nn.Module):
            raise BadData(
                f"{where} is a module ({kind.__name__}), which can't be kept",
                hint="return state_of(module), from edgekit.compress.state, and build it again in "
                "the stage that needs it",
            )
    raise BadData(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which can't be kept",
        hint="a stage returns JSON values, arrays, tensors, paths in run.out, or dataclasses",
    )


def _inside(path: Path, where: str, files: Path) -> str:
    try:
        inside = path.resolve().relative_to(files.resolve())
    except ValueError:
        raise BadData(
            f"{where} is {path}, which is not in the stage's folder",
            hint="write files into run.out, and return paths in it",
        ) from None
    if not path.exists():
        raise BadData(f"{where} is {path.name}, which does not exist")
    return inside.as_posix()


def _class_name(kind: type, where: str, place: _Place) -> str:
    module = _SCRIPT if kind.__module__ == place.script.__name__ else kind.__module__
    if "<locals>" in kind.__qualname__:
        raise BadData(f"{where} is of a class in a function ({kind.__qualname__})")
    return f"{module}:{kind.__qualname__}"


def _decoded(tree: Any, folder: Path, script: ModuleType) -> Any:
    if isinstance(tree, list):
        return [_decoded(v, folder, script) for v in tree]
    if not isinstance(tree, dict):
        return tree
    kind = tree.get(_KIND)
    if kind is None:
        return {k: _decoded(v, folder, script) for k, v in tree.items()}
    if kind == "dict":
        return {k: _decoded(v, folder, script) for k, v in tree["items"].items()}
    if kind == "tuple":
        return tuple(_decoded(v, folder, script) for v in tree["items"])
    if kind == "path":
        return folder / FILES / tree["path"]
    if kind == "array":
        return _load(folder, "np", tree["name"]).reshape(tree["shape"])
    if kind == "tensor":
        return _load(folder, "pt", tree["name"])
    module, _, name = tree["class"].partition(":")
    found: Any = script if module == _SCRIPT else importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found(**{k: _decoded(v, folder, script) for k, v in tree["fields"].items()})


def _load(folder: Path, framework: str, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(folder / _TENSORS, framework=framework) as file:
        found: npt.NDArray[Any] | torch.Tensor = file.get_tensor(name)
    return found
