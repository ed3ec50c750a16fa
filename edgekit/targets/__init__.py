"""Targets: one file per runtime, found by its name, imported only when that runtime is asked for.

A target renders a plan, converts, and says what it made. It decides no scale of its own. Conversion
and first load happen in a worker process (`edgekit.targets.worker`), so that a crash, a leak or a
library's global state stays there.

Three ways in: a file in this folder with a ``TARGET`` object, an entry point in the group
``edgekit.targets`` whose value is such an object, or ``module:attribute`` while one is developed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgekit.errors import MissingDependency, UsageError
from edgekit.names import DELEGATES, FLOAT_IO, TARGETS, TEST_TARGET, install_command, unknown
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan
    from edgekit.runtime.session import Session

ENTRY_POINTS = "edgekit.targets"

__all__ = [
    "Placement",
    "Reason",
    "Stored",
    "Target",
    "available",
    "describe",
    "find",
    "installed",
    "open_session",
    "require_installed",
]


@dataclass(frozen=True)
class Reason:
    """Why some operators of an artifact convert, move or compute in floating point.

    Attributes:
        operator: their type.
        count: how many there are for this reason.
        why: the reason.
    """

    operator: str
    count: int
    why: str


@dataclass(frozen=True)
class Placement:
    """Where an artifact's operators run and in what type, read from the artifact or its runtime.

    Attributes:
        ops: operator type to count, as the runtime executes them.
        float_ops: how many of them compute in floating point.
        boundary_ops: quantize and dequantize at the model's own inputs and outputs, which a float
            boundary needs; they are not counted in ``float_ops``.
        undelegated_ops: operators outside the requested delegate, or None if it can't be told.
        undelegated: those by type, where it can be told.
        first_undelegated: the first of them, or None.
        ops_by_dtype: operators by what they do: ``integer`` and ``float`` compute so, ``convert``
            go from one to the other, ``move`` change no value. Empty where it can't be told.
        layers: of those with weights, how many compute on ``integer`` and how many in ``float``;
            empty where it can't be told.
        ops_by_unit: operators by the unit of the chip that the runtime prefers for them, where it
            says so: Core ML does on a Mac.
        first_fallback: the first operator left in float and why, or None.
        bytes_by_dtype: bytes of stored constants by dtype.
        waste: operators that only move or convert data between kernels, by type.
        reasons: of an artifact with integers, why each of the others is there; see
            `edgekit.targets._reasons`.
    """

    ops: Mapping[str, int]
    float_ops: int
    boundary_ops: int = 0
    undelegated_ops: int | None = None
    first_fallback: str | None = None
    bytes_by_dtype: Mapping[str, int] = field(default_factory=dict)
    waste: Mapping[str, int] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()
    undelegated: Mapping[str, int] = field(default_factory=dict)
    first_undelegated: str | None = None
    ops_by_dtype: Mapping[str, int] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    ops_by_unit: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**asdict(self), "reasons": [asdict(r) for r in self.reasons]}


@dataclass(frozen=True)
class Stored:
    """One quantized tensor as an artifact stores it, in the plan's terms.

    Attributes:
        name: the artifact's own name for it.
        kind: ``activation``, ``weight`` or ``bias``.
        scale: float32 values, one or one per channel.
        zero_point: in the plan's int8 terms, whatever the artifact's own offset is.
        digest: for weights, sha256 of the stored integers channel by channel, each channel's
            sorted, so that it holds for any memory layout; empty for activations.
        values: for biases, the stored integers; empty for the others.
    """

    name: str
    kind: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    digest: str = ""
    values: tuple[int, ...] = ()


class Target(Protocol):
    """What a target file offers as ``TARGET``.

    ``ios`` beside these says what its artifacts can take (`edgekit.names.IOS`); without it, the
    model's own tensors alone, and ``io_reason`` may say why. `edgekit.compress.picture` has what a
    program is like whose artifact takes a picture.

    A runtime whose files can tell an app of their pictures and labels has ``metadata(path)``, what
    a file tells, ``metadata_faults(path, signature, about)``, where that is not so, and
    ``describe(path, signature, about)`` if it is written after the conversion. ``about`` has the
    model's ``name``, ``licence`` and, for the artifact's io, ``preprocess``.
    """

    id: str
    suffix: str
    extra: str
    packages: tuple[str, ...]
    schemes: tuple[str, ...]
    delegates: tuple[str, ...]

    def convert(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        signature: Signature,
        out: Path,
    ) -> list[Path]:
        """Writes the artifact.

        Args:
            program: the canonical float program.
            plan: its quantization; empty for ``fp32``.
            signature: names to give the artifact's inputs and outputs.
            out: the artifact's main file, in a directory of its own.

        Returns:
            Every file written, the main one first; of an artifact that is a directory, that alone.

        Raises:
            UnsupportedError: an operator or scheme that this runtime can't carry, named.
        """
        ...

    def inspect(self, path: Path) -> Placement:
        """Operators and constants of an artifact, by type and dtype."""
        ...

    def stored(self, path: Path) -> list[Stored]:
        """Every quantized tensor the artifact holds."""
        ...


def available() -> tuple[str, ...]:
    """Ids of all targets: those in this folder first, then those other packages bring."""
    here = [f.stem.replace("_", "-") for f in Path(__file__).parent.glob("*.py")]
    ours = [t for t in (*TARGETS, TEST_TARGET) if t in here]
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return (*ours, *sorted(p.name for p in points if p.name not in ours))


def find(name: str) -> Target:
    """The target called ``name``, imported now; ``TARGET:DELEGATE`` is one through a delegate.

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    target, _, delegate = name.partition(":")
    if ":" in name and target in DELEGATES:
        return cast(Target, cast(Any, find(target)).via(delegate))
    if ":" in name:
        module, _, attribute = name.partition(":")
        return cast(Target, getattr(importlib.import_module(module), attribute))
    if (Path(__file__).parent / f"{name.replace('-', '_')}.py").is_file() and name in (
        *TARGETS,
        TEST_TARGET,
    ):
        module_ = importlib.import_module(f"edgekit.targets.{name.replace('-', '_')}")
        return cast(Target, module_.TARGET)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return cast(Target, point.load())
    raise UsageError(unknown("target", name, available()))


