"""Rounding that gradients pass through: what training sees of a plan's integers.

The straight-through estimator (Bengio et al., "Estimating or Propagating Gradients Through
Stochastic Neurons", 2013, arXiv:1308.3432) takes the derivative of rounding as 1 within the
integers' range and 0 beyond it. That of the step is LSQ's (Esser et al., "Learned Step Size
Quantization", 2019, arXiv:1902.08153).
"""

from __future__ import annotations

from typing import Any

import torch

from edgekit.compress.dynamic import fake_dynamic

__all__ = ["rounded", "straight_dynamic"]


def rounded(
    value: torch.Tensor, scale: torch.Tensor, low: int, high: int, gain: float = 1.0
) -> torch.Tensor:
    """``value`` on a grid, as `edgekit.compress.fake.fake_quantize` puts it there.

    Args:
        value: float, any shape; computed in float32.
        scale: float32 step, of a shape that broadcasts against ``value``'s last dimensions.
        low: the lowest integer less the zero point.
        high: the highest integer less the zero point.
        gain: factor of the step's gradient.
    """
    result: torch.Tensor = _Rounded.apply(value.float(), scale, low, high, gain)  # type: ignore[no-untyped-call]
    return result


def straight_dynamic(value: torch.Tensor, per: str) -> torch.Tensor:
    """`edgekit.compress.dynamic.fake_dynamic` with the derivative of an identity."""
    value = value.float()
    return value + (fake_dynamic(value.detach(), per) - value.detach())


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(
        value: torch.Tensor, scale: torch.Tensor, low: int, high: int, gain: float
    ) -> torch.Tensor:
        return torch.mul(value, 1 / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        value, scale, ctx.low, ctx.high, ctx.gain = inputs
        # The result is kept by what reads it in any case.
        ctx.save_for_backward(value, scale, output)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,) = grads
        value, scale, output = ctx.saved_tensors
        inside = (value >= (ctx.low - 0.5) * scale) & (value <= (ctx.high + 0.5) * scale)
        to_value = torch.where(inside, grad, 0.0)
        to_scale = None
        if ctx.needs_input_grad[1]:
            # LSQ's derivative times the step: round(v/s)*s - v within, the end's value beyond.
            moved = output * grad - value * to_value
            to_scale = moved.sum_to_size(scale.shape) / scale * ctx.gain
        return to_value if ctx.needs_input_grad[0] else None, to_scale, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], value: Any, scale: Any, *rest: Any) -> Any:
        # The samples go in front, where the step broadcasts over them.
        if in_dims[1] is not None:
            raise NotImplementedError("a step of each sample's own")
        return _Rounded.apply(value.movedim(in_dims[0], 0), scale, *rest), 0  # type: ignore[no-untyped-call]
