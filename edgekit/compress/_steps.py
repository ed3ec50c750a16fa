"""The steps of a plan's edges while they are trained: fixed, learned, or following the values seen.

What is learned of a step is its logarithm, against where post-training put it.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
from torch import fx, nn

from edgekit.compress._nodes import aten
from edgekit.compress._straight import rounded
from edgekit.compress.annotate import PROBABILITIES, flat_range
from edgekit.compress.plan import Edge
from edgekit.compress.quantize import ROOM, scale_of

__all__ = ["ActivationSteps", "WeightSteps"]

_TINY: Final = float(np.finfo(np.float32).tiny)


class ActivationSteps(nn.Module):
    """The steps of one activation, or of several that share them."""

    start: torch.Tensor
    zero: torch.Tensor
    ends: torch.Tensor

    def __init__(self, edge: Edge, members: list[fx.Node], wide: bool, learned: bool) -> None:
        super().__init__()
        self.edge, self._members, self._wide = edge, members, wide
        self.free = not _is_fixed(members, learned)
        self.register_buffer("start", torch.tensor(edge.scale[0], dtype=torch.float32))
        self.register_buffer("zero", torch.tensor(edge.zero_point[0]))
        room = ROOM if wide else 1.0
        ends = [(q - edge.zero_point[0]) * edge.scale[0] for q in (edge.quant_min, edge.quant_max)]
        self.register_buffer("ends", torch.tensor(ends, dtype=torch.float64) / room)
        self.shift = nn.Parameter(torch.zeros(())) if learned and self.free else None
        size = max(math.prod(m.meta["val"].shape) for m in members)
        self._gain = 1 / math.sqrt(max(1, size) * edge.quant_max)
        self.frozen, self.observes = False, self.free and not learned
        self._zero = edge.zero_point[0]
        self.seen: tuple[torch.Tensor, torch.Tensor] | None = None

    def scale(self) -> torch.Tensor:
        if self.shift is None:  # a copy: observing changes it in place before gradients are taken
            return self.start.clone() if self.observes else self.start
        shift = self.shift.detach() if self.frozen else self.shift
        return self.start * shift.exp()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        if self.training and self.observes and not self.frozen:
            low, high = value.detach().amin(), value.detach().amax()
            if self.seen is not None:
                low, high = torch.minimum(low, self.seen[0]), torch.maximum(high, self.seen[1])
            self.seen = low.double(), high.double()
        limits = (self.edge.quant_min - self._zero, self.edge.quant_max - self._zero)
        return rounded(value, self.scale(), *limits, self._gain)

    def hear(self, low: torch.Tensor, high: torch.Tensor, share: float) -> None:
        """Moves the range towards a batch's, by ``share``."""
        self.ends.lerp_(torch.stack((low.min(), high.max())), share)
        self._settle()

    def _settle(self) -> None:
        low, high = self.ends.tolist()
        if len(self._members) == 1:
            flat_low, flat_high = flat_range(self._members[0])
            low = low if flat_low is None or high <= flat_low else max(low, flat_low)
            high = high if flat_high is None or low >= flat_high else min(high, flat_high)
        scale, zero = scale_of(self._members, low, high, False, wide=self._wide)
        self.start.fill_(scale)
        self.zero.fill_(zero)
        self._zero = zero

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._zero = int(self.zero)

    def found(self) -> tuple[float, int]:
        """Scale and zero point as they are now."""
        if self.observes:
            self._settle()  # an average of averages has ends, and no steps of its own
        return float(self.scale().detach()), self._zero


def _is_fixed(members: list[fx.Node], learned: bool) -> bool:
    """Whether a rule of the plan, and no range, says what the steps are.

    A model's input keeps its range whole, probabilities stand for k / 256, and learned steps would
    move hard-swish's bends off the grid.
    """
    if any(m.op == "placeholder" or m.target in PROBABILITIES for m in members):
        return True
    return learned and any(u.target is aten.hardswish.default for m in members for u in m.users)


class WeightSteps(nn.Module):
    """The steps of one weight, a scale per channel, or one."""

    start: torch.Tensor

    def __init__(self, edge: Edge, target: str, value: torch.Tensor, learned: bool) -> None:
        super().__init__()
        self.edge, self.target = edge, target
        scale = torch.tensor(edge.scale, dtype=torch.float32)
        self.register_buffer("start", scale)
        self.shift = nn.Parameter(torch.zeros_like(scale)) if learned else None
        self._shape = [1] * value.dim()
        if edge.axis is not None:
            self._shape[edge.axis] = -1
        self._gain = 1 / math.sqrt(max(1, value.numel() // len(scale)) * edge.quant_max)
        self.frozen, self.observes = False, not learned

    def scale(self, value: torch.Tensor, least: torch.Tensor | None) -> torch.Tensor:
        """Steps ``[channels]``, no finer than ``least`` (where an int32 bias would overflow)."""
        scale = self.start
        if self.shift is not None:
            scale = scale * (self.shift.detach() if self.frozen else self.shift).exp()
        elif self.training and self.observes and not self.frozen:
            axes = [i for i, size in enumerate(self._shape) if size == 1]
            reach = value.detach().abs().amax(axes).reshape(-1) / self.edge.quant_max
            self.start.copy_(torch.where(reach > _TINY, reach, self.start))
            scale = self.start.clone()
        return scale if least is None else torch.maximum(scale, least)

    def forward(self, value: torch.Tensor, least: torch.Tensor | None) -> torch.Tensor:
        scale = self.scale(value, least).reshape(self._shape)
        return rounded(value, scale, self.edge.quant_min, self.edge.quant_max, self._gain)
