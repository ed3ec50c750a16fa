"""Samples made by the user's own function: ``file.py:function`` or ``module:function``.

This imports and runs the named code, in this process: that is what the user asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt

from edgekit.data.checks import class_count
from edgekit.data.samples import ArraySamples, Feeds, Role, Samples, SampleSet, picture_of, sound_of
from edgekit.errors import BadData, EdgekitError
from edgekit.names import unknown
from edgekit.runtime.preprocess import Preprocess
from edgekit.runtime.wav import Wav
from edgekit.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FunctionSamples", "import_function", "is_function_spec", "read_function"]

_SPEC: Final = re.compile(r"(?P<home>.+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)\Z", re.DOTALL)


def is_function_spec(spec: str) -> bool:
    """Whether ``spec`` has the form ``file.py:function`` or ``module:function``."""
    return _SPEC.match(spec) is not None


def import_function(spec: str) -> Callable[..., Any]:
    """Imports the function that ``spec`` names, running its module.

    Raises:
        BadData: there is no such file, module or function, or its module raises.
    """
    match = _SPEC.match(spec)
    if match is None:
        raise BadData(f"{spec!r} is neither file.py:function nor module:function")
    home, name = match["home"], match["name"]
    try:
        if home.endswith(".py"):
            module = _import_file(Path(home))
        else:
            with _importable(Path.cwd()):
                module = importlib.import_module(home)
    except (EdgekitError, KeyboardInterrupt):
        raise
    except BaseException as error:  # A module may also call sys.exit().
        raise BadData(f"importing {home} failed: {_said(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [n for n, v in vars(module).items() if inspect.isfunction(v) and n[0] != "_"]
        raise BadData(f"{home}: {unknown('function', name, own)}")
    return function  # type: ignore[no-any-return]


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadData(f"there is no file {path}")
    # A name of its own, so that the file is never in the way of an installed module.
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"_edgekit_user_{path.stem}_{place}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(path.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets a script import its neighbours, as ``python script.py`` would."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def read_function(
    spec: str,
    signature: Signature,
    preprocess: Preprocess | None,
    role: Role,
) -> tuple[SampleSet, bool]:
    """Calls the function and checks what it gives.

    It is called as ``function(split="calib" | "eval")`` if it has a parameter ``split``, else
    without arguments. It gives ``(feeds, labels)``, feeds alone, or a `Samples`.

    Returns:
        The samples, and whether the function chose them by ``split``.

    Raises:
        BadData: no such function, it raises, or its result does not fit the model.
    """
    function = import_function(spec)
    chooses = _takes_split(function)
    home = spec.rpartition(":")[0]
    try:
        with _importable(Path(home).resolve().parent if home.endswith(".py") else Path.cwd()):
            made = function(split=role) if chooses else function()
    except (EdgekitError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise BadData(f"{spec} raised {_said(error)}") from error
    if all(callable(getattr(made, part, None)) for part in ("__len__", "feed", "label")):
        return FunctionSamples(made, signature, spec), chooses
    feeds, labels = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(feeds, Mapping):
        raise BadData(
            f"{spec} gives {type(made).__name__}; wanted (feeds, labels), feeds being a dictionary "
            "of input names to arrays, or a Samples"
        )
    try:
        arrays = {str(name): np.asarray(value) for name, value in feeds.items()}
        labels = None if labels is None else np.asarray(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadData(f"{spec} gives something that is no array: {error}") from error
    samples = ArraySamples(arrays, labels, signature=signature, preprocess=preprocess, source=spec)
    return samples, chooses


def _takes_split(function: Callable[..., Any]) -> bool:
    try:
        parameter = inspect.signature(function).parameters.get("split")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.kind is not parameter.POSITIONAL_ONLY


class FunctionSamples(SampleSet):
    """A user's own `Samples`, checked one by one as they are asked for."""

    def __init__(
        self,
        inner: Samples,
        signature: Signature,
        source: str,
        indices: Sequence[int] | None = None,
    ) -> None:
        super().__init__(source)
        self._inner = inner
        self._signature = signature
        self._indices = list(range(len(inner)) if indices is None else indices)

    def __len__(self) -> int:
        return len(self._indices)

    def feed(self, i: int) -> Feeds:
        """See `Samples.feed`."""
        feeds = self._inner.feed(self._indices[i])
        self._signature.check_inputs(feeds, what=f"{self.source}: sample {self._indices[i]}")
        return feeds

    def picture(self, i: int) -> npt.NDArray[np.uint8] | None:
        """See `edgekit.data.samples.picture_of`."""
        return picture_of(self._inner, self._indices[i])

    def sound(self, i: int) -> Wav | None:
        """See `edgekit.data.samples.sound_of`."""
        return sound_of(self._inner, self._indices[i])

    def label(self, i: int) -> int | None:
        """See `Samples.label`.

        Raises:
            BadData: the label is no class of the model.
        """
        label = self._inner.label(self._indices[i])
        top = class_count(self._signature)
        if label is not None and (label < 0 or (top is not None and label >= top)):
            raise BadData(f"{self.source}: label {label} of sample {self._indices[i]} is no class")
        return label

    def key(self, i: int) -> bytes:
        """The sample's own key, or its index, as its content may be costly to make."""
        if isinstance(self._inner, SampleSet):
            return self._inner.key(self._indices[i])
        return str(self._indices[i]).encode()

    def content(self, i: int) -> bytes:
        """The feeds themselves."""
        feeds = self.feed(i)
        parts = [f"{n}:{a.dtype}:{a.shape}:".encode() + a.tobytes() for n, a in feeds.items()]
        return b"".join(parts)

    def take(self, indices: Sequence[int]) -> Self:
        """The samples at ``indices``."""
        chosen = [self._indices[i] for i in indices]
        return type(self)(self._inner, self._signature, self.source, chosen)
