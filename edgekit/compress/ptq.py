"""Post-training quantization with everything that helps: the plan maker.

The order is the one in which methods depend on each other: channels are scaled and copied, then
ranges are calibrated, then weights are rounded and biases corrected layer by layer behind quantized
layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from edgekit.compress.equalize import equalize, find_pairs
from edgekit.compress.graph import compute_nodes, graph_module, program_digest
from edgekit.compress.plan import CHANGES, QuantPlan
from edgekit.compress.quantize import Ranges, quantize
from edgekit.compress.reconstruct import reconstruct
from edgekit.compress.saturation import at_risk, limited, overrides
from edgekit.compress.smooth import find_groups, smooth
from edgekit.compress.split import split_channels
from edgekit.compress.streams import peak_bytes
from edgekit.errors import BadData
from edgekit.names import WIDE

__all__ = ["PLAIN", "Methods", "Quantized", "few_of", "post_training", "round_weights", "scaled"]

LAYER_SAMPLES = 128
"""Samples that layer-by-layer methods look at, at most."""

SPLIT_SAMPLES = 32
"""Samples that show what rounding does to channels, at most."""

MEMORY = 1 << 30
"""Bytes that they may hold of these samples' values; where that is short, fewer are taken."""


@dataclass(frozen=True)
class Methods:
    """Which methods a plan is made with; the default is all of them.

    Attributes:
        equalization: scale channels between layers so that they fill their ranges.
        splitting: copy channels that lose most to rounding before a depthwise convolution.
        smoothing: share the size of large features between linear layers' inputs and weights.
        ranges: of activations, ``minmax`` or ``mse``.
        bias_correction: let biases make up for mean errors.
        rounding: round weights together, not each by itself; most of the time goes here.
    """

    equalization: bool = True
    splitting: bool = True
    smoothing: bool = True
    ranges: Ranges = "mse"
    bias_correction: bool = True
    rounding: bool = True

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, as a plan keeps it."""
        return dataclasses.asdict(self)


PLAIN = Methods(
    equalization=False,
    splitting=False,
    smoothing=False,
    ranges="minmax",
    bias_correction=False,
    rounding=False,
)
"""Static calibration and nothing else."""


@dataclass(frozen=True)
class Quantized:
    """A program and the plan of it.

    Attributes:
        program: the canonical program after equalization, rounding and bias correction; its float
            values are not the model's any more, only together with the plan does it stand for it.
        plan: its quantization; its ``overrides`` say which layers some processors compute wrongly.
        variants: the same for overrides that limit weights, by the override's name, where asked
            for.
    """

    program: torch.export.ExportedProgram
    plan: QuantPlan
    variants: Mapping[str, Quantized] = field(default_factory=dict)


def post_training(
    program: torch.export.ExportedProgram,
    feeds: Iterable[tuple[torch.Tensor, ...]],
    methods: Methods = Methods(),
    *,
    scheme: str = "w8a8",
    calibration: Mapping[str, Any] | None = None,
    variants: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Quantized:
    """Quantizes a canonical program to ``w8a8`` or ``w8a16`` without labels or training.

    Args:
        program: the canonical program (`edgekit.compress.graph.canonical`).
        feeds: calibration inputs, one tuple of tensors per sample, batch of 1; read once.
        methods: what to do; `PLAIN` does the least. Under ``w8a16`` activations are neither
            smoothed nor cut, as that only takes from the weights (MiniLM's embeddings had 30.4 dB
            without smoothing and 27.0 with it), and no channel needs copies.
        scheme: ``w8a8`` or ``w8a16``.
        calibration: where the samples came from, kept in the plan.
        variants: overrides (`edgekit.names.OVERRIDES`) that a plan of its own is made for, where
            they limit weights.
        progress: called with a step's name, how far it is and how far it goes.

    Raises:
        BadData: no samples, or such that calibration refuses (`edgekit.compress.quantize`).
        UnsupportedError: the program has nothing that can be quantized.
    """
    tell = progress or (lambda step, done, total: None)
    samples, own = list(feeds), program
    if not samples:
        raise BadData("calibration got no samples", hint="give --calib at least one sample")
    if scheme == WIDE:
        methods = dataclasses.replace(methods, splitting=False, smoothing=False, ranges="minmax")
    program, few = scaled(program, samples, methods, progress=tell)
    plan = quantize(
        program,
        samples,
        scheme=scheme,
        calibration=calibration,
        ranges=methods.ranges,
        progress=lambda seen: tell("calibrating", seen, len(samples)),
    )
    settings = {"methods": methods.to_json(), "layer_samples": len(few)}
    plan = dataclasses.replace(plan, calibration={**plan.calibration, **settings})
    made = _reconstructed(program, plan, few, methods, tell)
    carried = overrides(made.program, made.plan)
    found: dict[str, Quantized] = {}
    for name in variants:
        limit = max((c.get("weight_limit", 0) for c in CHANGES[name].values()), default=0)
        if limit:
            named = _named(tell, name)
            variant = _limited(program, plan, made, limit, few, methods, named)
            kept = dataclasses.replace(variant.plan, overrides=carried, variant=name)
            found[name] = _from(own, Quantized(variant.program, kept))
    plan = dataclasses.replace(made.plan, overrides=carried)
    return _from(own, Quantized(made.program, plan, found))


def _from(own: torch.export.ExportedProgram, made: Quantized) -> Quantized:
    """Says which program was quantized, where the plan's is another one."""
    origin = program_digest(own)
    if origin == made.plan.program_digest:
        return made
    return dataclasses.replace(made, plan=dataclasses.replace(made.plan, origin=origin))


