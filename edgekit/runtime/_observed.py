"""What the recorder is told by others, in the words that it may send."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgekit.runtime._draws import Draws
from edgekit.runtime.aggregate import CONFIDENCE_BOUNDS
from edgekit.runtime.attributes import ATTRIBUTES, KINDS, OTHER
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.runtime.input_statistics import InputStatistics
from edgekit.runtime.privacy import Budget, LocalPrivacy

__all__ = ["Routed", "draws_of", "kind_of", "statistics_of"]


class Routed(Protocol):
    """What a router tells its observer of a request; `edgekit.runtime.answers.Event` is one."""

    @property
    def source(self) -> str | None: ...
    @property
    def why(self) -> str: ...
    @property
    def confidence(self) -> float | None: ...
    @property
    def device(self) -> str: ...
    @property
    def cloud(self) -> str: ...
    @property
    def total_ms(self) -> float: ...


def kind_of(error: BaseException | str) -> str:
    """The name of an error that may be sent: ``other`` where it is somebody's own class."""
    if isinstance(error, str):
        return error if ATTRIBUTES["error.type"].admits(error) else OTHER
    name = type(error).__name__
    # Somebody's own class may bear a name that is on the list, or a person's.
    ours = type(error).__module__ in ("builtins", "edgekit.errors")
    return name if ours and name not in KINDS and ATTRIBUTES["error.type"].admits(name) else OTHER


def statistics_of(bundle: Bundle | None, artifact: BundleArtifact | None) -> InputStatistics:
    """The reference that a bundle holds for the inputs of one of its artifacts."""
    if bundle is None:
        return InputStatistics(None, ())
    signature = bundle.signature if artifact is None else artifact.signature
    names = [spec.name for spec in signature.inputs]
    border = None if artifact is None else artifact.border
    return InputStatistics(bundle.manifest.get("reference_statistics"), names, border)


def draws_of(folder: Path, privacy: LocalPrivacy | None, bundle: Bundle | None) -> Draws | None:
    """What sees answers and inputs in place of counting them; None where nothing is noised."""
    if privacy is None:
        return None
    labels = 0 if bundle is None else len(bundle.labels)
    classes = privacy.classes or (labels if 2 <= labels <= 4096 else None)
    return Draws(privacy, Budget(folder, privacy), classes, CONFIDENCE_BOUNDS)
