"""Post-training quantization with everything that helps: the plan maker.

The order is the one in which methods depend on each other: channels are scaled, then ranges are
calibrated, then weights are rounded and biases corrected layer by layer behind quantized layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edgekit.compress.equalize import equalize, find_pairs
from edgekit.compress.graph import compute_nodes, graph_module
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import Ranges, quantize
from edgekit.compress.reconstruct import reconstruct
from edgekit.compress.smooth import find_groups, smooth
from edgekit.compress.streams import peak_bytes
from edgekit.errors import BadData

__all__ = ["PLAIN", "Methods", "Quantized", "post_training"]

LAYER_SAMPLES = 128
"""Samples that layer-by-layer methods look at, at most."""

MEMORY = 1 << 30
"""Bytes that they may hold of these samples' values; where that is short, fewer are taken."""


@dataclass(frozen=True)
class Methods:
    """Which methods a plan is made with; the default is all of them.

    Attributes:
        equalization: scale channels between layers so that they fill their ranges.
        smoothing: share the size of large features between linear layers' inputs and weights.
        ranges: of activations, ``minmax`` or ``mse``.
        bias_correction: let biases make up for mean errors.
        rounding: round weights together, not each by itself; most of the time goes here.
    """

    equalization: bool = True
    smoothing: bool = True
    ranges: Ranges = "mse"
    bias_correction: bool = True
    rounding: bool = True

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, as a plan keeps it."""
        return dataclasses.asdict(self)


PLAIN = Methods(
    equalization=False, smoothing=False, ranges="minmax", bias_correction=False, rounding=False
)
"""Static calibration and nothing else."""


@dataclass(frozen=True)
class Quantized:
    """A program and the plan of it.

    Attributes:
        program: the canonical program after equalization, rounding and bias correction; its float
            values are not the model's any more, only together with the plan does it stand for it.
        plan: its quantization.
    """

    program: torch.export.ExportedProgram
    plan: QuantPlan


def post_training(
    program: torch.export.ExportedProgram,
    feeds: Iterable[tuple[torch.Tensor, ...]],
    methods: Methods = Methods(),
    *,
    calibration: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Quantized:
    """Quantizes a canonical program to ``w8a8`` without labels or training.

    Args:
        program: the canonical program (`edgekit.compress.graph.canonical`).
        feeds: calibration inputs, one tuple of tensors per sample, batch of 1; read once.
        methods: what to do; `PLAIN` does the least.
        calibration: where the samples came from, kept in the plan.
        progress: called with a step's name, how far it is and how far it goes.

    Raises:
        BadData: no samples, or such that calibration refuses (`edgekit.compress.quantize`).
        UnsupportedError: the program has nothing that can be quantized.
    """
    tell = progress or (lambda step, done, total: None)
    samples = list(feeds)
    if not samples:
        raise BadData("calibration got no samples", hint="give --calib at least one sample")
    module = graph_module(program)
    few = _spread(samples, min(LAYER_SAMPLES, max(2, MEMORY // max(1, peak_bytes(module)))))
    if methods.equalization and find_pairs(module):
        tell("equalizing", 0, 1)
        program = equalize(program, few)
        tell("equalizing", 1, 1)
    if methods.smoothing and find_groups(module):
        tell("smoothing", 0, 1)
        program = smooth(program, few)
        tell("smoothing", 1, 1)
        module = graph_module(program)
    plan = quantize(
        program,
        samples,
        calibration=calibration,
        ranges=methods.ranges,
        progress=lambda seen: tell("calibrating", seen, len(samples)),
    )
    if methods.rounding or methods.bias_correction:
        quantized = plan.constants()
        layers = sum(str(n.args[1]) in quantized for n in compute_nodes(module))
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            tell("rounding" if methods.rounding else "correcting biases", done, layers)

        program, plan = reconstruct(
            program,
            plan,
            few,
            rounding=methods.rounding,
            bias=methods.bias_correction,
            progress=advance,
        )
    kept = {**plan.calibration, "methods": methods.to_json(), "layer_samples": len(few)}
    return Quantized(program, dataclasses.replace(plan, calibration=kept))


def _spread(samples: list[tuple[torch.Tensor, ...]], count: int) -> list[tuple[torch.Tensor, ...]]:
    """``count`` of the samples at even distances, as they may be sorted by class."""
    if len(samples) <= count:
        return samples
    return [samples[i * len(samples) // count] for i in range(count)]
