"""Session: one loaded artifact in its real runtime, presenting the model's own signature.

Each runtime is one file, ``session_<target>.py``, found by its name and imported only when that
target is asked for. It offers ``open(path, signature, threads)``, ``read_signature(path)`` and
``preload()``, and where a runtime is bound to a system ``unavailable()``; ``PACKAGE`` says that an
artifact is a directory.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np

from edgekit.errors import BadData, MissingDependency, UnsupportedError, UsageError
from edgekit.names import unknown
from edgekit.signature import Signature, TensorSpec

__all__ = [
    "Array",
    "Port",
    "Session",
    "bare_call",
    "open_batched",
    "open_session",
    "preload",
    "read_signature",
    "session_targets",
    "unavailable",
]

Array = np.ndarray[Any, Any]


class Session(Protocol):
    """One artifact, loaded. Not thread-safe: use one session per thread.

    Attributes:
        target: the id of the target whose runtime executes it.
        signature: the model's inputs and outputs; `run` takes and gives exactly these, whatever
            narrower type the artifact itself has at its border.
        threads: how many CPU threads one call may use.
        runtime_version: the runtime's name and version, e.g. ``onnxruntime 1.32.0``.
    """

    target: str
    signature: Signature
    threads: int
    runtime_version: str

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the model once.

        Args:
            feeds: one array per input, of the shape (batch included) and dtype in the signature.

        Returns:
            One fresh array per output, by its name in the signature; the caller may keep them.

        Raises:
            BadData: a feed or an output does not fit the signature.
            UnsupportedError: the runtime gave up.
            UsageError: the session is closed.
        """
        ...

    def close(self) -> None:
        """Frees the runtime's memory; closing twice is allowed."""
        ...


def session_targets() -> tuple[str, ...]:
    """The ids of all targets that have a session here, sorted (found by file name)."""
    import edgekit.runtime as package

    # Not a look into the folder: bench's worker is one zip file, and this is read out of it.
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    names = (name.removeprefix("session_") for name in modules if name.startswith("session_"))
    return tuple(sorted(name.replace("_", "-") for name in names))


def open_session(target: str, path: Path, signature: Signature, *, threads: int = 1) -> Session:
    """Loads an artifact in its runtime.

    Args:
        target: a target id, e.g. ``tflite``.
        path: the artifact's main file.
        signature: what the model takes and gives.
        threads: how many CPU threads one call may use, at least 1.

    Raises:
        UsageError: unknown target, or fewer than one thread.
        MissingDependency: the runtime is not installed; the hint names the install command.
        BadData: the file is unreadable or does not fit the signature.
        UnsupportedError: the runtime lacks an operator that the file needs.
    """
    if threads < 1:
        raise UsageError(f"threads is {threads}; at least 1 is needed")
    module = _session_module(target)
    return cast(Session, module.open(_existing(path, module), signature, threads))


def open_batched(target: str, path: Path, signature: Signature, *, threads: int = 1) -> Session:
    """Loads an artifact for several samples at once, where its runtime can change its batch.

    Args:
        signature: the model's, with the number of samples as every tensor's first dimension.

    Raises:
        BadData, UnsupportedError: the artifact's batch is fixed.
        UsageError, MissingDependency: as `open_session`.
    """
    module = _session_module(target)
    open = getattr(module, "open_batched", module.open)
    return cast(Session, open(_existing(path, module), signature, threads))


def read_signature(target: str, path: Path) -> Signature:
    """The signature that a bare artifact states itself; a free leading dimension becomes 1.

    Raises:
        UsageError, MissingDependency, BadData: as `open_session`.
        UnsupportedError: a dimension other than the first is not fixed, or a dtype has no name
            in `edgekit.signature.DTYPES`.
    """
    module = _session_module(target)
    return cast(Signature, module.read_signature(_existing(path, module)))


def bare_call(session: Session, feeds: Mapping[str, Array]) -> Callable[[], object]:
    """One inference and nothing else: what the runtimes' own benchmarks time.

    The inputs are put in place now, in the artifact's types. A session offers it as ``prepare``;
    of one that doesn't, a call of the result is `Session.run`.

    Raises:
        BadData, UsageError: as `Session.run`.
    """
    prepare = getattr(session, "prepare", None)
    if prepare is None:
        return lambda: session.run(feeds)
    return cast("Callable[[], object]", prepare(feeds))


