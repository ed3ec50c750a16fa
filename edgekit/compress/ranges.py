"""Ranges of activations: what calibration saw, or less where that loses less.

A range that holds the one largest value ever seen gives every other value a coarser step.
Minimising the mean squared error of quantization over the values seen trades the two, as in
Banner et al.,
"Post-training 4-bit quantization of convolution networks for rapid-deployment" (arXiv:1810.05723)
and Nagel et al., "A White Paper on Neural Network Quantization" (arXiv:2106.08295).
"""

from __future__ import annotations

from typing import Any

import torch
from torchao.quantization.pt2e import MinMaxObserver

__all__ = ["RangeObserver", "least_error_range"]

_KEPT = 2048
"""Values kept of a tensor per sample."""
_SEARCHED = 1 << 16
"""Values that a range is searched over, at most."""
_SHARES = torch.arange(1.0, 0.295, -0.025)
_PASSES = 2


class RangeObserver(MinMaxObserver):  # type: ignore[misc]
    """Smallest and largest value of a tensor, and a random choice of the values between.

    Attributes:
        kept: one tensor of values for every sample seen.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: list[torch.Tensor] = []
        self._generator = torch.Generator().manual_seed(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Notes the values of ``x`` and gives it back."""
        values = x.detach().flatten()
        if values.numel() > _KEPT:
            places = torch.randint(values.numel(), (_KEPT,), generator=self._generator)
            values = values[places]
        self.kept.append(values.clone())
        seen: torch.Tensor = super().forward(x)
        return seen

    def values(self) -> torch.Tensor:
        """The values kept, float32 [n]."""
        return torch.cat(self.kept) if self.kept else torch.empty(0)


def least_error_range(
    values: torch.Tensor, low: float, high: float, *, steps: int = 255
) -> tuple[float, float]:
    """The range within ``low`` to ``high`` that quantizes ``values`` with the least squared error.

    Args:
        values: [n], a fair choice of what the tensor holds.
        low: the range to start from, zero or less.
        high: zero or more.
        steps: between the ends of the range.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if not high > low or values.numel() == 0:
        return low, high
    if values.numel() > _SEARCHED:
        values = values[:: -(-values.numel() // _SEARCHED)]
    values = values.clamp(low, high)
    shares = [1.0, 1.0]
    best = _error(values, low, high, steps)
    for _ in range(_PASSES):
        for end in (0, 1):
            if (low, high)[end] == 0:
                continue
            for share in _SHARES.tolist():
                tried = [*shares]
                tried[end] = share
                error = _error(values, low * tried[0], high * tried[1], steps)
                if error < best:
                    best, shares = error, tried
    return low * shares[0], high * shares[1]


def _error(values: torch.Tensor, low: float, high: float, steps: int) -> float:
    scale = (high - low) / steps
    zero = round(-low / scale)
    codes = torch.clamp(torch.round(values / scale) + zero, 0, steps)
    return float(((codes - zero) * scale - values).square().mean())
