"""Rounding weights so that a layer's output changes least, instead of each weight by itself.

A layer's integers ``Q`` are chosen to minimise ``E |W x - s Q y|^2`` per output channel, where
``x`` is the layer's input in the float model and ``y`` what it gets in the quantized one. The
objective is the quadratic one of Nagel et al., "Up or Down? Adaptive Rounding for Post-Training
Quantization" (arXiv:2004.10568); that ``x`` and ``y`` differ, so that a layer makes up for rounding
before it, is Li et al., "GPTAQ" (arXiv:2504.02692). It is solved by cyclic coordinate descent over
integers as in Behdin et al., "QuantEase" (arXiv:2309.01885), started from the rounded real-valued
optimum. No gradients, no epochs: seconds per layer, and the same result every time.

What is fitted is held against samples that were left out: how far a layer may leave plain rounding
(`SHRINK`) is what does best on those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Moments", "Rounded", "round_layer"]

SHRINK = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Weights of the diagonal in a layer's second moments, tried in turn; 1 is plain rounding."""

_NARROW = 32
"""Kernels of at most this many inputs have their scales searched with full descent."""

_SCALES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
_BLOCK = 32
_SWEEPS = 4


@dataclass
class Moments:
    """Second moments of a layer's inputs, about their means.

    Attributes:
        gram: ``E[y y^T]``, [groups, d, d].
        cross: ``E[x y^T]``, [groups, d, d].
    """

    gram: torch.Tensor
    cross: torch.Tensor


@dataclass
class Rounded:
    """Integers and scales of a layer's weight.

    Attributes:
        integers: [groups, o, d], float64 holding integers.
        scale: [groups, o, 1], float64 holding float32 values.
        shrink: the entry of `SHRINK` that did best on samples left out.
    """

    integers: torch.Tensor
    scale: torch.Tensor
    shrink: float


def round_layer(
    weight: torch.Tensor,
    least_scale: torch.Tensor,
    fit: Moments,
    held_out: Moments,
    both: Moments,
    *,
    limit: int = 127,
    search_scales: bool = True,
) -> Rounded:
    """Chooses integers and scales of one layer's weight.

    Args:
        weight: [groups, o, d], float.
        least_scale: [groups, o, 1]: scales that a bias of 32 bits needs at least.
        fit: moments of the samples to fit.
        held_out: moments of other samples, which decide how far to trust the fit.
        both: moments of all samples, for the final choice.
        limit: integers are within plus and minus this.
        search_scales: whether scales smaller than the largest weight needs may be taken.
    """
    weight = weight.double()
    best, chosen = None, 1.0
    for shrink in SHRINK:
        integers, scale = _solve(weight, least_scale, fit, shrink, limit, search_scales)
        error = float(_error(integers * scale, weight, held_out).sum())
        if best is None or error < best:
            best, chosen = error, shrink
        elif shrink < chosen / 5:
            break  # two steps past the best: it will not come back
    integers, scale = _solve(weight, least_scale, both, chosen, limit, search_scales)
    return Rounded(integers, scale, chosen)


def _error(real: torch.Tensor, weight: torch.Tensor, moments: Moments) -> torch.Tensor:
    """``E |W x - Q y|^2`` per output channel [groups, o], less a constant of the layer."""
    quadratic = ((real @ moments.gram) * real).sum(2)
    linear = ((weight @ moments.cross) * real).sum(2)
    return quadratic - 2 * linear


def _solve(
    weight: torch.Tensor,
    least_scale: torch.Tensor,
    moments: Moments,
    shrink: float,
    limit: int,
    search_scales: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    diagonal = moments.gram.diagonal(dim1=1, dim2=2).clamp_min(0.0)
    # Silent inputs keep their rounded weights, and the matrix stays positive definite.
    floor = 1e-6 * diagonal.mean(1, keepdim=True) + 1e-8 * diagonal.max() + 1e-30
    diagonal = torch.maximum(diagonal, floor)
    gram = (1 - shrink) * moments.gram + torch.diag_embed(shrink * diagonal + floor)
    linear = (1 - shrink) * (weight @ moments.cross) + weight * (shrink * diagonal + floor)[:, None]
    optimum = weight
    if shrink < 1:
        factor, failed = torch.linalg.cholesky_ex(gram)
        optimum = torch.cholesky_solve(linear.transpose(1, 2), factor).transpose(1, 2)
        # Moments of very few rows may hold nothing but float rounding: no ground to stand on.
        sound = (failed == 0)[:, None, None]
        gram = torch.where(sound, gram, torch.diag_embed(diagonal + floor))
        linear = torch.where(sound, linear, weight * (diagonal + floor)[:, None])
        optimum = torch.where(sound, optimum, weight)
    # A weight of the optimum may lie outside what the layer's own weights reach.
    reach = weight.abs().amax(2, keepdim=True)
    optimum = torch.minimum(torch.maximum(optimum, -1.25 * reach), 1.25 * reach)
    widest = optimum.abs().amax(2, keepdim=True) / limit
    narrow = weight.shape[2] <= _NARROW
    best: list[torch.Tensor] = []
    for share in _SCALES if search_scales else (1.0,):
        scale = _float32(torch.maximum(widest * share, least_scale))
        integers = torch.clamp(torch.round(optimum / scale), -limit, limit)
        if narrow:
            integers = _descend(integers, scale, gram, linear, limit)
        error = _objective(integers * scale, gram, linear)
        if not best:
            best = [error, integers, scale]
            continue
        better = (error < best[0])[:, :, None]
        best[0] = torch.minimum(error, best[0])
        best[1] = torch.where(better, integers, best[1])
        best[2] = torch.where(better, scale, best[2])
    _, integers, scale = best
    if not narrow and shrink < 1:
        integers = _descend(integers, scale, gram, linear, limit)
    return integers, scale


def _objective(real: torch.Tensor, gram: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    return (((real @ gram) - 2 * linear) * real).sum(2)


def _descend(
    integers: torch.Tensor,
    scale: torch.Tensor,
    gram: torch.Tensor,
    linear: torch.Tensor,
    limit: int,
) -> torch.Tensor:
    """Coordinate descent over integers; columns in blocks, so that most work is matrix products."""
    integers = integers.clone()
    width = integers.shape[2]
    diagonal = gram.diagonal(dim1=1, dim2=2)
    for _ in range(_SWEEPS):
        slope = (integers * scale) @ gram - linear
        changed = False
        for start in range(0, width, _BLOCK):
            block = slice(start, min(start + _BLOCK, width))
            here = slope[:, :, block].clone()
            local = gram[:, block, block]
            moved = torch.zeros_like(here)
            for j in range(here.shape[2]):
                column = start + j
                step = here[:, :, j] / diagonal[:, column : column + 1]
                old = integers[:, :, column]
                new = torch.clamp(torch.round(old - step / scale[:, :, 0]), -limit, limit)
                delta = (new - old) * scale[:, :, 0]
                moved[:, :, j] = delta
                integers[:, :, column] = new
                here += delta[:, :, None] * local[:, j : j + 1, :]
            if bool(moved.any()):
                changed = True
                slope += moved @ gram[:, block, :]
        if not changed:
            break
    return integers


def _float32(scale: torch.Tensor) -> torch.Tensor:
    return scale.float().double()


def mean_moments(parts: Sequence[Moments]) -> Moments:
    """The mean of moments of equally many samples each."""
    count = len(parts)
    return Moments(sum(p.gram for p in parts) / count, sum(p.cross for p in parts) / count)  # type: ignore[arg-type]