def preload(target: str) -> None:
    """Imports the runtime of a target without loading a model, so that memory taken by the
    runtime's own code can be told from memory taken by a model.

    Raises:
        UsageError, MissingDependency: as `open_session`.
    """
    _session_module(target).preload()


def unavailable(target: str) -> str | None:
    """Why a target's runtime does not exist for this system; None where it does.

    ``TARGET:DELEGATE`` asks whether its runtime here has the delegate.

    Whether it is installed is another question, which `open_session` answers.
    """
    target, _, delegate = target.partition(":")
    if target not in session_targets():
        return None
    ask = getattr(_session_module(target), "unavailable", None)
    if delegate and ask is not None:
        return cast("str | None", ask(delegate))
    return None if ask is None else cast("str | None", ask())


def _session_module(target: str) -> ModuleType:
    known = session_targets()
    if target not in known:
        raise UsageError(unknown("runtime target", target, known))
    return importlib.import_module(f"edgekit.runtime.session_{target.replace('-', '_')}")


def _existing(path: Path, module: ModuleType) -> Path:
    path = Path(path)
    if getattr(module, "PACKAGE", False):
        if not path.is_dir():
            raise BadData(f"artifact {path} is not a directory")
    elif not path.is_file():
        raise BadData(f"artifact {path} is not a file")
    return path


# What the session files share.


def require(module: str, distribution: str) -> Any:
    """Imports a runtime's module out of its wheel.

    Raises:
        MissingDependency: it is not installed, or its native library does not load here.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        if importlib.util.find_spec(package) is None:
            message = f"{distribution} is not installed"
        else:
            message = f"{distribution} is installed but does not load: {error}"
        # The device needs the runtime's own wheel alone; an extra would bring the workshop too.
        raise MissingDependency(message, hint=f"pip install {distribution}") from error


def version_of(distribution: str) -> str:
    """``distribution version``, as `Session.runtime_version` states it."""
    version = installed_version(distribution)
    return f"{distribution} {version or '(version unknown)'}"


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; None where it is not installed.

    It stands in the name of the folder ``NAME-VERSION.dist-info``. `importlib.metadata` knows
    more, and takes 4 MiB, which would be counted as memory of the process that runs a model.
    """
    wanted = _normal(distribution)
    for entry in sys.path:
        try:
            found = [path.name for path in Path(entry).iterdir()]
        except OSError:  # a zip, or nothing
            continue
        for name in found:
            stem, _, ending = name.rpartition(".")
            project, _, version = stem.partition("-")
            # Debian's own packages still say .egg-info, and the Python behind the version.
            if ending in ("dist-info", "egg-info") and version and _normal(project) == wanted:
                return version.partition("-")[0]
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Port:
    """One input or output as the artifact has it, beside what the signature says of it.

    Converters narrow types: LiteRT takes int32 ids where the model has int64, and a fully
    integer artifact takes int8 with a scale and a zero point. `encode` and `decode` bridge that.

    Attributes:
        spec: the signature's tensor.
        key: how the runtime addresses it (a name or an index).
        dtype: the artifact's own dtype.
        scale: quantization step of an integer border tensor, 0 where there is none.
        zero_point: the integer that stands for 0.0.
    """

    spec: TensorSpec
    key: Any
    dtype: np.dtype[Any]
    scale: float = 0.0
    zero_point: int = 0

    def __post_init__(self) -> None:
        ours, theirs = np.dtype(self.spec.dtype), self.dtype
        quantized = ours.kind == "f" and theirs.kind in "iu" and self.scale > 0
        both_float = ours.kind == "f" and theirs.kind == "f"
        both_integer = ours.kind in "iu" and theirs.kind in "iu"
        if not (ours == theirs or quantized or both_float or both_integer):
            raise BadData(
                f"{self.spec.name!r} is {ours} in the signature but {theirs} in the artifact"
            )

    def encode(self, value: Array) -> Array:
        """The artifact's contiguous form of one input, shape unchanged.

        Raises:
            BadData: an integer lies outside the artifact's narrower type.
        """
        if value.dtype == self.dtype:
            return np.ascontiguousarray(value)
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            if value.dtype.kind == "f":
                steps: Array = np.rint(value / np.float32(self.scale)) + self.zero_point
                return steps.clip(limits.min, limits.max).astype(self.dtype, order="C")
            if value.size and not (limits.min <= value.min() and value.max() <= limits.max):
                raise BadData(
                    f"{self.spec.name!r} holds {value.min()}..{value.max()}; the artifact takes "
                    f"{self.dtype}, {limits.min}..{limits.max}"
                )
        return value.astype(self.dtype, order="C")

    def decode(self, value: Array, *, what: str) -> Array:
        """One output in the signature's dtype; ``value`` must already be the caller's own.

        Raises:
            BadData: the shape differs from the signature's.
        """
        if tuple(value.shape) != self.spec.shape:
            raise BadData(
                f"{what}: output {self.spec.name!r} has shape {tuple(value.shape)}, "
                f"the signature says {self.spec.shape}"
            )
        if str(value.dtype) == self.spec.dtype:
            return value
        if value.dtype.kind in "iu" and self.spec.dtype.startswith("float"):
            steps: Array = value.astype(np.float32) - np.float32(self.zero_point)
            return (steps * np.float32(self.scale)).astype(self.spec.dtype, copy=False)
        return value.astype(self.spec.dtype)


