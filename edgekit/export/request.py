"""What an export is asked for, and how it tells what it does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekit.clients import LANGUAGES
from edgekit.data import Samples
from edgekit.model import Model

if TYPE_CHECKING:
    from edgekit.compress.ptq import Quantized

__all__ = ["ExportRequest", "Listener", "Silent"]

CALIB_LIMIT = 512
EVAL_LIMIT = 2000
MIN_CALIB = 16


class Listener(Protocol):
    """Hears what an export does; the command line shows it as notes and progress bars."""

    def note(self, message: str) -> None:
        """One line about a step."""

    def progress(
        self, description: str, total: int | None = None
    ) -> AbstractContextManager[Callable[[int], None]]:
        """A bar; the callable advances it."""
        ...


class Silent:
    """A listener that says nothing."""

    def note(self, message: str) -> None:
        """Nothing."""

    @contextlib.contextmanager
    def progress(
        self, description: str, total: int | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Nothing."""
        yield lambda _: None


@dataclass(frozen=True)
class ExportRequest:
    """What to make, and what it must hold to.

    Attributes:
        devices: device ids or profile paths.
        targets: target ids; empty means all that the devices run.
        schemes: schemes; empty means each target's preferred one.
        ios: what the artifacts take (`edgekit.names.IOS`); empty means the model's own tensors.
        calib: calibration data, as `edgekit.data` takes it; needed for quantized schemes.
        evaluation: labelled evaluation data; without it no accuracy is measured.
        out: where the bundle goes, a directory or a ``.zip``; None packs nothing.
        name: the bundle's name; the model's own if None.
        version: the bundle's version.
        max_drop: gate: accuracy lost against the float model, percentage points at most.
        max_float_ops: gate: operators left in float per quantized artifact, at most.
        require_verified: gate: every artifact must have run in its real runtime.
        require_delegate: gate: no operator runs outside of its delegate.
        pruned_from: the model that this one was pruned from, or its number of parameters; a gate
            then wants fewer of them in every artifact.
        waive: gates (`edgekit.names.WAIVABLE`) that are judged and told, and don't fail the export.
        engine: a vendor's quantizer (`edgekit.engines`) that makes the quantized artifacts instead
            of edgekit's plan; they are then held against the float model.
        without: methods of the plan maker to leave out (`edgekit.names.METHODS`).
        plans: finished plans to render instead of making one for their scheme: folders that
            `edgekit quantize` or `edgekit.compress.folder.save_quantized` wrote, or what
            `edgekit.compress` gives. Such a plan must have been made of this very model.
        keep_going: a target that fails does not end the export.
        bench: whether latency and memory are measured.
        clients: languages (`edgekit.clients.LANGUAGES`) that the bundle gets client code in.
        calib_limit: calibration samples at most.
        eval_limit: evaluation samples at most.
        threads: CPU threads to measure with; None takes the device's figure, within this machine.
        bench_runs, bench_seconds: timed calls and seconds per artifact, at most, over all rounds.
        bench_rounds: fresh processes per artifact; under 6 nothing is compared with float.
    """

    devices: tuple[str, ...] = ("host",)
    targets: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    ios: tuple[str, ...] = ()
    calib: str | Path | Samples | None = None
    evaluation: str | Path | Samples | None = None
    out: str | Path | None = None
    name: str | None = None
    version: str = "1"
    max_drop: float | None = None
    max_float_ops: int | None = None
    require_verified: bool = False
    require_delegate: bool = False
    pruned_from: Model | int | None = None
    waive: tuple[str, ...] = ()
    engine: str | None = None
    without: tuple[str, ...] = ()
    plans: tuple[str | Path | Quantized, ...] = ()
    keep_going: bool = False
    bench: bool = True
    clients: tuple[str, ...] = LANGUAGES
    calib_limit: int = CALIB_LIMIT
    eval_limit: int = EVAL_LIMIT
    threads: int | None = None
    bench_runs: int = 200
    bench_seconds: float = 3.0
    bench_rounds: int = 10
    listener: Listener = field(default_factory=Silent, repr=False)

    @property
    def destination(self) -> Path | None:
        """``out`` as a path."""
        return None if self.out is None else Path(self.out)
