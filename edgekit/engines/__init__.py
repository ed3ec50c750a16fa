"""Engines: the vendors' own quantizers behind one interface, found by file name like targets.

An engine takes the canonical float program and calibration samples and leaves an artifact that
edgekit's sessions load and its targets inspect. It decides scales by its vendor's own rules: there
is no plan, so an artifact of an engine is held against the float model, not against a plan. They
are what edgekit's own quantizer is measured against, and there for who prefers one of them.

One file per engine, with an ``ENGINE`` object; ``-`` in an id becomes ``_`` in the file's name. A
vendor's package is imported only when its engine quantizes. Call `quantize` rather than an engine's
own method: it checks the request first.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgekit.errors import MissingDependency, UnsupportedError, UsageError
from edgekit.names import install_command, unknown
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch

    Feeds = Iterable[tuple[torch.Tensor, ...]]

__all__ = [
    "Engine",
    "available",
    "find",
    "installed",
    "quantize",
    "require_installed",
    "settings_of",
]


class Engine(Protocol):
    """What an engine file offers as ``ENGINE``.

    Attributes:
        id: its name, the vendor's own for the tool.
        extra: edgekit's extra that installs it, empty where ``packages`` are installed by name.
        packages: the distributions it needs beside torch and the target's own.
        targets: ids of the targets whose artifacts it makes.
        defaults: its settings, as its vendor's documentation recommends them.
    """

    id: str
    extra: str
    packages: tuple[str, ...]
    targets: tuple[str, ...]
    defaults: Mapping[str, Any]

    def quantize(
        self,
        program: torch.export.ExportedProgram,
        feeds: Feeds,
        signature: Signature,
        target: str,
        out: Path,
        settings: Mapping[str, Any],
    ) -> list[Path]:
        """Quantizes to int8 weights and activations, statically, and writes the artifact.

        Args:
            program: the canonical float program (`edgekit.compress.graph.canonical`).
            feeds: calibration inputs, one tuple of tensors per sample in the signature's order,
                batch of 1.
            signature: names to give the artifact's inputs and outputs.
            target: one of ``targets``.
            out: the artifact's main file, in a directory of its own.
            settings: all of ``defaults``' names.

        Returns:
            Every file written, the main one first.

        Raises:
            UnsupportedError: the vendor's tool refused the model.
            BadData: there are no samples.
        """
        ...


def available() -> tuple[str, ...]:
    """Ids of all engines, sorted."""
    files = Path(__file__).parent.glob("[!_]*.py")
    return tuple(sorted(f.stem.replace("_", "-") for f in files))


def find(name: str) -> Engine:
    """The engine called ``name``, imported now (its vendor's package is not).

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    if name not in available():
        raise UsageError(unknown("engine", name, available()))
    module = importlib.import_module(f"edgekit.engines.{name.replace('-', '_')}")
    return cast(Engine, module.ENGINE)


def installed(engine: Engine) -> dict[str, str | None]:
    """Distribution name to installed version, or None where it is missing."""
    found: dict[str, str | None] = {}
    for package in engine.packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def require_installed(engine: Engine) -> None:
    """Refuses an engine whose packages are not there.

    Raises:
        MissingDependency: names what is missing and the command that installs it.
    """
    missing = [name for name, version in installed(engine).items() if version is None]
    if missing:
        command = install_command(engine.extra) if engine.extra else f"pip install {missing[0]}"
        raise MissingDependency(f"engine {engine.id!r} needs {', '.join(missing)}", hint=command)


def settings_of(engine: Engine, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The engine's defaults with ``given`` in their place.

    Raises:
        UsageError: a name that the engine does not have.
    """
    given = given or {}
    for name in given:
        if name not in engine.defaults:
            raise UsageError(unknown(f"setting of engine {engine.id!r}", name, engine.defaults))
    return {**engine.defaults, **given}


def quantize(
    engine: str | Engine,
    program: torch.export.ExportedProgram,
    feeds: Feeds,
    signature: Signature,
    target: str,
    out: Path,
    settings: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Has an engine quantize; arguments and result as `Engine.quantize`, which this checks first.

    Raises:
        UsageError: there is no such engine or setting.
        MissingDependency: the engine's packages are not installed.
        UnsupportedError: it makes no artifacts for ``target``, or its vendor's tool gave up.
        BadData: there are no calibration samples.
    """
    from edgekit.engines._common import engine_error

    made = find(engine) if isinstance(engine, str) else engine
    if target not in made.targets:
        raise UnsupportedError(
            f"engine {made.id!r} makes nothing for target {target!r}; "
            f"it makes: {', '.join(made.targets)}",
            hint="leave --engine out: edgekit's own quantizer serves every target",
        )
    chosen = settings_of(made, settings)
    require_installed(made)
    try:
        return made.quantize(program, feeds, signature, target, out, chosen)
    except Exception as error:
        raise engine_error(made.id, target, error) from error