def match(specs: Sequence[TensorSpec], names: Sequence[str], *, what: str) -> list[int]:
    """For each signature tensor, the position of the artifact's tensor that it stands for.

    By name where the artifact kept all names; else by position, as converters keep the order.

    Raises:
        BadData: the counts differ, or a name is kept at another position while others are not.
    """
    if len(specs) != len(names):
        raise BadData(
            f"{what}: the signature has {len(specs)} ({', '.join(s.name for s in specs)}), "
            f"the artifact has {len(names)} ({', '.join(names)})"
        )
    if all(spec.name in names for spec in specs):
        return [names.index(spec.name) for spec in specs]
    for position, spec in enumerate(specs):
        if spec.name in names and names.index(spec.name) != position:
            raise BadData(
                f"{what}: cannot match {', '.join(s.name for s in specs)} with the artifact's "
                f"{', '.join(names)}: {spec.name!r} moved and other names are unknown"
            )
    return list(range(len(specs)))


def natural_key(name: str) -> tuple[Any, ...]:
    """Sorts ``args_2`` before ``args_10``."""
    return tuple((int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name) if p)


def check_static(spec: TensorSpec, shape: Sequence[int], *, what: str) -> None:
    """Refuses an artifact whose fixed dimensions differ from the signature's.

    Args:
        spec: the signature's tensor.
        shape: the artifact's shape; a negative number is a free dimension.
        what: names the artifact in the message.
    """
    fits = len(shape) == len(spec.shape) and all(
        theirs < 0 or theirs == ours for ours, theirs in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise BadData(
            f"{what}: {spec.name!r} has shape {spec.shape} in the signature but "
            f"{tuple(shape)} in the artifact"
        )


def stated_spec(name: str, shape: Sequence[int], dtype: Any, *, what: str) -> TensorSpec:
    """A spec for what an artifact says of itself; a free first dimension (negative) becomes 1.

    Raises:
        UnsupportedError: another dimension is free, or the dtype is none of ours.
    """
    fixed = [1 if i == 0 and n < 0 else int(n) for i, n in enumerate(shape)]
    if any(n < 0 for n in fixed):
        raise UnsupportedError(
            f"{what}: {name!r} has no fixed shape: {list(shape)}",
            hint="bench the bundle, whose signature fixes it, or export with static shapes",
        )
    try:
        return TensorSpec(name=name, shape=tuple(fixed), dtype=np.dtype(dtype).name)
    except (BadData, TypeError) as error:
        raise UnsupportedError(f"{what}: {name!r} has dtype {dtype}: not supported") from error


def failed(what: str, error: Exception) -> UnsupportedError:
    """The error for a call in which the runtime itself gave up."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return UnsupportedError(f"{what}: the runtime could not run the model: {reason}")


def closed(what: str) -> UsageError:
    """The error for a call on a closed session."""
    return UsageError(f"{what}: the session is closed")
