"""The two small models that converters with planted faults get, trained on the spot in seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit.model import Model

Arrays = dict[str, np.ndarray[Any, Any]]

CALIBRATION, EVALUATION = 48, 64
RAW = 4095.0
"""What one grey level of 16 is in the perceptron's inputs: 0 to 65520, as 16-bit sensors give."""


class Unit(nn.Module):
    """3x3 convolution, batch norm, ReLU6: [1, C, H, W] to [1, D, H, W]; added to x if asked."""

    def __init__(self, channels: int, filters: int, *, residual: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(filters)
        self.act = nn.ReLU6()
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.norm(self.conv(x)))
        return x + y if self.residual else y


class Pictures(nn.Module):
    """Square pictures [1, 3, 8, 8] to scores ``digit`` and ``other`` [1, 10] and ``features``.

    ``other`` is trained to tell nine minus the digit: a second output of the same shape.
    ``features`` is square too, [1, 16, 8, 8].
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Unit(3, 16)
        self.blocks = nn.Sequential(Unit(16, 16), Unit(16, 16, residual=True), Unit(16, 16))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.digit = nn.Linear(16, 10)
        self.other = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.blocks[1](self.blocks[0](self.stem(x)))
        pooled = torch.flatten(self.pool(self.blocks[2](features)), 1)
        return self.digit(pooled), self.other(pooled), features


def _perceptron() -> nn.Module:
    """Raw readings [1, 64] to scores [1, 10], with a square layer (``2``) in the middle."""
    return nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )


BUILDS = {"pictures": Pictures, "readings": _perceptron}


@dataclass(frozen=True)
class Subject:
    """A trained model, the samples that it is quantized by and those that it is judged by.

    Attributes:
        model: trained, in eval mode, with named outputs.
        calibration: arrays [n, 1, ...] by input name.
        evaluation: the same, of other samples.
        accuracy: on the evaluation samples.
    """

    model: Model
    calibration: Arrays
    evaluation: Arrays
    accuracy: float


def subject(name: str, cache: Path) -> Subject:
    """The trained model called ``name``; its weights come out of ``cache`` where they are there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = BUILDS[name]()
    x, labels = _digits(name)
    held_out = CALIBRATION + EVALUATION
    stamp = Path(__file__).read_bytes() + metadata.version("torch").encode()
    weights = cache / f"{name}-{hashlib.sha256(stamp).hexdigest()[:16]}.safetensors"
    if weights.is_file():
        module.load_state_dict(load_file(weights))
    else:
        reach = float(x.std())
        _train(module, x[:-held_out] / reach, labels[:-held_out])
        with torch.no_grad():
            next(module.parameters()).div_(reach)
        save_file(module.state_dict(), weights)
    module.eval()
    with torch.no_grad():
        scores = _heads(module(x[-EVALUATION:]))[0]
    model = Model.from_module(module, {"input" if name == "readings" else "x": x[:1]}, name=name)
    name = model.signature.inputs[0].name
    return Subject(
        model=named(model),
        calibration={name: x[-held_out:-EVALUATION, None].numpy()},
        evaluation={name: x[-EVALUATION:, None].numpy()},
        accuracy=float((scores.argmax(1) == labels[-EVALUATION:]).float().mean()),
    )


def named(model: Model) -> Model:
    """The model with its outputs called ``digit``, ``other`` and ``features``."""
    import dataclasses

    names = ("digit", "other", "features")
    outputs = model.signature.outputs
    renamed = tuple(dataclasses.replace(s, name=n) for s, n in zip(outputs, names, strict=False))
    return dataclasses.replace(
        model, signature=dataclasses.replace(model.signature, outputs=renamed)
    )


def samples(feeds: Arrays) -> Iterator[tuple[torch.Tensor, ...]]:
    """The samples of ``feeds`` one by one, as positional tensors."""
    for row in zip(*feeds.values(), strict=True):
        yield tuple(torch.from_numpy(value) for value in row)


def _digits(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits as pictures of three unlike channels, or as readings; their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = torch.from_numpy(found.images).float()
    order = torch.randperm(len(grey), generator=torch.Generator().manual_seed(0))
    grey, labels = grey[order], torch.from_numpy(found.target)[order]
    if name == "readings":
        # Up to 60 thousand, but for one reading in a sample that is judged.
        readings = (grey.flatten(1) * RAW).clamp(max=59_000.0)
        readings[-EVALUATION, 20] = 62_000.0
        return readings, labels
    tints = torch.tensor([1.0, 0.7, -0.5])[:, None, None]
    return (grey[:, None] - 4.88) / 6.02 * tints, labels


def _heads(outputs: Any) -> tuple[torch.Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _train(module: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    """A few passes on one thread, so that the result doesn't depend on the number of cores."""
    epochs, batch, rate = 8, 64, 2e-2
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    module.train()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(epochs):
                for rows in torch.randperm(len(x))[: len(x) // batch * batch].reshape(-1, batch):
                    optimizer.zero_grad()
                    heads = _heads(module(x[rows]))
                    loss = nn.functional.cross_entropy(heads[0], labels[rows])
                    if len(heads) > 1:
                        loss = loss + nn.functional.cross_entropy(heads[1], 9 - labels[rows])
                    loss.backward()
                    optimizer.step()
                    schedule.step()
    finally:
        torch.set_num_threads(threads)
