"""A small model whose weights were planted so that half of all pairs of products saturate.

For `edgekit.sources`: ``saturating_model.py:build`` and ``saturating_model.py:samples``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgekit import Model

SHAPE = (1, 3, 12, 12)


def _planted(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights near the largest, of random sign."""
    with torch.no_grad():
        sign = torch.sign(torch.randn(layer.weight.shape, generator=generator))
        size = 0.7 + 0.3 * torch.rand(layer.weight.shape, generator=generator)
        layer.weight.copy_(sign * size)
        layer.weight.div_(layer.weight[0].numel() ** 0.5)
        layer.bias.fill_(1.5)
    return layer


def build() -> Model:
    """Layers whose kernels differ: a stem of three channels, depthwise, 1x1, linear."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU6(),
        nn.Conv2d(16, 24, 1),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(24 * 36, 10),
    ]
    made = [_planted(m, generator) if hasattr(m, "weight") else m for m in layers]
    return Model.from_module(nn.Sequential(*made).eval(), {"input": torch.zeros(SHAPE)})


def pictures(count: int, seed: int) -> np.ndarray:
    """Bright pictures [n, 3, 12, 12]: most values near the largest."""
    rng = np.random.default_rng(seed)
    return (rng.random((count, *SHAPE[1:])) ** 0.3).astype(np.float32)
