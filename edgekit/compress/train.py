"""Training: a module and a set to learn from in, the module trained.

    made = train(module, pictures, TrainSettings(epochs=16, ema=0.99, validation=0.1), folder=out)

Distillation, recovery after pruning and quantization-aware training are this loop with another
loss. The same inputs, seed and number of threads give the same weights, bit for bit, and so does a
training that was killed and called again with the same folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.compress._amp import device_of, repeatable
from edgekit.compress._checkpoint import digest_of
from edgekit.compress._classes import (
    ClassLoss,
    accuracy,
    check_classes,
    held_out,
    inputs_of,
    logits_of,
)
from edgekit.compress._optimize import Frozen, copies_of, tensors_of
from edgekit.compress._team import Team, assemble
from edgekit.compress._train_types import Batch, Loss, Trained, TrainSet, TrainSettings
from edgekit.compress._training import Task, Training
from edgekit.errors import UsageError
from edgekit.protocols import Unwatched, Watch

__all__ = [
    "Batch",
    "Loss",
    "TrainSet",
    "TrainSettings",
    "Trained",
    "accuracy",
    "cross_entropy",
    "held_out",
    "inputs_of",
    "logits_of",
    "train",
]


def cross_entropy(module: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss of a classifier, as `logits_of` asks it; `train` adds its settings' smoothing."""
    return nn.functional.cross_entropy(logits_of(module, batch), batch["y"])


def train(
    module: nn.Module,
    data: TrainSet,
    settings: TrainSettings,
    *,
    loss: Loss = cross_entropy,
    score: Callable[[nn.Module], float] | None = None,
    folder: Path | None = None,
    watch: Watch | None = None,
    each_epoch: Callable[[nn.Module, int], None] | None = None,
) -> Trained:
    """Trains ``module`` in place, which ends with the weights that are kept.

    While it is trained the module is on the settings' device, where ``loss`` and ``score`` get it;
    it ends on the device that it came on, in eval mode. If anything is raised it has the weights
    that it came with.

    Args:
        module: what is trained.
        data: what it learns from; never the samples that it is judged by in the end.
        settings: how.
        loss: what is made small. `cross_entropy` goes by the settings' ``smoothing`` and ``mixup``;
            a loss of your own has its own. An attribute ``digest``, a string, tells a checkpoint
            two losses of one name apart.
        score: of the module in eval mode, more is better; it chooses the weights that are kept.
            None with the settings' ``validation`` scores held-out samples.
        folder: where a checkpoint is kept, and gone on from where one of the same training is
            there: same settings, data, initial weights, loss, torch and number of processes. None
            keeps none.
        watch: hears of the steps, at most ten times a second, and of every epoch's figures.
        each_epoch: called with the module in train mode and the number of the epoch, from 1,
            before each epoch, and when one is gone on from within; what it sets must follow from
            that number alone.

    Returns:
        The kept weights, the curve and the best score. In processes that torchrun started, each
        gets the same.

    Raises:
        BadData: too few samples, or of one class only; a class that the model has no output for;
            a loss, a weight or a score became NaN; or what ``data`` raises.
        UsageError: settings that contradict each other or the arguments.
        UnsupportedError: no such device, or torch does not train in that type on it.
        StorageError: a checkpoint cannot be written; the earlier one stays.
        WorkerCrashed: another process that trained along died.
    """
    _check(settings, loss, score)
    rows = torch.arange(len(data))
    if loss is cross_entropy:
        loss = ClassLoss(settings.smoothing, check_classes(data))
    if score is None and settings.validation:
        rows, out = held_out(data, settings.validation, settings.seed)
        score = _Held(data, out)
    if not settings.epochs:
        module.eval()
        return Trained(_state(module), (), None)
    task = Task(data, rows, settings, loss, each_epoch, score is not None)
    device = device_of(settings)
    parts = {"module": module, "data": data, "loss": loss, "each_epoch": each_epoch}
    about = {"rows": rows, "settings": settings, "scored": task.scored, "device": device.type}
    with assemble(settings.processes, device, _member, parts | about) as team:
        return _run(
            module, task, team, device, score=score, folder=folder, watch=watch or Unwatched()
        )


def _run(
    module: nn.Module,
    task: Task,
    team: Team,
    device: torch.device,
    *,
    score: Callable[[nn.Module], float] | None,
    folder: Path | None,
    watch: Watch,
) -> Trained:
    if device.type == "cuda":
        device = torch.device("cuda", team.local)
    with repeatable(device), _lent(module, task.settings, device) as (frozen, started):
        training = Training(
            module,
            task,
            team,
            device,
            score=score if team.leads else None,
            folder=folder if team.leads else None,
            watch=watch if team.leads else Unwatched(),
            started=started,
        )
        made: Trained = team.told(training.run(frozen))
        module.load_state_dict(made.state, strict=False)
    return replace(made, state=_state(module))


def _member(team: Team, parts: Mapping[str, Any]) -> None:
    """What a process other than the first does."""
    task = Task(
        parts["data"],
        parts["rows"],
        parts["settings"],
        parts["loss"],
        parts["each_epoch"],
        parts["scored"],
    )
    device = torch.device(parts["device"])
    _run(parts["module"], task, team, device, score=None, folder=None, watch=Unwatched())


@contextmanager
def _lent(
    module: nn.Module, settings: TrainSettings, device: torch.device
) -> Iterator[tuple[Frozen, str]]:
    """The module where it is trained, and put back afterwards; with a digest of its weights."""
    home = next((p.device for p in module.parameters()), torch.device("cpu"))
    before = _state(module)
    frozen = Frozen(module, settings.freeze)
    try:
        module.to(device)
        if settings.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        yield frozen, digest_of(before)
    except BaseException:
        module.load_state_dict(before, strict=False)
        raise
    finally:
        frozen.thaw()
        module.zero_grad(set_to_none=True)
        module.to(home)
        if settings.channels_last:
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        module.eval()


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    return copies_of(tensors_of(module))


def _check(settings: TrainSettings, loss: Loss, score: Callable[[nn.Module], float] | None) -> None:
    if loss is not cross_entropy:
        for name in ("smoothing", "mixup"):
            if getattr(settings, name):
                raise UsageError(
                    f"{name} is of the classifier's own loss, and another loss was given",
                    hint=f"set {name}=0, and have the loss do it",
                )
    if score is not None and settings.validation:
        raise UsageError(
            "validation holds samples out to score, and a score was given",
            hint="set validation=0, or give no score",
        )
    if settings.patience and score is None and not settings.validation:
        raise UsageError(
            "patience waits for a better score, and there is none",
            hint="give a score, or set validation=0.1",
        )


class _Held:
    """The score of held-out samples."""

    def __init__(self, data: TrainSet, rows: torch.Tensor) -> None:
        self._data, self._rows = data, rows

    def __call__(self, module: nn.Module) -> float:
        return accuracy(module, self._data, self._rows)