Tell = Callable[[str, int, int], None]


def _named(tell: Tell, name: str) -> Tell:
    return lambda step, done, total: tell(f"{step} for {name}", done, total)


def _limited(
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    made: Quantized,
    limit: int,
    few: Sequence[tuple[torch.Tensor, ...]],
    methods: Methods,
    tell: Tell,
) -> Quantized:
    """Weights rounded anew within ``limit`` in all layers that could saturate.

    A layer that could not at first, because its integers happened to be small, may get others
    behind layers rounded anew: it is then limited too.
    """
    weights: set[str] = set()
    while risks := {risk.weight for risk in at_risk(made.program, made.plan)} - weights:
        weights |= risks
        made = _reconstructed(program, limited(program, plan, weights, limit), few, methods, tell)
    return made


def _reconstructed(
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    few: Sequence[tuple[torch.Tensor, ...]],
    methods: Methods,
    tell: Tell,
) -> Quantized:
    """Layer-by-layer methods, where any is on."""
    if not (methods.rounding or methods.bias_correction):
        return Quantized(program, plan)
    module, quantized = graph_module(program), plan.constants()
    layers = sum(str(n.args[1]) in quantized for n in compute_nodes(module))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell("rounding" if methods.rounding else "correcting biases", done, layers)

    return Quantized(
        *reconstruct(
            program,
            plan,
            few,
            rounding=methods.rounding,
            bias=methods.bias_correction,
            progress=advance,
        )
    )


def scaled(
    program: torch.export.ExportedProgram,
    samples: list[tuple[torch.Tensor, ...]],
    methods: Methods,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[torch.export.ExportedProgram, list[tuple[torch.Tensor, ...]]]:
    """The first part of `post_training`: what changes weights and no answer.

    Returns:
        The program whose weights are yet to be rounded, and the samples that layers look at.
    """
    tell = progress or (lambda step, done, total: None)
    module = graph_module(program)
    few = few_of(module, samples)
    if methods.equalization and find_pairs(module):
        tell("equalizing", 0, 1)
        program = equalize(program, few)
        tell("equalizing", 1, 1)
    if methods.smoothing and find_groups(module):
        tell("smoothing", 0, 1)
        program = smooth(program, few)
        tell("smoothing", 1, 1)
    if methods.splitting:
        program, _ = split_channels(
            program,
            _spread(few, SPLIT_SAMPLES),
            progress=lambda done, total: tell("splitting channels", done, total),
        )
    return program, few


def round_weights(
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    feeds: Iterable[tuple[torch.Tensor, ...]],
    methods: Methods = Methods(),
    *,
    calibration: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Quantized:
    """Rounds the weights of a plan that quantizes nothing else together, and corrects biases.

    Inputs are float then: what a layer makes up for are the weights before it and its own (GPTQ,
    Frantar et al., arXiv:2210.17323, has this objective; see `edgekit.compress.rounding`).

    Args:
        program: the canonical program.
        plan: of `edgekit.compress.weights.quantize_weights`.
        feeds: samples, one tuple of tensors each; read once.
        methods: of these, ``rounding`` and ``bias_correction`` count.
        calibration: where the samples came from, kept in the plan.
        progress: called with a step's name, how far it is and how far it goes.
    """
    samples, own = list(feeds), program
    module = graph_module(program)
    few = few_of(module, samples)
    if len(few) < 2 or not (methods.rounding or methods.bias_correction):
        return Quantized(program, plan)
    known = plan.constants()
    layers, done = sum(str(n.args[1]) in known for n in compute_nodes(module)), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("rounding", done, layers)

    program, plan = reconstruct(
        program,
        plan,
        few,
        rounding=methods.rounding,
        bias=methods.bias_correction,
        progress=advance,
    )
    about = {**(calibration or {}), "n": len(samples), "observer": "none"}
    return _from(own, Quantized(program, dataclasses.replace(plan, calibration=about)))


def few_of(
    module: fx.GraphModule, samples: Sequence[tuple[torch.Tensor, ...]]
) -> list[tuple[torch.Tensor, ...]]:
    """The samples that layer-by-layer methods look at, as many as `MEMORY` holds values of."""
    count = min(LAYER_SAMPLES, max(2, MEMORY // max(1, peak_bytes(module))))
    return _spread(list(samples), count)


def _spread(samples: list[tuple[torch.Tensor, ...]], count: int) -> list[tuple[torch.Tensor, ...]]:
    """``count`` of the samples at even distances, as they may be sorted by class."""
    if len(samples) <= count:
        return samples
    return [samples[i * len(samples) // count] for i in range(count)]
