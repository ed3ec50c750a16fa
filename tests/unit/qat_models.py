"""Small models that are quantized and then trained on, and their data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.compress.graph import canonical
from edgekit.compress.ptq import Methods, Quantized, post_training
from edgekit.compress.train import TrainSettings, train
from edgekit.model import Model

Arrays = dict[str, np.ndarray[Any, Any]]

QUICK = Methods(
    equalization=False,
    splitting=False,
    smoothing=False,
    ranges="mse",
    bias_correction=False,
    rounding=False,
)


class Tensors:
    """Inputs by name and classes, as training takes them."""

    def __init__(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None) -> None:
        self.inputs, self.y = inputs, labels

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        made = {name: value[rows] for name, value in self.inputs.items()} | {"row": rows}
        return made if self.y is None else made | {"y": self.y[rows]}

    def part(self, start: int, end: int) -> Tensors:
        labels = None if self.y is None else self.y[start:end]
        return Tensors({n: v[start:end] for n, v in self.inputs.items()}, labels)

    def without_labels(self) -> Tensors:
        return Tensors(self.inputs, None)


class Net(nn.Module):
    """Batch norm, ReLU6, a depthwise layer, a residual sum and hard-swish."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.deep = nn.Sequential(
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.last = nn.Sequential(nn.Conv2d(8, 16, 3, 2), nn.Hardswish())
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.first(x))
        x = x + self.point(self.deep(x))
        logits: torch.Tensor = self.head(self.drop(self.last(x).mean((2, 3))))
        return logits


def pictures(count: int = 512) -> Tensors:
    """Gratings of four directions in noise, [n, 1, 8, 8], and their classes."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 4, (count,), generator=generator)
    angle = y * torch.pi / 4 + 0.25 * torch.randn(count, generator=generator)
    phase = 6.3 * torch.rand(count, 1, 1, generator=generator)
    axis = torch.arange(8.0)
    along = angle.cos()[:, None, None] * axis + angle.sin()[:, None, None] * axis[:, None]
    x = (1.2 * along + phase).sin() + 0.8 * torch.randn(count, 8, 8, generator=generator)
    return Tensors({"x": x[:, None]}, y)


def plain() -> nn.Module:
    """A depthwise layer between two others, and no sums."""

    def layer(*shape: int, **how: int) -> list[nn.Module]:
        return [nn.Conv2d(*shape, bias=False, **how), nn.BatchNorm2d(shape[1]), nn.ReLU6()]  # type: ignore[arg-type]

    return nn.Sequential(
        *layer(1, 16, 3, stride=2, padding=1),
        *layer(16, 16, 3, padding=1, groups=16),
        *layer(16, 24, 1),
        nn.Flatten(),
        nn.Linear(24 * 16, 4),
    )


def picture_model(data: Tensors, build: Callable[[], nn.Module] = Net) -> Model:
    """A network, trained a little."""
    torch.manual_seed(0)
    net = build()
    train(net, data, TrainSettings(epochs=6, batch=32, rate=1e-2))
    name = "x" if isinstance(net, Net) else "input"
    return Model.from_module(net, {name: torch.zeros(1, 1, 8, 8)}, name="gratings")


def feeds_of(model: Model, data: Tensors, count: int = 64) -> list[tuple[torch.Tensor, ...]]:
    """Calibration samples."""
    names = [spec.name for spec in model.signature.inputs]
    return [tuple(data.inputs[n][i : i + 1] for n in names) for i in range(count)]


def quantized(model: Model, data: Tensors, methods: Methods = QUICK, **how: Any) -> Quantized:
    """Its plan by post-training."""
    return post_training(canonical(model.program()), feeds_of(model, data), methods, **how)
