"""Training a classifier: its loss, its score, held-out samples, and what data are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from edgekit.compress._train_types import NOT_INPUTS, Batch, TrainSet
from edgekit.errors import BadData, UsageError

__all__ = [
    "ClassLoss",
    "accuracy",
    "check_classes",
    "held_out",
    "inputs_of",
    "labels_of",
    "logits_of",
    "mixed",
    "seed_of",
    "seeded",
]

_SCORED_AT_ONCE: Final = 256


def inputs_of(batch: Batch) -> dict[str, torch.Tensor]:
    """The model's inputs of a batch."""
    return {name: value for name, value in batch.items() if name not in NOT_INPUTS}


def logits_of(module: nn.Module, batch: Batch) -> torch.Tensor:
    """What a classifier answers: float ``[n, classes]``.

    A single input is given by position, several by name. An answer that is no tensor has its
    logits as ``logits``, or first.
    """
    inputs = inputs_of(batch)
    answer: Any = module(*inputs.values()) if len(inputs) == 1 else module(**inputs)
    if isinstance(answer, torch.Tensor):
        return answer
    found = answer["logits"] if isinstance(answer, dict) else getattr(answer, "logits", None)
    logits: torch.Tensor = answer[0] if found is None else found
    return logits


class ClassLoss:
    """Cross entropy with label smoothing, and with both classes of what mixup mixed.

    Args:
        smoothing: the part of the target that goes to all classes alike.
        top: the highest class of the data, which the model must know; -1 is not checked.
    """

    def __init__(self, smoothing: float = 0.0, top: int = -1) -> None:
        self._smoothing, self._top = smoothing, top

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        if "y" not in batch:
            raise BadData(
                "the samples have no classes to learn",
                hint="give labels, or a loss that needs none",
            )
        logits = logits_of(module, batch)
        if logits.dim() != 2 or logits.shape[1] <= self._top:
            raise BadData(
                f"the data have classes up to {self._top}; the model answers {tuple(logits.shape)}",
                hint="give the model an output for each class: [n, classes]",
            )
        loss = self._of(logits, batch["y"])
        if "y2" in batch:
            loss = batch["mix"] * loss + (1 - batch["mix"]) * self._of(logits, batch["y2"])
        return loss

    def _of(self, logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, classes, label_smoothing=self._smoothing)


def mixed(batch: dict[str, torch.Tensor], alpha: float, seed: int) -> dict[str, torch.Tensor]:
    """The batch with every sample mixed with another, by one part out of Beta(alpha, alpha).

    Raises:
        UsageError: no input is of floats, as a text's are not.
    """
    floats = {n: v for n, v in inputs_of(batch).items() if v.is_floating_point()}
    if not floats:
        raise UsageError("mixup mixes inputs of floats, and there are none", hint="set mixup=0")
    part = float(np.random.default_rng(seed).beta(alpha, alpha))
    others = torch.randperm(len(batch["y"]), generator=seeded(seed))
    out = dict(batch) | {n: torch.lerp(v[others], v, part) for n, v in floats.items()}
    return out | {"y2": batch["y"][others], "mix": torch.tensor(part)}


@torch.no_grad()
def accuracy(
    module: nn.Module,
    data: TrainSet,
    rows: torch.Tensor | None = None,
    batch: int = _SCORED_AT_ONCE,
) -> float:
    """Top-1 of a classifier in eval mode, in percent.

    Args:
        module: answers ``[n, classes]``; it is put into eval mode.
        data: samples with classes ``y``, taken without augmentation.
        rows: which of them, int64 ``[n]``; None for all.
        batch: how many at once.

    Raises:
        BadData: there are no samples.
    """
    rows = torch.arange(len(data)) if rows is None else rows
    if not len(rows):
        raise BadData("there are no samples to score")
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    module.eval()
    right = 0
    for part in rows.split(batch):
        moved = {n: v.to(device) for n, v in data.batch(part, None).items()}
        right += int((logits_of(module, moved).argmax(1) == moved["y"]).sum())
    return 100 * right / len(rows)


def labels_of(data: TrainSet) -> torch.Tensor | None:
    """The classes of a set that knows them, int64 ``[n]``."""
    labels = getattr(data, "labels", None)
    return None if labels is None else torch.as_tensor(labels, dtype=torch.int64)


def check_classes(data: TrainSet) -> int:
    """The highest class, or -1 where the set does not know its classes.

    Raises:
        BadData: there are no samples, all are of one class, or a class is negative.
    """
    labels = labels_of(data)
    if not len(data):
        raise BadData(f"{_source(data)} holds no samples to train on")
    if labels is None:
        return -1
    if int(labels.min()) < 0:
        raise BadData(f"{_source(data)}: sample {int(labels.argmin())} has a negative class")
    found = labels.unique()
    if len(found) == 1:
        raise BadData(
            f"{_source(data)}: all {len(labels)} samples are of class "
            f"{_name(data, int(found[0]))}; a classifier learns from two and more",
            hint="pictures lie in a folder for each class",
        )
    return int(labels.max())


def held_out(data: TrainSet, share: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Divides training data: rows to learn from, and rows held out to choose by.

    Where the set knows its classes, each gives its part, at least one sample and never all.

    Args:
        data: the set.
        share: the part that is held out, 0 to 1.
        seed: of the choice.

    Returns:
        Two int64 tensors of rows in ascending order, which have none in common.

    Raises:
        BadData: a class has a single sample, or there is a single sample altogether.
    """
    labels = labels_of(data)
    groups = torch.zeros(len(data), dtype=torch.int64) if labels is None else labels
    shuffled = torch.randperm(len(data), generator=seeded(seed, "held out"))
    kept, out = [], []
    for group in groups.unique().tolist():
        members = shuffled[groups[shuffled] == group]
        if len(members) < 2:
            what = "" if labels is None else f" of class {_name(data, group)}"
            raise BadData(
                f"{_source(data)} has 1 sample{what}; 2 are needed to hold one out for validation",
                hint="add samples, leave the class out, or set validation=0",
            )
        count = min(len(members) - 1, max(1, round(share * len(members))))
        out.append(members[:count])
        kept.append(members[count:])
    return torch.cat(kept).sort().values, torch.cat(out).sort().values


def _source(data: TrainSet) -> str:
    return str(getattr(data, "source", "the training set"))


def _name(data: TrainSet, index: int) -> str:
    names: Sequence[str] = getattr(data, "classes", ())
    return f"{index} ({names[index]})" if index < len(names) else str(index)


def seed_of(*parts: object) -> int:
    """A seed of 63 bits out of anything that prints: other parts, another seed."""
    told = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(told[:8]) >> 1


def seeded(*parts: object) -> torch.Generator:
    """A generator of its own for what ``parts`` name."""
    return torch.Generator().manual_seed(seed_of(*parts))
