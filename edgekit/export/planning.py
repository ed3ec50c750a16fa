"""The first stage of an export: the canonical program, and the plan of every scheme."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifact import Store, fingerprint
from edgekit.data import Samples
from edgekit.errors import BadData, UsageError
from edgekit.export.given import GivenPlan
from edgekit.export.request import Listener
from edgekit.keys import code, versions
from edgekit.model import Model
from edgekit.names import CALIBRATED, METHODS, unknown
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan
    from edgekit.compress.ptq import Methods, Quantized

__all__ = ["Planned", "make_plan", "methods_without", "tensors"]


@dataclass(frozen=True)
class Planned:
    """The store entry of a plan.

    It holds ``program.pt2``, one ``plan-<name>.json`` per plan, and ``program-<name>.pt2`` where
    the plan maker changed weights and biases. A plan's name is its scheme, or
    ``<scheme>@<variant>`` (`edgekit.compress.plan.plan_name`).
    """

    key: str
    path: Path

    def program(self, name: str) -> Path:
        """The canonical program that a plan belongs to."""
        changed = self.path / f"program-{name}.pt2"
        return changed if changed.exists() else self.path / "program.pt2"

    def plan(self, name: str) -> Path:
        """A plan by its name."""
        return self.path / f"plan-{name}.json"


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
        splitting="splitting" not in left_out,
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
    variants: Sequence[str] = (),
    given: Mapping[str, GivenPlan] = MappingProxyType({}),
) -> Planned:
    """The canonical program and the plan of every scheme.

    Args:
        model: what to quantize.
        calib: calibration samples; None for schemes that need none.
        schemes: ids of schemes.
        store: where the result is kept.
        listener: hears of progress.
        without: methods of the plan maker to leave out, by the names in `edgekit.names.METHODS`.
        variants: overrides (`edgekit.names.OVERRIDES`) to make plans for beside each scheme's own.
        given: finished plans, by scheme, which are taken as they are.

    Raises:
        BadData: a scheme needs calibration and there are no samples.
        UnsupportedError: the model can't be exported, or has nothing to quantize.
        UsageError: a method that there is not, or a plan given that is not this model's.
    """
    methods = methods_without(without)
    key = fingerprint(
        stage="plan",
        model=model.digest(),
        calib=None if calib is None else [calib.digest, len(calib)],
        schemes=sorted(schemes),
        methods=methods.to_json(),
        variants=sorted(variants),
        given=[given[scheme].digest for scheme in sorted(given)],
        code=code("compress"),
        versions=versions("torch", "torchao"),
    )

    def fill(folder: Path) -> None:
        import torch

        from edgekit.compress.graph import canonical, program_digest, save_program
        from edgekit.compress.plan import QuantPlan
        from edgekit.compress.weights import quantize_weights

        save_program(canonical(model.program()), folder / "program.pt2")
        # Saving and loading must not change what the plan names.
        program = torch.export.load(folder / "program.pt2")
        for scheme in schemes:
            if scheme == "fp32":
                _save(folder, scheme, QuantPlan("fp32", program_digest(program)))
                continue
            if scheme in given:
                plan = given[scheme].checked(program, model.name)
                wanted = variants if scheme == "w8a8" else ()
                feeds = [] if calib is None or not wanted else list(tensors(calib, model.signature))
                made = plan.with_variants(wanted, feeds)
                _save(folder, scheme, made.plan, made.program)
                for name, one in made.variants.items():
                    _save(folder, f"{scheme}@{name}", one.plan, one.program)
                continue
            weights = None if scheme in CALIBRATED else quantize_weights(program, scheme)
            if weights is not None and (calib is None or scheme == "fp16"):
                _save(folder, scheme, weights)
                continue
            if calib is None:
                raise BadData(
                    f"scheme {scheme} needs calibration data",
                    hint="give --calib DATA, or --scheme fp32",
                )
            own = variants if scheme == "w8a8" else ()
            made = _quantize(model, program, calib, methods, scheme, own, listener, weights)
            _save(folder, scheme, made.plan, made.program if made.program is not program else None)
            for name, one in made.variants.items():
                _save(folder, f"{scheme}@{name}", one.plan, one.program)

    return Planned(key, store.make(key, fill, what="plan"))


def _save(
    folder: Path, name: str, plan: QuantPlan, program: torch.export.ExportedProgram | None = None
) -> None:
    """Writes a plan, and the program that it belongs to if that is not the model's own."""
    from edgekit.compress.graph import save_program

    if program is not None:
        save_program(program, folder / f"program-{name}.pt2")
    (folder / f"plan-{name}.json").write_text(json.dumps(plan.to_json()))


def _quantize(
    model: Model,
    program: torch.export.ExportedProgram,
    calib: Samples,
    methods: Methods,
    scheme: str,
    variants: Sequence[str],
    listener: Listener,
    weights: QuantPlan | None,
) -> Quantized:
    """Makes a calibrated plan, and those of its variants, or rounds the weights of another plan."""
    from edgekit.compress.ptq import post_training, round_weights

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

        feeds = tensors(calib, model.signature)
        if weights is not None:
            return round_weights(program, weights, feeds, methods, calibration=about, progress=tell)
        return post_training(
            program,
            feeds,
            methods,
            scheme=scheme,
            calibration=about,
            variants=variants,
            progress=tell,
        )


def tensors(calib: Samples, signature: Signature) -> Iterator[tuple[torch.Tensor, ...]]:
    """The samples as `edgekit.compress` takes them: one tuple of tensors each, batch of 1."""
    import torch

    for i in range(len(calib)):
        feed = calib.feed(i)
        yield tuple(torch.from_numpy(np.ascontiguousarray(feed[s.name])) for s in signature.inputs)
