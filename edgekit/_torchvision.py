"""torchvision, importable beside a torch build that it was not compiled for.

The torchvision wheels of the package registry are compiled against the CUDA build of torch. Beside
a CPU-only torch their extension ``_C.so`` does not load. torchvision allows for that, except that
its own import registers meta kernels for ``torchvision::nms`` and ``torchvision::qnms``, which only
that extension defines, and so ``import torchvision`` dies with ``operator torchvision::nms does not
exist``; ``import transformers`` goes the same way. Models, transforms and datasets need neither
operator: once the two schemas exist, without a kernel, everything but box suppression works, and
box suppression itself still fails loudly.

Nothing is defined where the extension loads.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from edgekit.errors import MissingDependency
from edgekit.names import install_command

if TYPE_CHECKING:
    from torch.library import Library

__all__ = ["ensure_importable", "torchvision"]

_SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)

# A Library takes its schemas with it when it is collected.
_kept: list[Library] = []


def torchvision() -> ModuleType:
    """The torchvision module, with ``models``, ``transforms`` and ``datasets`` imported.

    Raises:
        MissingDependency: torch or torchvision is not installed.
    """
    ensure_importable()
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{error.name} is not installed", hint=install_command("all")
        ) from error


def ensure_importable() -> None:
    """Makes ``import torchvision`` work, without importing it.

    Call it before importing anything that imports torchvision, such as transformers. Does nothing
    if torchvision is imported already, is not installed, or brings an extension that loads.
    """
    if _kept or "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or importlib.util.find_spec("torch") is None:
        return
    if _extension_loads(Path(spec.origin).parent):
        return
    from torch.library import Library

    library = Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _kept.append(library)


def _extension_loads(package: Path) -> bool:
    """Whether torchvision's compiled operators load into this torch."""
    import torch

    for suffix in EXTENSION_SUFFIXES:
        path = package / f"_C{suffix}"
        if path.exists():
            try:
                torch.ops.load_library(str(path))
            except OSError:
                return False
            return True
    return False