def installed(target: Target) -> dict[str, str | None]:
    """Distribution name to installed version, or None where it is missing."""
    found: dict[str, str | None] = {}
    for package in target.packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def require_installed(target: Target) -> None:
    """Refuses a target whose packages are not there.

    Raises:
        MissingDependency: names what is missing and the command that installs it.
    """
    missing = [name for name, version in installed(target).items() if version is None]
    if missing:
        raise MissingDependency(
            f"target {target.id!r} needs {', '.join(missing)}",
            hint=install_command(target.extra) if target.extra else "",
        )


def open_session(target: Target, path: Path, signature: Signature, threads: int) -> Session:
    """Loads an artifact as the target wants it loaded.

    A target may offer ``open_session(path, signature, threads)`` in place of a session file in
    `edgekit.runtime`; what it gives has ``emulated = True`` where it is not the real runtime.
    """
    from edgekit.runtime import session

    opener = getattr(target, "open_session", None)
    if opener is not None:
        return cast("Session", opener(path, signature, threads))
    return session.open_session(target.id, path, signature, threads=threads)


def describe() -> list[dict[str, Any]]:
    """Facts of every target, for ``edgekit targets``; those through other delegates than the usual
    one, ``TARGET:DELEGATE``, come last."""
    rows = []
    names = [name for name in available() if name != TEST_TARGET]
    others = [f"{n}:{delegate}" for n in names for delegate in DELEGATES.get(n, ())[1:]]
    for name in (*names, *others):
        target = find(name)
        versions = installed(target)
        missing = [n for n, v in versions.items() if v is None]
        rows.append(
            {
                "id": name,
                "suffix": target.suffix,
                "extra": target.extra,
                "schemes": list(target.schemes),
                "delegates": list(target.delegates[:1] if name in DELEGATES else target.delegates),
                "ios": list(getattr(target, "ios", (FLOAT_IO,))),
                "installed": not missing,
                "version": None if missing else ", ".join(f"{n} {v}" for n, v in versions.items()),
                "install": install_command(target.extra) if missing else None,
            }
        )
    return rows
