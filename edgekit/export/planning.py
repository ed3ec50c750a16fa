"""The first stage of an export: the canonical program, and the plan of every scheme."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifact import Store, fingerprint
from edgekit.data import Samples
from edgekit.errors import BadData, UsageError
from edgekit.export.keys import code, versions
from edgekit.export.request import Listener
from edgekit.model import Model
from edgekit.names import METHODS, unknown
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan
    from edgekit.compress.ptq import Methods

__all__ = ["Planned", "make_plan", "methods_without"]


@dataclass(frozen=True)
class Planned:
    """The store entry of a plan.

    It holds ``program.pt2``, one ``plan-<scheme>.json`` per scheme, and ``program-<scheme>.pt2``
    where the plan maker changed weights and biases.
    """

    key: str
    path: Path

    def program(self, scheme: str) -> Path:
        """The canonical program that the plan of ``scheme`` belongs to."""
        changed = self.path / f"program-{scheme}.pt2"
        return changed if changed.exists() else self.path / "program.pt2"

    def plan(self, scheme: str) -> Path:
        """The plan of one scheme."""
        return self.path / f"plan-{scheme}.json"


def methods_without(left_out: Sequence[str]) -> Methods:
    """All methods of the plan maker but those named.

    Raises:
        UsageError: there is no such method.
    """
    from edgekit.compress.ptq import Methods

    for name in left_out:
        if name not in METHODS:
            raise UsageError(unknown("method", name, METHODS))
    return Methods(
        equalization="equalization" not in left_out,
        smoothing="smoothing" not in left_out,
        ranges="minmax" if "mse-ranges" in left_out else "mse",
        bias_correction="bias-correction" not in left_out,
        rounding="rounding" not in left_out,
    )


def make_plan(
    model: Model,
    calib: Samples | None,
    schemes: Sequence[str],
    store: Store,
    listener: Listener,
    *,
    without: Sequence[str] = (),
) -> Planned:
    """The canonical program and the plan of every scheme.

    Args:
        model: what to quantize.
        calib: calibration samples; None for schemes that need none.
        schemes: ids of schemes.
        store: where the result is kept.
        listener: hears of progress.
        without: methods of the plan maker to leave out, by the names in `edgekit.names.METHODS`.

    Raises:
        BadData: a scheme needs calibration and there are no samples.
        UnsupportedError: the model can't be exported, or has nothing to quantize.
        UsageError: a method that there is not.
    """
    methods = methods_without(without)
    key = fingerprint(
        stage="plan",
        model=model.digest(),
        calib=None if calib is None else [calib.digest, len(calib)],
        schemes=sorted(schemes),
        methods=methods.to_json(),
        code=code("compress"),
        versions=versions("torch", "torchao"),
    )

    def fill(folder: Path) -> None:
        import torch

        from edgekit.compress.graph import canonical, program_digest, save_program
        from edgekit.compress.plan import QuantPlan

        save_program(canonical(model.program()), folder / "program.pt2")
        # Saving and loading must not change what the plan names.
        program = torch.export.load(folder / "program.pt2")
        for scheme in schemes:
            plan = QuantPlan("fp32", program_digest(program))
            if scheme != "fp32":
                if calib is None:
                    raise BadData(
                        f"scheme {scheme} needs calibration data",
                        hint="give --calib DATA, or --scheme fp32",
                    )
                file = folder / f"program-{scheme}.pt2"
                plan = _quantize(model, program, calib, methods, listener, file)
            (folder / f"plan-{scheme}.json").write_text(json.dumps(plan.to_json()))

    return Planned(key, store.make(key, fill, what="plan"))


def _quantize(
    model: Model,
    program: torch.export.ExportedProgram,
    calib: Samples,
    methods: Methods,
    listener: Listener,
    file: Path,
) -> QuantPlan:
    """Makes a ``w8a8`` plan; writes the program that it belongs to if that is not the given one."""
    from edgekit.compress.graph import save_program
    from edgekit.compress.ptq import post_training

    about = {"source": Path(calib.source).name, "digest": calib.digest}
    with ExitStack() as stack:
        bars: dict[str, tuple[Any, list[int]]] = {}

        def tell(step: str, done: int, total: int) -> None:
            if step not in bars:
                stack.close()  # one bar at a time
                bars[step] = stack.enter_context(listener.progress(step, total)), [0]
            advance, reached = bars[step]
            advance(done - reached[0])
            reached[0] = done

        made = post_training(
            program,
            _tensors(calib, model.signature),
            methods,
            calibration=about,
            progress=tell,
        )
    if made.program is not program:
        save_program(made.program, file)
    return made.plan


def _tensors(calib: Samples, signature: Signature) -> Iterator[tuple[torch.Tensor, ...]]:
    import torch

    for i in range(len(calib)):
        feed = calib.feed(i)
        yield tuple(torch.from_numpy(np.ascontiguousarray(feed[s.name])) for s in signature.inputs)
