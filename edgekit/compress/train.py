"""Training: a module and a set to learn from in, the module trained.

Distillation, recovery after pruning and quantization-aware training are this loop with another
loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from edgekit.protocols import Unwatched, Watch
from edgekit.settings import Settings

__all__ = ["Batch", "Loss", "TrainSet", "TrainSettings", "Trained", "train"]

Batch = Mapping[str, torch.Tensor]
"""The model's inputs by name, ``[n, ...]``; ``y``, int64 ``[n]``, the classes; ``row``, int64
``[n]``, which samples of the set these are."""

Loss = Callable[[nn.Module, Batch], torch.Tensor]
"""A scalar to be made small, out of a module in train mode and a batch."""


class TrainSet(Protocol):
    """What is learned from."""

    def __len__(self) -> int: ...

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """The samples of ``rows``, int64 ``[n]``.

        Args:
            rows: which samples.
            generator: what augmentation draws from; None for the samples as they are.
        """


class TrainSettings(Settings):
    """How a module is trained."""

    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """What training did.

    Attributes:
        state: the weights that are kept, contiguous and on the CPU: ``module.load_state_dict``'s.
        curve: one mapping per epoch: ``epoch``, ``loss``, ``rate`` and, where there was a score,
            ``score``.
        best: the score of the kept weights, or None.
    """

    state: Mapping[str, torch.Tensor]
    curve: tuple[Mapping[str, float], ...]
    best: float | None


def cross_entropy(module: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss of a classifier that takes the batch's inputs by name."""
    inputs = {k: v for k, v in batch.items() if k not in ("y", "row")}
    return nn.functional.cross_entropy(module(**inputs), batch["y"])


def train(
    module: nn.Module,
    data: TrainSet,
    settings: TrainSettings,
    *,
    loss: Loss = cross_entropy,
    score: Callable[[nn.Module], float] | None = None,
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Trains ``module`` in place, which ends with the weights that are kept.

    Args:
        module: what is trained; it ends in eval mode.
        data: what it learns from.
        settings: how.
        loss: what is made small.
        score: of the module in eval mode, more is better; it chooses the weights that are kept.
        folder: where a checkpoint is kept, and gone on from where one is there; None keeps none.
        watch: hears of the steps.
    """
    watch = watch or Unwatched()
    torch.manual_seed(settings.seed)
    rule = torch.optim.AdamW(module.parameters(), settings.rate)
    curve: list[dict[str, Any]] = []
    best: float | None = None
    generator = torch.Generator().manual_seed(settings.seed)
    for epoch in range(settings.epochs):
        module.train()
        total, steps = 0.0, len(data) // settings.batch
        for rows in torch.randperm(len(data), generator=generator).split(settings.batch)[:steps]:
            value = loss(module, data.batch(rows, generator))
            rule.zero_grad()
            value.backward()
            rule.step()
            total += float(value.detach())
        module.eval()
        best = None if score is None else score(module)
        point = {"epoch": epoch + 1, "loss": total / max(1, steps), "rate": settings.rate}
        curve.append(point if best is None else point | {"score": best})
        watch.step(epoch + 1, settings.epochs, loss=point["loss"])
    module.eval()
    state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    return Trained(state, tuple(curve), best)
